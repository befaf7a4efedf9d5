"""Identity of weights: a hash over all their bytes, taken by threads while they are read anyway."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from hanlin.core.errors import CheckpointError
from hanlin.formats.lazy import bytes_of

if TYPE_CHECKING:
    import torch


_THREADS = 3
"""That hash; about as fast together as one thread reads what the system has in memory."""


class Fingerprint:
    """A hash of every tensor that was added, by name; their order, and which rank added which, do not matter."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._pending: deque[tuple[str, Future[str]]] = deque()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def digests(self) -> dict[str, str]:
        """The hash of each tensor by its name."""
        self.wait()
        return self._digests

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a whole tensor into account, which must not change until `wait`; a name that is added again counts once.

        A few are hashed at the same time; with more the oldest is waited for, so that they do not pile up in memory.
        """
        self._threads = self._threads or ThreadPoolExecutor(_THREADS)
        self._pending.append((name, self._threads.submit(_digest, tensor.detach().cpu().contiguous())))
        if len(self._pending) > _THREADS:
            self._finish_oldest()

    def wait(self) -> None:
        """Until all that was added is hashed."""
        while self._pending:
            self._finish_oldest()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def passing(
        self, weights: Iterable[tuple[str, torch.Tensor]], wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights, each added on its way; wanted: the names of those that are (None: all)."""
        for name, tensor in weights:
            if wanted is None or name in wanted:
                self.add(name, tensor)
            yield name, tensor
        self.wait()

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

    def _finish_oldest(self) -> None:
        name, digest = self._pending.popleft()
        self._digests[name] = digest.result()


def _digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(bytes_of(tensor))
    return digest.hexdigest()


def weights_fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The hash of weights by name; equal only if every byte is."""
    fingerprint = Fingerprint()
    for name, tensor in weights:
        fingerprint.add(name, tensor)
    return fingerprint.value()
