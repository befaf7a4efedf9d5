"""Identity of weights: a hash over all their bytes, taken while they are read anyway."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING

from hanlin.core.errors import CheckpointError
from hanlin.formats.lazy import bytes_of

if TYPE_CHECKING:
    import torch


class Fingerprint:
    """A hash of every tensor that was added, by name; their order, and which rank added which, do not matter."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a whole tensor into account; a name that is added again counts once."""
        tensor = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
        self.digests[name] = digest.hexdigest()

    def passing(
        self, weights: Iterable[tuple[str, torch.Tensor]], wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights, each added on its way; wanted: the names of those that are (None: all)."""
        for name, tensor in weights:
            if wanted is None or name in wanted:
                self.add(name, tensor)
            yield name, tensor

    def value(self, others: Iterable[dict[str, str]] = ()) -> str:
        """The hash of all; others: `digests` of further ranks, which saw other tensors, or the same ones.

        Raises: CheckpointError where two of them saw different ones under a name.
        """
        every: dict[str, str] = {}
        for name, digest in (one for digests in (*others, self.digests) for one in digests.items()):
            if every.setdefault(name, digest) != digest:
                raise CheckpointError(
                    f"{name}: not all ranks have read the same weights; see that the base has the same files on all "
                    "machines"
                )
        return hashlib.sha256("\n".join(f"{name} {every[name]}" for name in sorted(every)).encode()).hexdigest()


def weights_fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The hash of weights by name; equal only if every byte is."""
    fingerprint = Fingerprint()
    for name, tensor in weights:
        fingerprint.add(name, tensor)
    return fingerprint.value()
