"""Weights between file layouts. Knows no model; never runs code from a file."""
