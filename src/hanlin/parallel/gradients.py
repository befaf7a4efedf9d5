"""The gradients of the trained weights: brought together over the ranks that have parts of them, measured, scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import torch
from torch import distributed, nn

from hanlin.core.collectives import waiting_limit
from hanlin.core.device import has_foreach
from hanlin.parallel.buckets import Buckets
from hanlin.parallel.mesh import Mesh, local

_Axis = Literal["data", "copy"]


class Gradients:
    """Those of this rank's stages. All ranks call the same methods in the same order."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        mesh: Mesh,
        *,
        is_sharded: bool,
        own: AbstractSet[str] = frozenset(),
        has_experts: bool = False,
    ) -> None:
        """is_sharded: FSDP adds those of the data ranks; own: names of what other data ranks do not have."""
        self._mesh, self._is_sharded, self._own, self._has_experts = mesh, is_sharded, own, has_experts
        self._held = [_trained(model) for model in models]
        self._holders = self._find_holders()
        self._groups = self._join_holders()
        self._buckets = self._make_buckets()
        self._lacking: set[str] = set()

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The trained weights that this rank holds, by name."""
        return {name: weight for held in reversed(self._held) for name, weight in held.items()}

    def expect_last(self) -> None:
        """The next backward pass is the last one of a step: in plain data parallelism the ranks add gradients while it
        goes on. Elsewhere other things travel between its blocks, or not all of a gradient is there yet.
        """
        is_plain = self._mesh.size("pipe") == self._mesh.size("tensor") == 1 and not self._has_experts
        if is_plain and (shared := self._buckets.get("data")) is not None:
            shared.expect_last()

    @torch.no_grad()
    def add(self) -> int:
        """Bring the gradients together that several stages or data ranks have of one weight.

        Returns how many weights are of data ranks and had no gradient on this one; if that is so on any of these,
        `drop_unknown` is to follow.
        """
        weights = self.weights
        for weight in (weight for held in self._held for weight in held.values()):
            _sum_partial_gradient(weight)
        for name, first in weights.items():
            for held in self._held:
                other = held.get(name, first)
                if other is not first and other.grad is not None:
                    first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
        self._lacking = self._add_over_data(weights)
        if self._holders:
            self._add_over_pipe(weights)
        return len(self._lacking)

    @torch.no_grad()
    def drop_unknown(self) -> None:
        """Take from weights that had no gradient on any data rank the zeros that `add` gave them: an optimizer leaves
        a weight alone that has none. All data ranks must call it.
        """
        for axis, names in self._parts().items():
            has = torch.tensor([float(name not in self._lacking) for name in names], device=self._mesh.device)
            distributed.all_reduce(has, group=self._mesh.group(axis))
            for name, count in zip(names, has.tolist(), strict=True):
                if not count and name not in self._holders:
                    self.weights[name].grad = None

    @torch.no_grad()
    def own_norm(self) -> torch.Tensor:
        """The length, as one vector, of the gradients that this rank counts: a number that is still on the device."""
        counted = [local(weight.grad) for weight in self.counted().values() if weight.grad is not None]
        return _norm(counted) if counted else torch.zeros((), device=self._mesh.device)

    def counted(self) -> dict[str, nn.Parameter]:
        """The weights, of those that several ranks hold alike only where this rank is the one to count them."""
        return {name: weight for name, weight in self.weights.items() if self._counts(name, weight)}

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        gradients = [local(weight.grad) for weight in self.weights.values() if weight.grad is not None]
        if gradients and has_foreach(gradients[0].device):
            torch.ops.aten._foreach_mul_.Scalar(gradients, factor)  # a few launches for all of them
            return
        for gradient in gradients:
            gradient.mul_(factor)

    def drop(self) -> None:
        for held in self._held:
            for weight in held.values():
                weight.grad = None

    @torch.no_grad()
    def refresh_copies(self) -> None:
        """Give the copies of a weight that other stages on this rank have the values of the trained one."""
        if len(self._held) == 1:
            return
        weights = self.weights
        for held in self._held:
            for name, weight in held.items():
                if weight is not weights[name]:
                    local(weight).copy_(local(weights[name]))

    # --- over the data axis ---

    def _parts(self) -> dict[_Axis, list[str]]:
        """The names of the weights that the ranks of an axis hold whole, where that has several."""
        if self._mesh.size("data") == 1:
            return {}
        own = [name for name in self.weights if name in self._own]
        shared = [] if self._is_sharded else [name for name in self.weights if name not in self._own]
        parts: dict[_Axis, list[str]] = {"data": shared, "copy": own}
        return {axis: names for axis, names in parts.items() if names}

    def _make_buckets(self) -> dict[_Axis, Buckets]:
        weights = self.weights
        return {
            axis: Buckets([weights[name] for name in names], self._mesh.group(axis))
            for axis, names in self._parts().items()
        }

    def _add_over_data(self, weights: Mapping[str, nn.Parameter]) -> set[str]:
        """Returns the names of those that had no gradient here."""
        parts = self._parts()
        lacking = {name for names in parts.values() for name in names if weights[name].grad is None}
        for axis, names in parts.items():
            if axis == "copy" and self._is_sharded:  # these were not averaged
                for gradient in (weights[name].grad for name in names):
                    if gradient is not None:
                        local(gradient).div_(self._mesh.size("data"))
            self._buckets[axis].finish()
        return lacking

    # --- over the pipeline ---

    def _find_holders(self) -> dict[str, list[int]]:
        """The pipe ranks that hold a trained weight, where they are several, by its name."""
        if self._mesh.size("pipe") == 1:
            return {}
        names = self._mesh.gather("pipe", sorted(self.weights))
        every = {name for held in names for name in held}
        found = {name: [rank for rank, held in enumerate(names) if name in held] for name in sorted(every)}
        return {name: ranks for name, ranks in found.items() if len(ranks) > 1}

    def _join_holders(self) -> dict[tuple[int, ...], Any]:
        """For each set of pipe ranks that hold one weight and that this one is of: what they talk through."""
        own, found = self._mesh.rank("pipe"), {}
        for ranks in sorted({tuple(ranks) for ranks in self._holders.values() if own in ranks}):
            everyone = distributed.get_process_group_ranks(self._mesh.group("pipe"))
            members = [everyone[rank] for rank in ranks]
            if len(ranks) == len(everyone):
                found[ranks] = self._mesh.group("pipe")
            else:
                limit = waiting_limit()
                found[ranks] = distributed.new_group(members, timeout=limit, use_local_synchronization=True)
        return found

    def _add_over_pipe(self, weights: Mapping[str, nn.Parameter]) -> None:
        for name, ranks in self._holders.items():
            if (weight := weights.get(name)) is None:
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(local(weight.grad), group=self._groups[tuple(ranks)])

    # --- counting each once ---

    def _counts(self, name: str, weight: nn.Parameter) -> bool:
        """Whether this rank is to count a gradient: one of the ranks that hold the same."""
        if self._mesh.rank("pipe") != self._holders.get(name, [self._mesh.rank("pipe")])[0]:
            return False
        if not _is_divided(weight) and self._mesh.rank("tensor") > 0:
            return False
        if name in self._own:
            return self._mesh.rank("copy") == 0
        return self._mesh.rank("replicate" if self._is_sharded else "data") == 0


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of all as one vector, in fp32 at least; torch's own norm of several is as coarse as they are."""
    if all(gradient.dtype.itemsize >= 4 for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def _is_divided(weight: torch.Tensor) -> bool:
    """Whether the tensor ranks hold different parts of it."""
    mesh: Any = getattr(weight, "device_mesh", None)
    if mesh is None or "tensor" not in mesh.mesh_dim_names:
        return False
    placements: Any = getattr(weight, "placements", ())
    return not placements[mesh.mesh_dim_names.index("tensor")].is_replicate()


def _sum_partial_gradient(weight: nn.Parameter) -> None:
    """Add the parts of a gradient that the tensor ranks have of a weight which each holds whole."""
    placements = getattr(weight.grad, "placements", None)
    if placements is not None and placements != weight.placements:  # pyright: ignore[reportAttributeAccessIssue]
        weight.grad = weight.grad.redistribute(placements=weight.placements)  # pyright: ignore
