"""What users read of the settings: pages, `hanlin help`, a schema for editors; all of it made from the settings.

And of messages, in Chinese.
"""
