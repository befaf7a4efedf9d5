"""One reader per kind of data file."""

from hanlin.data.sources.source import BadRowError, Source, open_source

__all__ = ["BadRowError", "Source", "open_source"]
