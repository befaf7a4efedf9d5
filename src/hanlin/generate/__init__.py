"""Answers from a model: search and sampling as pure functions, and the engine that drives a model with its cache."""
