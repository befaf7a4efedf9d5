"""A model and a layout -> a worker with the same face for one process and a thousand."""
