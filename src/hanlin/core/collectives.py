"""What ranks say to each other about plain values and turns; a process that is alone answers itself.

Every rank must call these, in the same order. Tensors have their own ways (parallel/mesh.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import HanlinError, RankError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def has_ranks() -> bool:
    """Whether this process has joined others (or itself alone, under a launcher)."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def is_main_rank() -> bool:
    from torch import distributed

    return not has_ranks() or distributed.get_rank() == 0


def new_cpu_group(timeout: timedelta | None = None) -> ProcessGroup | None:
    """All ranks once more, talking through the CPU's memory; None for a process alone.

    timeout: how long they wait for each other; None: as elsewhere.
    """
    from torch import distributed

    if not has_ranks():
        return None
    return distributed.new_group(backend="gloo", timeout=timeout or waiting_limit())  # pyright: ignore[reportReturnType]


def waiting_limit() -> timedelta | None:
    """How long the ranks have agreed to wait for each other (`core.ranks.join`); None: what they talk through does not
    say. Every new group has to be told, for torch gives each a limit of its own.
    """
    import torch
    from torch import distributed

    plain: Any = distributed.group.WORLD._get_backend(torch.device("cpu"))  # pyright: ignore[reportOptionalMemberAccess]
    return getattr(plain.options, "_timeout", None)


def wait_for_all() -> None:
    from torch import distributed

    if has_ranks():
        distributed.barrier()


def gather_values(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """Picklable values of all ranks, or of those of a group, in their order."""
    from torch import distributed

    if not has_ranks():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values


def broadcast_value(value: Any, group: ProcessGroup | None = None) -> Any:
    """The main rank's picklable value, on all ranks; what the others give does not matter. group: of all ranks."""
    from torch import distributed

    values = [value if is_main_rank() else None]
    if has_ranks():
        distributed.broadcast_object_list(values, src=0, group=group)
    return values[0]


def call_on_main(make: Callable[[], Any]) -> Any:
    """What the main rank makes, on all ranks.

    Raises: on all ranks, where it is raised on the main one (`main_first`).
    """
    made: Any = None
    with main_first() as is_main:
        if is_main:
            made = make()
    return broadcast_value(made)


@contextmanager
def main_first() -> Iterator[bool]:
    """Let the main rank do something (make a folder, fill a cache) before the others; says who it is.

    Raises: where the main rank fails the others do too, at once: with its HanlinError, or with a RankError that tells
    of any other error.
    """
    if not is_main_rank():
        failure = broadcast_value(None)
        if failure is not None:
            raise failure
        yield False
        return
    try:
        yield True
    except BaseException as error:
        broadcast_value(error if isinstance(error, HanlinError) else _told_to_others(error))
        raise
    broadcast_value(None)


@contextmanager
def entered_on_main(context: AbstractContextManager[object]) -> Iterator[None]:
    """A block before which the main rank enters `context` for all (a lock), and after which it leaves it.

    Raises: on all ranks, where entering fails.
    """
    with ExitStack() as stack:
        with main_first() as is_main:
            if is_main:
                stack.enter_context(context)
        yield


def _told_to_others(error: BaseException) -> RankError:
    return RankError(f"rank 0 failed: {type(error).__name__}: {error}")
