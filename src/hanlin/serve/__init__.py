"""Answers over HTTP, as OpenAI's clients ask for them: one file per group of routes, one thread that runs the model."""
