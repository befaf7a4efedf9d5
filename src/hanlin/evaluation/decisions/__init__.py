"""Typed decisions: questions about an input, answered with the probability of each possible answer, and no text.

questions (what may be asked, as OpenAI's clients write it) + inputs (of what) -> asking (records of the family) ->
scoring (the numbers that the tasks likelihood and classify compare) -> answers (probabilities). calibration fits the
temperature between the last two.
"""
