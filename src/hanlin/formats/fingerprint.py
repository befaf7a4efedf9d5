"""Identity of weights: a hash over all their bytes, taken while they are read anyway."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

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

    def passing(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights, each added on its way."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def value(self, others: Iterable[dict[str, str]] = ()) -> str:
        """The hash of all; others: `digests` of further ranks, which saw other tensors, or the same ones."""
        every = {name: digest for digests in (*others, self.digests) for name, digest in digests.items()}
        return hashlib.sha256("\n".join(f"{name} {every[name]}" for name in sorted(every)).encode()).hexdigest()


def weights_fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The hash of weights by name; equal only if every byte is."""
    fingerprint = Fingerprint()
    for name, tensor in weights:
        fingerprint.add(name, tensor)
    return fingerprint.value()
