"""The ranks of a run as a mesh of four axes: pipe x replicate x shard x tensor, the last one between neighbours.

replicate and shard together are the data axis: their ranks take different rows of a batch. shard ranks hold one copy of
the model together, replicate ranks a copy each. For a mixture's experts the data axis is divided in another way: expert
ranks hold them all together, copy ranks the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import distributed

from hanlin.core.collectives import broadcast_value, gather_values, has_ranks, waiting_limit
from hanlin.core.errors import ConfigError
from hanlin.parallel.layout_checks import degree_problems
from hanlin.recipe.settings import ParallelSettings

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Axis = Literal["pipe", "replicate", "shard", "tensor", "data", "expert", "copy", "all"]
Reduction = tuple[Axis, Literal["sum", "max"], Sequence[float]]
"""Of numbers, each over the ranks of an axis: which axis, how, and the numbers of this rank."""
AXES = ("pipe", "replicate", "shard", "tensor")
EXPERT_AXES = ("pipe", "copy", "expert", "tensor")


@dataclass(frozen=True)
class Degrees:
    """How many ranks each axis has; expert: of the data axis."""

    pipe: int = 1
    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    expert: int = 1

    @property
    def data(self) -> int:
        return self.replicate * self.shard

    @property
    def copy(self) -> int:
        return self.data // self.expert

    @property
    def world(self) -> int:
        return self.pipe * self.data * self.tensor

    def data_rank(self, rank: int) -> int:
        """The place on the data axis of a rank of the whole."""
        return rank // self.tensor % self.data

    def seed_offset(self, rank: int) -> int:
        """A number that only the tensor ranks with the same rows and blocks share."""
        return rank // self.tensor

    def first_rank(self, pipe: int, data: int) -> int:
        """The rank of the whole at these places, the first of its tensor ranks."""
        return (pipe * self.data + data) * self.tensor

    @staticmethod
    def of(settings: ParallelSettings, world: int) -> Degrees:
        """The degrees of a layout on `world` processes.

        Raises: ConfigError when they do not multiply to it.
        """
        inner = settings.tensor * settings.pipe
        data = settings.data or max(world // inner, 1)
        if data * inner != world:
            told = f"data {settings.data} x " if settings.data else "data x "
            raise ConfigError(
                f"parallel: {told}tensor {settings.tensor} x pipe {settings.pipe} is to be the number of processes, "
                f"which is {world}; start {data * inner} of them, or change a degree"
            )
        shard = 1 if settings.shard == "none" else settings.shard_ranks or data
        for key, text in degree_problems(settings, data):
            raise ConfigError(f"{key}: {text}")
        return Degrees(settings.pipe, data // shard, shard, settings.tensor, settings.expert)


class Mesh:
    """Where this process stands among the ranks; also for a process that is alone."""

    def __init__(self, degrees: Degrees, device: torch.device) -> None:
        self.degrees, self.device = degrees, device
        self._whole: DeviceMesh | None = None
        self._data: DeviceMesh | None = None
        self._experts: DeviceMesh | None = None
        if degrees.world > 1 or has_ranks():
            self._whole = self._arranged(AXES)
            self._data = self._data_axis()
            self._experts = self._arranged(EXPERT_AXES) if degrees.expert > 1 else None

    def _arranged(self, axes: tuple[str, ...]) -> DeviceMesh:
        """All ranks by these axes. `init_device_mesh` would leave its groups torch's limits of waiting."""
        from torch.distributed.device_mesh import DeviceMesh

        ranks = self._placed(axes)
        groups = [_group_along(ranks, dim) for dim in range(ranks.ndim)]
        return DeviceMesh.from_group(groups, self.device.type, ranks, mesh_dim_names=axes)

    def _data_axis(self) -> DeviceMesh:
        from torch.distributed.device_mesh import DeviceMesh

        group = _group_along(self._placed(("pipe", "data", "tensor")), 1)
        return DeviceMesh.from_group(group, self.device.type, mesh_dim_names=("data",))

    def _placed(self, axes: tuple[str, ...]) -> torch.Tensor:
        return torch.arange(self.degrees.world).view(*(getattr(self.degrees, name) for name in axes))

    def size(self, axis: Axis) -> int:
        return self.degrees.world if axis == "all" else getattr(self.degrees, axis)

    def rank(self, axis: Axis) -> int:
        """This process's place on an axis."""
        if self._whole is None or self.size(axis) == 1:
            return 0
        return distributed.get_rank() if axis == "all" else self.part(axis).get_local_rank()

    @property
    def is_main(self) -> bool:
        return self.rank("all") == 0

    def part(self, *axes: Axis) -> DeviceMesh:
        """The mesh of the ranks that share this one's place on all other axes."""
        assert self._whole is not None, "a process alone has no mesh"
        if axes == ("data",) or (axes == ("copy",) and self._experts is None):
            assert self._data is not None
            return self._data
        if axes in (("expert",), ("copy",)):
            assert self._experts is not None, "no axis divides the experts"
            return self._experts[axes]
        return self._whole[axes]

    def group(self, axis: Axis) -> distributed.ProcessGroup:
        return distributed.group.WORLD if axis == "all" else self.part(axis).get_group()  # pyright: ignore[reportReturnType]

    def sum(self, axis: Axis, values: Sequence[float]) -> list[float]:
        """The sums of numbers over the ranks of an axis. Every rank must call it, with equally many numbers."""
        return self.exchange((axis, "sum", values))[0]

    def maximum(self, axis: Axis, value: float) -> float:
        """The greatest of the numbers of the ranks of an axis; every rank must call it."""
        return self.exchange((axis, "max", [value]))[0][0]

    def exchange(self, *of: Reduction) -> list[list[float]]:
        """The results of several reductions, in one collective. Every rank must call it, with the same axes
        and kinds, and equally many numbers.
        """
        if all(self.size(axis) == 1 for axis, _, _ in of):
            return [list(values) for _, _, values in of]
        every = self._gathered([value for _, _, values in of for value in values])
        found, begin = [], 0
        for axis, what, values in of:
            numbers = every[self._ranks(axis), begin : begin + len(values)]
            found.append((numbers.sum(0) if what == "sum" else numbers.amax(0)).tolist())
            begin += len(values)
        return found

    def _ranks(self, axis: Axis) -> list[int]:
        """Of this process' part of an axis, in the whole."""
        if self.size(axis) == 1:
            return [distributed.get_rank()]
        return list(range(self.size("all"))) if axis == "all" else distributed.get_process_group_ranks(self.group(axis))

    def _gathered(self, values: Sequence[float]) -> torch.Tensor:
        """The numbers of all ranks, `[ranks, numbers]` fp64."""
        mine = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(self.size("all"))]
        # Between all ranks, for only these are sure to talk through plain memory, whatever the device.
        distributed.all_gather(every, mine)
        return torch.stack(every)

    def gather(self, axis: Axis, value: Any) -> list[Any]:
        """Picklable values of all ranks of an axis, in their order."""
        return [value] if self.size(axis) == 1 else gather_values(value, self.group(axis))

    def from_main(self, value: Any) -> Any:
        """The main rank's picklable value, on all ranks; what the others give does not matter."""
        return value if self.size("all") == 1 else broadcast_value(value)


