"""One reader per file form; each gives records by number."""
