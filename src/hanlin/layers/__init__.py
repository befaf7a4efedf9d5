"""Bricks of models: single device, plain arguments."""
