"""Which of the weights of a base each rank hashes, so that those of a machine read it once for all of them."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from hanlin.core.collectives import gather_values
from hanlin.core.ranks import read_ranks

__all__ = ["names_to_hash"]


def names_to_hash(names: Sequence[str]) -> set[str]:
    """Of the weights that a rank reads those that it hashes for all ranks of its machine that read them too."""
    me = (socket.gethostname(), read_ranks().rank)
    readers: dict[str, list[tuple[str, int]]] = {}
    for place, read in gather_values((me, list(names))):
        for name in read if place[0] == me[0] else ():
            readers.setdefault(name, []).append(place)
    turns = sorted(readers)
    return {name for number, name in enumerate(turns) if readers[name][number % len(readers[name])] == me}
