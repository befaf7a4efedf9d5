"""Numbers from texts; no torch."""
