"""Ways to tune a model, each changes it in place and keeps every base name."""
