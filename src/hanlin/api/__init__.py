"""What a Python program calls, and the commands too: recipes and models by their names, runs, conversion.

`hanlin/__init__.py` exports the public part of it, and imports it when it is used.
"""
