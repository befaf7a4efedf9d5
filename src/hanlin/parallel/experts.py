"""Expert parallelism: a mixture's experts live on several data ranks, and tokens travel to the rank of their expert.

Also without it (`parallel.expert: 1`) all data ranks assign their tokens together, so that a layout changes no number:
what is balanced is the forward pass of all of them, not that of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn

from hanlin.core.errors import ConfigError
from hanlin.layers.experts import ExpertRun, Experts
from hanlin.parallel.mesh import Mesh


def share_experts(model: nn.Module, mesh: Mesh) -> None:
    """Leave a model (also one on the meta device) its rank's experts, and let the data ranks assign tokens together.

    Raises: ConfigError when the experts cannot be divided so.
    """
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    size, rank = mesh.size("expert"), mesh.rank("expert")
    for key, text in expert_problems(model, size):
        raise ConfigError(f"{key}: {text}")
    for mixture in mixtures:
        count = len(mixture.experts)
        for number in range(count):
            if number * size // count != rank:
                del mixture.experts[str(number)]
        mixture.peers = ExpertRanks(mesh)


def expert_problems(model: nn.Module, size: int) -> Iterator[tuple[str, str]]:
    """Key and text of what keeps a model's experts, also on the meta device, from being divided among so many ranks."""
    counts = {len(module.experts) for module in model.modules() if isinstance(module, Experts)}
    if size > 1 and not counts:
        yield "parallel.expert", "this model is no mixture of experts; use 1"
    for count in sorted(counts):
        if count % size:
            yield "parallel.expert", f"{count} experts cannot be divided among {size} ranks; use a divisor of {count}"


def expert_names(model: nn.Module) -> set[str]:
    """The names of all parameters of a model's experts."""
    mixtures = [(name, module) for name, module in model.named_modules() if isinstance(module, Experts)]
    return {name for prefix, module in mixtures for name, _ in module.experts.named_parameters(f"{prefix}.experts")}


class ExpertRanks:
    """The data ranks as `layers.experts.Peers`; those of the axis expert hold the experts together, in their order."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.rank = mesh, mesh.rank("data")

    def sizes(self, own: int) -> list[int]:
        return self._joined("data", torch.tensor([own], device=self.mesh.device)).tolist()

    def join_scores(self, scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        longest = max(sizes)
        padded = nn.functional.pad(scores, (0, 0, 0, longest - len(scores)))
        pieces = self._joined("data", padded).split(longest)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])

    def join_norms(self, weights: torch.Tensor) -> torch.Tensor:
        return self._joined("expert", weights)

    def own_groups(self, count: int) -> Iterable[int]:
        return range(self.rank, count, self.mesh.size("data"))

    def add(self, numbers: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(numbers, group=self.mesh.group("data"))
        return numbers

    def visit(self, tokens: torch.Tensor, counts: torch.Tensor, run: ExpertRun) -> torch.Tensor:
        size = self.mesh.size("expert")
        if size == 1:
            return run(tokens, counts.tolist())
        group = self.mesh.group("expert")
        going = counts.view(size, -1)  # rank, its expert
        coming = torch.empty_like(going)
        distributed.all_to_all_single(coming, going, group=group)
        there, here = going.sum(1).tolist(), coming.sum(1).tolist()
        experts = torch.arange(going.shape[1], device=tokens.device).repeat(size)
        order = experts.repeat_interleave(coming.flatten()).argsort(stable=True)  # from by rank to by expert
        guests: torch.Tensor = _Exchange.apply(tokens, there, here, group)  # pyright: ignore[reportAssignmentType]
        out = run(guests[order], coming.sum(0).tolist())
        return _Exchange.apply(out[order.argsort()], here, there, group)  # pyright: ignore[reportReturnType]

    def _joined(self, axis: Any, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks of an axis, equally large, one behind the other."""
        size = self.mesh.size(axis)
        if size == 1:
            return tensor
        pieces = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
        distributed.all_gather(pieces, tensor.contiguous(), group=self.mesh.group(axis))
        return torch.cat(pieces)


class _Exchange(torch.autograd.Function):
    """Rows to other ranks, rows from other ranks; their gradients go the same ways back."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, going: list[int], coming: list[int], group: Any) -> torch.Tensor:
        ctx.back = coming, going, group
        return _exchanged(rows, going, coming, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _exchanged(gradients[0], *ctx.back), None, None, None


def _exchanged(rows: torch.Tensor, going: list[int], coming: list[int], group: Any) -> torch.Tensor:
    """going, coming: numbers of rows to and from each rank."""
    received = rows.new_empty(sum(coming), *rows.shape[1:])
    distributed.all_to_all_single(received, rows.contiguous(), coming, going, group=group)
    return received
