"""Whether this machine, its devices and the links between them do what Hanlin asks of them."""
