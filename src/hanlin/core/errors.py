"""What a user can do wrong. Anything else that is raised is a defect of ours.

Every message says what was found, where (file, line or key), what was expected and what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class HanlinError(Exception):
    """A mistake of the user's; the command line prints it without a traceback and exits with its code."""

    exit_code = 2


def traceback_of(error: BaseException) -> BaseException | None:
    """What a log shows of an error behind its sentence: nothing where the sentence is meant to say it all."""
    return None if isinstance(error, HanlinError) else error


class ConfigError(HanlinError):
    """A recipe or a command-line argument that cannot be run."""


class DataError(HanlinError):
    """A record or a data file that cannot be used."""


class DamagedFileError(DataError):
    """A data file of which nothing more can be read: no matter of one row; it ends the work despite `data.bad_rows`."""


class PromptTooLongError(DataError):
    """A record that leaves no room for its answer."""


class CheckpointError(HanlinError):
    """A weights file or a run's checkpoint that cannot be used."""


class RankError(HanlinError):
    """This process had to end because another one of the same run did, or is not to be reached."""

    exit_code = 3


def shorten(items: Sequence[str], shown: int = 3) -> list[str]:
    """What a message lists of many: the first `shown` items and, where there are others, "and 5 more"."""
    return [*items[:shown], *([f"and {len(items) - shown:,} more"] if len(items) > shown else [])]


@contextmanager
def noting(note: Callable[[], str]) -> Iterator[None]:
    """Add a note (`step=12`) to whatever is raised inside; a traceback and the other ranks' messages show it."""
    try:
        yield
    except Exception as error:
        error.add_note(note())
        raise
