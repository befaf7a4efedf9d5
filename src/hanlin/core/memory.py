"""A lack of memory as one sentence: in which step, how much there was, which settings need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hanlin.core.device import peak_memory_bytes, pick_device
from hanlin.core.errors import HanlinError

__all__ = ["OutOfMemoryError", "telling_memory"]

# What torch calls it on the CPU, where it has no class of its own.
_WORDS = ("defaultcpuallocator", "can't allocate memory", "out of memory")


class OutOfMemoryError(HanlinError):
    """A model, a batch or an answer that needs more memory than there is."""


@contextmanager
def telling_memory(device: str, advice: str) -> Iterator[None]:
    """Tell a lack of memory inside; device: `run.device`; advice: the settings that need less.

    Raises: OutOfMemoryError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        where = pick_device(device)
        step = " ".join(getattr(error, "__notes__", ()))
        peak = f"{peak_memory_bytes(where) / 2**30:,.2f} GiB at most were in use on {where}"
        raise OutOfMemoryError(
            f"{f'{step}: ' if step else ''}out of memory: {_first_line(error)}; {peak}. To need less: {advice}"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """torch.OutOfMemoryError is a RuntimeError that says so."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].split(". GPU")[0].rstrip(".")
    return text[:300] or "the system gave no more"
