"""One file per way to score a data set."""
