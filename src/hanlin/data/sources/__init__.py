"""One reader per kind of data file."""

from hanlin.data.sources.opening import open_records
from hanlin.data.sources.records import BadRowError, DataFile, LeftOutError, Records

__all__ = ["BadRowError", "DataFile", "LeftOutError", "Records", "open_records"]
