"""Recipes: their settings, how they are read from YAML, and what of them has no effect."""
