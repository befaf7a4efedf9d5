"""Files -> batches. Knows no model and no process group."""
