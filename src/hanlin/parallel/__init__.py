"""A model and a layout -> a `ParallelModel` with the same face for one process and a thousand."""
