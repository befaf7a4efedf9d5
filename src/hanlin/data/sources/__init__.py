"""One reader per kind of data file."""

from hanlin.data.sources.opening import open_records
from hanlin.data.sources.records import BadRowError, Records

__all__ = ["BadRowError", "Records", "open_records"]
