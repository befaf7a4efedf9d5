"""What a layout needs, before anything runs: memory, traffic and time per rank, and which layouts fit."""
