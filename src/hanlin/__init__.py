"""Hanlin: pretrain, tune, evaluate, convert and run the CPM and ChatGLM families on stock PyTorch."""

__version__ = "0.1.0"