def _group_along(ranks: torch.Tensor, dim: int) -> distributed.ProcessGroup:
    """Of this rank with those that differ from it in one dimension only; every rank must call it."""
    lines = ranks.movedim(dim, -1).flatten(0, -2).tolist()
    if len(lines) == 1:
        return distributed.group.WORLD  # pyright: ignore[reportReturnType]
    return distributed.new_subgroups_by_enumeration(lines, timeout=waiting_limit())[0]  # pyright: ignore[reportReturnType]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, without a copy."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def like(weight: torch.Tensor, part: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of this shape that a layout divides as it does a weight; what has the length 1 is whole on every rank.

    part: what this rank holds of it.
    """
    placements = getattr(weight, "placements", None)
    if placements is None:
        return part
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(
        part,
        weight.device_mesh,  # pyright: ignore[reportAttributeAccessIssue]
        [Replicate() if hasattr(one, "dim") and shape[one.dim] == 1 else one for one in placements],
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; every rank that holds a part of it must call this."""
    full_tensor = getattr(tensor, "full_tensor", None)
    if full_tensor is None:
        return tensor
    # It warns that gathering over two axes takes two steps.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    return full_tensor()


def own_part(weight: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Of a whole tensor what this rank holds of a weight with that shape, without a copy."""
    for dim, (first, size) in enumerate(zip(offset_of(weight), local(weight).shape, strict=True)):
        full = full.narrow(dim, first if size else 0, size)
    return full


def offset_of(weight: torch.Tensor) -> tuple[int, ...]:
    """Where what this rank holds of a tensor begins in the whole, in each dimension."""
    placements = getattr(weight, "placements", None)
    if placements is None:
        return (0,) * weight.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, placements)[1]  # pyright: ignore


def sum_over_shards(weight: torch.Tensor, part: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """The sums over dimensions of something that is divided as a weight is; these stay, with the length 1.

    part: what this rank holds of it; all ranks that hold a part must call it.
    """
    total = part.sum(tuple(dims), keepdim=True)
    for number, placement in enumerate(getattr(weight, "placements", ())):
        if getattr(placement, "dim", None) in dims:
            distributed.all_reduce(total, group=weight.device_mesh.get_group(number))  # pyright: ignore[reportAttributeAccessIssue]
    return total
