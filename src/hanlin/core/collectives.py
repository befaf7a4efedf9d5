"""What ranks say to each other about plain values and turns; a process that is alone answers itself.

Every rank must call these, in the same order. Tensors have their own ways (parallel/mesh.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import HanlinError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def has_ranks() -> bool:
    """Whether this process has joined others (or itself alone, under a launcher)."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def is_main_rank() -> bool:
    from torch import distributed

    return not has_ranks() or distributed.get_rank() == 0


def new_cpu_group() -> ProcessGroup | None:
    """All ranks once more, talking through the CPU's memory; None for a process alone."""
    from torch import distributed

    return distributed.new_group(backend="gloo") if has_ranks() else None  # pyright: ignore[reportReturnType]


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


def broadcast_value(value: Any) -> Any:
    """The main rank's picklable value, on all ranks; what the others give does not matter."""
    from torch import distributed

    values = [value if is_main_rank() else None]
    if has_ranks():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def call_on_main(make: Callable[[], Any]) -> Any:
    """What the main rank makes, on all ranks.

    Raises: HanlinError on all ranks, where it is raised on the main one.
    """
    made: Any = None
    if is_main_rank():
        try:
            made = make()
        except HanlinError as error:
            made = error
    made = broadcast_value(made)
    if isinstance(made, HanlinError):
        raise made
    return made


@contextmanager
def main_first() -> Iterator[bool]:
    """Let the main rank do something (make a folder, fill a cache) before the others; says who it is."""
    is_main = is_main_rank()
    if not is_main:
        wait_for_all()
    yield is_main
    if is_main:
        wait_for_all()
