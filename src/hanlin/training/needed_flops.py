"""How many floating-point operations (FLOP) a model needs for a step: what MFU, model FLOPs utilization, is a share of.

As the field counts it (Chowdhery et al. 2022, PaLM, appendix B; nanoGPT; torchtitan): products of matrices alone, what
is computed again to save memory not at all, attention as if every position of a sample saw every other one.

- A weight costs each position that reads it 2 FLOP forwards, 2 backwards where a gradient goes on to what stands before
  it, and 2 for its own gradient where it is trained. Frozen ones before the first that is trained so cost 2, behind it
  4, trained ones 6.
- Positions are those of the side that reads it, encoder or decoder; of the head those with a label; of a mixture's
  experts one is read by each. Packed weights count as what they stand for.
- Attention costs 4 FLOP forwards, and 8 backwards, for each channel of the queries and pair of positions.

Left out: what is computed once a forward pass and not for each position (a prefix's projection, DoRA's lengths of
rows), CPM-Bee's few labels that are a batch's own, a teacher's pass, a first pass that asks for likelihoods, and
matrices that are no linears. Where an attention is the first trained thing, its backward products count as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from hanlin.core.batch import Extent
from hanlin.core.plan import Plan, TensorSplit, compile_pattern
from hanlin.layers.experts import Experts

_OWN, _READ, _HEAD = "tokens", "read_tokens", "labels"
_READS_STREAM: tuple[TensorSplit, ...] = ("column", "query", "kv")
"""Linears of a module that are divided so read the same."""


@dataclass(frozen=True)
class NeededFlops:
    """per: by the name of a field of `Extent`, what each of that costs."""

    per: dict[str, int]

    def of(self, extent: Extent) -> int:
        return sum(count * self.per.get(name, 0) for name, count in extent._asdict().items())


def needed_flops(model: nn.Module) -> NeededFlops:
    """Of a whole model with what its tuning added, on any device, also meta."""
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    count = _Count(model, plan)
    first = [model.get_submodule(name) for name in plan.first]
    begins = any(map(_is_trained, [*first, getattr(model, "soft_prompt", None)]))
    own, read = _Stream(_OWN, begins), _Stream(_READ, begins)
    for blocks in plan.blocks:
        for name, block in model.get_submodule(blocks).named_children():
            parts = list(_parts(f"{blocks}.{name}", block))
            is_encoder = bool(plan.whole) and not any(count.is_whole(part) for part, _ in parts)
            count.block(parts, read if is_encoder else own, read)
    for name in plan.last:
        count.head(model.get_submodule(name), own.carries)
    return NeededFlops(dict(count.found))


@dataclass
class _Stream:
    """Hidden states on their way through the blocks. carries: whether something before is trained, to which a gradient
    has to go.
    """

    positions: str
    carries: bool


class _Count:
    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.found: Counter[str] = Counter()
        self._along = plan.added
        self._splits: dict[re.Pattern[str], TensorSplit] = {
            compile_pattern(pattern): split for pattern, split in plan.tensor.items()
        }
        self._whole = [compile_pattern(pattern) for pattern in plan.whole]
        self._prefix: int = getattr(getattr(model, "prefix", None), "length", 0)
        # Position bias, a prefix: they come into every attention.
        self._enters = any(_is_trained(model.get_submodule(name)) for name in plan.shared if name != "soft_prompt")

    def is_whole(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._whole)

    def block(self, parts: list[tuple[str, nn.Module]], stream: _Stream, read: _Stream) -> None:
        """parts: the modules of a block, as they come."""
        for _, group in groupby(parts, lambda part: self._reads(part[0])):
            carries, channels, is_cross = stream.carries, 0, False
            for name, module in group:
                if isinstance(module, nn.Linear):
                    source = read if self.is_whole(name) else stream
                    self._linear(module, source)
                    channels += module.out_features * (self._split(name) == "query")
                    is_cross |= source is not stream
                    carries |= source.carries
                elif isinstance(module, Experts):  # which expert it is: no gradient goes through that
                    self._product(stream.positions, module.centroids.numel(), carries=False, is_trained=False)
                carries |= _is_trained(module, recurse=False)
            stream.carries = carries or (bool(channels) and self._enters)
            if channels:
                self._attention(channels, stream, is_cross)

    def head(self, part: nn.Module, carries: bool) -> None:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                self._linear(module, _Stream(_HEAD, carries))
                continue
            for weight in module.parameters(recurse=False):
                if weight.dim() == 2:
                    self._product(_HEAD, weight.numel(), carries, weight.requires_grad)

    def _reads(self, name: str) -> str:
        """The same for linears that read the same."""
        return name.rpartition(".")[0] if self._split(name) in _READS_STREAM else name

    def _split(self, name: str) -> TensorSplit | None:
        return next((split for pattern, split in self._splits.items() if pattern.fullmatch(name)), None)

    def _linear(self, module: nn.Linear, source: _Stream) -> None:
        positions, carries = source.positions, source.carries
        added = {name: module.get_parameter(name) for name in getattr(module, "added", ())}
        vectors = [name for name, weight in added.items() if weight.dim() == 1 and weight.requires_grad]
        is_rescaled = any(self._is_along_inputs(name) for name in vectors)
        size = module.in_features * module.out_features
        self._product(positions, size, carries or is_rescaled, module.weight.requires_grad)
        before = carries
        for name, weight in added.items():
            if weight.dim() == 2:
                self._product(positions, weight.numel(), before, weight.requires_grad)
                # What follows a matrix that reads the linear's input reads what comes of that.
                before = carries or (weight.requires_grad and self._is_along_inputs(name))

    def _is_along_inputs(self, name: str) -> bool:
        return name in self._along and self._along[name].inputs is not None

    def _attention(self, channels: int, stream: _Stream, is_cross: bool) -> None:
        per_pair = (12 if stream.carries else 4) * channels
        pairs = "cross_pairs" if is_cross else {_OWN: "pairs", _READ: "read_pairs"}[stream.positions]
        self.found[pairs] += per_pair
        self.found[stream.positions] += per_pair * self._prefix

    def _product(self, positions: str, size: int, carries: bool, is_trained: bool) -> None:
        self.found[positions] += 2 * size * (1 + carries + is_trained)


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module and those in it, as they come; one expert stands for all, since a position goes through one."""
    yield name, module
    children: Any = module.named_children()
    if isinstance(module, Experts):
        children = [(f"experts.{number}", expert) for number, expert in list(module.experts.named_children())[:1]]
    for child, part in children:
        yield from _parts(f"{name}.{child}", part)


def _is_trained(module: nn.Module | None, *, recurse: bool = True) -> bool:
    return module is not None and any(weight.requires_grad for weight in module.parameters(recurse=recurse))
