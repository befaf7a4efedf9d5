"""Which of the weights of a base each rank hashes, so that those of a machine read it once for all of them."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence

from hanlin.core.collectives import gather_values
from hanlin.core.ranks import read_ranks

__all__ = ["names_to_hash"]


def names_to_hash(names: Sequence[str]) -> set[str]:
    """Of the weights that a rank reads those that it hashes for all ranks of its machine that read the same."""
    me, turns = _reader(names), sorted(names)
    readers = [rank for rank, other in enumerate(gather_values(me)) if other == me]
    return set(turns[readers.index(read_ranks().rank) :: len(readers)])


def _reader(names: Sequence[str]) -> tuple[str, str]:
    """What the ranks of a machine that read the same have in common. Not the names, which would be ranks x weights."""
    return socket.gethostname(), hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
