"""A frozen model over several ranks, with the face of a whole one on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn

from hanlin.parallel.parallel_model import ParallelModel


class ShardedInferenceModel(nn.Module):
    """All ranks with the same rows call it alike; each has a `KVCache` of its own, if any, for the blocks that it
    holds.

    names: of all weights, in the order of the whole model; around_calls: what computes a call in its place, by the
    function that does it and the inputs (leading.py).
    """

    around_calls: Callable[[Callable[..., torch.Tensor], dict[str, Any]], torch.Tensor] | None = None

    def __init__(self, parallel_model: ParallelModel, names: Sequence[str]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(parallel_model.models)
        self.mesh = parallel_model.mesh
        self._parallel_model, self._names = parallel_model, list(names)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """The same on all tensor and pipe ranks, bit for bit, since they go on by what they find in it."""
        return self._compute(**inputs) if self.around_calls is None else self.around_calls(self._compute, inputs)

    def _compute(self, **inputs: Any) -> torch.Tensor:
        result = self._parallel_model(**inputs)
        if self.mesh.size("tensor") > 1:
            result = result.contiguous()
            distributed.broadcast(result, group=self.mesh.group("tensor"), group_src=0)
        return result

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights on the main rank, empty ones on the others; every rank must go through them."""
        return self._parallel_model.gather(self._names)
