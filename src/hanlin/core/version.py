"""The version of this package, for rooms that may not import the package itself, which imports them all."""

from __future__ import annotations

import sys


def version() -> str:
    return sys.modules["hanlin"].__version__
