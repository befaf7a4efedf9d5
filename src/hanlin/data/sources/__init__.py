"""One reader per kind of data file."""

from hanlin.data.sources.records import BadRowError, Records, open_records

__all__ = ["BadRowError", "Records", "open_source"]
