"""What a user can do wrong. Anything else that is raised is a defect of ours.

Every message says what was found, where (file, line or key), what was expected and what to do next.
"""

from __future__ import annotations


class HanlinError(Exception):
    """A mistake of the user's; the command line prints it without a traceback and exits with its code."""

    exit_code = 2


class ConfigError(HanlinError):
    """A recipe or a command-line argument that cannot be run."""


class DataError(HanlinError):
    """A record or a data file that cannot be used."""


class CheckpointError(HanlinError):
    """A weights file or a run's checkpoint that cannot be used."""


class RankError(HanlinError):
    """This process had to end because another one of the same run did, or is not to be reached."""

    exit_code = 3
