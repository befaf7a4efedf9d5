"""One folder per family; nothing outside a folder names its family."""
