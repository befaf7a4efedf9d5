"""One step, one loop."""
