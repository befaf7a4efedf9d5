"""Scores: a task runs a model over records, metrics compare texts."""
