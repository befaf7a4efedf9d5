"""Which piece of which parameter a rank holds: told from shapes and the model's `Plan`, without a value of them.

The model stands on the meta device with everything that tuning adds; nothing here knows a family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan, TensorSplit, compile_pattern, divided_dimensions
from hanlin.parallel.stages import cut_costs
from hanlin.planner.layout import Layout
from hanlin.training.optimizer import WeightShape

_ONE = Layout()
EndPlacement = Literal["first", "last", "ends", "everywhere"]


@dataclass(frozen=True)
class OptimizerBytes:
    """Of a trained weight. state: what the optimizer keeps; changing: what it needs besides in its step."""

    state: Callable[[WeightShape], int]
    changing: Callable[[WeightShape], int]


@dataclass(frozen=True)
class Weight:
    """One parameter of the whole model.

    place: the number of its block in the order of the flow, or where else it lives; dim: what tensor ranks divide;
    num_heads: of keys and values, which fewer heads than ranks keep from being divided (0: it is none of theirs);
    num_experts: there are so many of it, one for each expert (0: it is none's); numbers: parameters that it stands for,
    more than its elements where several are packed into one.
    """

    name: str
    shape: tuple[int, ...]
    element_bytes: int
    is_trained: bool
    place: int | EndPlacement
    dim: int | None = None
    num_heads: int = 0
    num_experts: int = 0
    numbers: int = 0

    @property
    def is_summed(self) -> bool:
        """Whether the results of a product with it are summed over tensor ranks."""
        return self.dim == 1 and isinstance(self.place, int) and self.name.endswith(".weight")

    def local_shape(self, layout: Layout) -> tuple[int, ...]:
        """On tensor rank 0, which has the most."""
        if self.num_heads % layout.tensor:
            return self.shape
        return self._divided(layout.tensor)

    def seen_shape(self, layout: Layout) -> tuple[int, ...]:
        """What is computed with: of heads that ranks share, each uses one of the whole that it holds."""
        return self._divided(min(layout.tensor, self.num_heads) if self.num_heads else layout.tensor)

    def _divided(self, ranks: int) -> tuple[int, ...]:
        shape = list(self.shape)
        if self.dim is not None:
            shape[self.dim] = math.ceil(shape[self.dim] / ranks)
        return tuple(shape)

    def count(self, layout: Layout) -> int:
        """How many of it a rank has: one, or one for each of its experts."""
        return math.ceil(self.num_experts / layout.expert) if self.num_experts else 1

    def whole_elements(self, layout: Layout) -> int:
        """Of a rank, before it is sharded over data ranks."""
        return self.count(layout) * math.prod(self.local_shape(layout))

    def held_shape(self, layout: Layout) -> tuple[int, ...]:
        """On data rank 0: FSDP divides the first dimension, and the first ranks have the most of it."""
        shape, ranks = self.local_shape(layout), layout.shard_ranks
        if self.num_experts and layout.expert > 1:
            ranks = 1  # parallel/experts.py has divided them already, and FSDP leaves them as they are
        return (math.ceil(shape[0] / ranks), *shape[1:]) if shape else shape

    def trained_shape(self, layout: Layout) -> WeightShape:
        """What an optimizer learns of it."""
        return WeightShape(self.held_shape(layout), self.shape, isinstance(self.place, int))

    def held_elements(self, layout: Layout) -> int:
        return self.count(layout) * math.prod(self.held_shape(layout))


@dataclass(frozen=True)
class StageWeights:
    """What one pipeline rank computes: weights, and numbers of blocks.

    runs: stages of it; each has a copy of what all stages have, which stands among the weights as often.
    """

    rank: int
    weights: tuple[Weight, ...]
    blocks: tuple[int, ...]
    has_first: bool
    has_last: bool
    runs: int = 1

    def sums(self, block: int) -> int:
        """Products in a block whose results are summed over tensor ranks."""
        return sum(weight.is_summed for weight in self.weights if weight.place == block)


@dataclass(frozen=True)
class Held:
    """What one rank holds of its stage.

    held_bytes, held_trained: its share of the weights, and elements of the trained ones; optimiser_bytes: of its state;
    largest_trained: elements of its share of the largest trained weight; changing_bytes: most that the optimizer needs
    to change one weight; whole_...: the same before they are divided over data ranks, in the dtypes in which they are
    gathered; outside_bytes, outside_trained, block_bytes, block_trained: of these, in no block, and in the largest one;
    sums: products in its blocks whose results are summed over tensor ranks; head: the shape of the output table,
    [vocabulary, hidden_size].
    """

    stage: StageWeights
    held_bytes: int
    held_trained: int
    optimiser_bytes: int
    largest_trained: int
    changing_bytes: int
    whole_bytes: int
    whole_trained: int
    outside_bytes: int
    outside_trained: int
    block_bytes: int
    block_trained: int
    sums: int
    head: tuple[int, ...]
    is_head_trained: bool


class HeldSizes:
    """What tensor rank 0 and data rank 0 hold of a weight under a layout; blocks are alike, so little is computed."""

    def __init__(self, layout: Layout, optimizer: OptimizerBytes) -> None:
        self._layout, self.optimizer = layout, optimizer
        self._known: dict[tuple[object, ...], tuple[int, int, int, int]] = {}

    def of(self, weight: Weight) -> tuple[int, int, int, int]:
        """Elements before it is sharded, and of its share; bytes of the optimizer's state, and what its step needs."""
        key = weight.shape, weight.dim, weight.num_heads, weight.num_experts, isinstance(weight.place, int)
        if key not in self._known:
            shape = weight.trained_shape(self._layout)
            self._known[key] = (
                weight.whole_elements(self._layout),
                weight.held_elements(self._layout),
                weight.count(self._layout) * self.optimizer.state(shape),
                self.optimizer.changing(shape),
            )
        return self._known[key]


def hold(stage: StageWeights, layout: Layout, held_sizes: HeldSizes, gathered_bytes: int | None = None) -> Held:
    """The shares of tensor rank 0 and data rank 0.

    gathered_bytes: of an element of a block's weight when it is whole (None: as where it is held).
    """
    sizes = [(weight, *held_sizes.of(weight)[:2]) for weight in stage.weights]
    trained = [(weight, whole, held) for weight, whole, held in sizes if weight.is_trained]
    once = {weight.name: weight for weight, *_ in trained}
    block_bytes: dict[int, int] = {}
    block_trained: dict[int, int] = {}
    for weight, whole, _ in sizes:
        if isinstance(weight.place, int):
            size = min(weight.element_bytes, gathered_bytes or weight.element_bytes)
            block_bytes[weight.place] = block_bytes.get(weight.place, 0) + whole * size
            block_trained[weight.place] = block_trained.get(weight.place, 0) + whole * weight.is_trained
    outside_bytes = sum(whole * weight.element_bytes for weight, whole, _ in sizes if not isinstance(weight.place, int))
    ends = [weight for weight in stage.weights if weight.place in ("last", "ends") and len(weight.shape) == 2]
    head = max(ends, key=lambda weight: math.prod(weight.shape), default=None)
    return Held(
        stage,
        held_bytes=sum(held * weight.element_bytes for weight, _, held in sizes),
        held_trained=sum(held for *_, held in trained),
        optimiser_bytes=sum(held_sizes.of(weight)[2] for weight in once.values()),
        largest_trained=max((held // weight.count(layout) for weight, _, held in trained), default=0),
        changing_bytes=max((held_sizes.of(weight)[3] for weight, *_ in trained), default=0),
        whole_bytes=outside_bytes + sum(block_bytes.values()),
        whole_trained=sum(whole for _, whole, _ in trained),
        outside_bytes=outside_bytes,
        outside_trained=sum(whole for weight, whole, _ in trained if not isinstance(weight.place, int)),
        block_bytes=max(block_bytes.values(), default=0),
        block_trained=max(block_trained.values(), default=0),
        sums=sum(weight.is_summed for weight in stage.weights),
        head=head.local_shape(layout) if head is not None else (0, 0),
        is_head_trained=head is not None and head.is_trained,
    )


def list_weights(model: Any) -> list[Weight]:
    """All parameters of a (meta) model that has a `plan`; tied ones once, those of equal experts once."""
    plan: Plan = model.plan
    numbers = {name: number for number, name in enumerate(block_names(model))}
    splits = [(compile_pattern(pattern), split) for pattern, split in plan.tensor.items()]
    found = [_weight(model, plan, name, parameter, numbers, splits) for name, parameter in model.named_parameters()]
    return [weight for weight, is_first in found if is_first]


def block_names(model: Any) -> list[str]:
    """`blocks.0`, `blocks.1`, ... in the order of the flow."""
    return [f"{group}.{key}" for group in model.plan.blocks for key in model.get_submodule(group)]


def _weight(
    model: Any, plan: Plan, name: str, parameter: nn.Parameter, numbers: dict[str, int], splits: Any
) -> tuple[Weight, bool]:
    """A parameter, and whether it is the only one or that of expert 0."""
    module, _, leaf = name.rpartition(".")
    found: dict[TensorSplit, re.Match[str]] = {}
    for pattern, split in splits:
        if match := pattern.fullmatch(module) or (split == "experts" and pattern.match(f"{module}.")):
            found[split] = match
    experts = found.pop("experts", None)
    split = next(iter(found), None)
    dim = divided_dimensions(plan, split).get(leaf) if split is not None else None
    is_first, num_experts = True, 0
    if experts is not None:
        holder = module[: experts.end()].rstrip(".")
        num_experts = len(model.get_submodule(holder))
        is_first = module[len(holder) + 1 :].split(".")[0] == "0"
    weight = Weight(
        name,
        tuple(parameter.shape),
        parameter.element_size(),
        parameter.requires_grad,
        _place(plan, name, numbers),
        dim,
        model.get_submodule(module).weight.shape[0] // plan.head_dim if split == "kv" and dim is not None else 0,
        num_experts,
        _numbers(model.get_submodule(module), leaf, parameter),
    )
    return weight, is_first


def _numbers(module: nn.Module, leaf: str, parameter: nn.Parameter) -> int:
    """The parameters that one stands for: none that says how the others are packed."""
    packed = getattr(module, "weight", parameter)
    if packed.is_floating_point() or leaf in ("bias", *getattr(module, "added", ())):
        return parameter.numel()
    return int(module.in_features) * int(module.out_features) if leaf == "weight" else 0  # pyright: ignore[reportArgumentType]


def query_heads(model: Any) -> set[int]:
    """How many heads the model's attentions have: tensor ranks must divide each of these numbers."""
    patterns = [compile_pattern(pattern) for pattern, split in model.plan.tensor.items() if split == "query"]
    return {
        module.weight.shape[0] // model.plan.head_dim
        for name, module in model.named_modules()
        if any(pattern.fullmatch(name) for pattern in patterns)
    }


def seen_shapes(model: Any, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Of every parameter, the shape that one tensor rank computes with."""
    plan: Plan = model.plan
    splits = [(compile_pattern(pattern), split) for pattern, split in plan.tensor.items()]
    numbers = {name: number for number, name in enumerate(block_names(model))}
    return {
        name: _weight(model, plan, name, weight, numbers, splits)[0].seen_shape(layout)
        for name, weight in model.named_parameters(remove_duplicate=False)
    }


def _place(plan: Plan, name: str, numbers: dict[str, int]) -> int | EndPlacement:
    block = next((name[: name.index(".", len(group) + 1)] for group in plan.blocks if name.startswith(f"{group}.")), "")
    if block:
        return numbers[block]
    is_first, is_last = (any(name.startswith(f"{part}.") for part in end) for end in (plan.first, plan.last))
    if is_first or is_last:
        return "ends" if is_first and is_last else "first" if is_first else "last"
    return "everywhere"


def cut_stages(weights: Sequence[Weight], layout: Layout) -> list[StageWeights]:
    """What each pipeline rank holds, cut as parallel/pipeline.py does it.

    Raises: ConfigError when there are more stages than blocks.
    """
    blocks = _block_sizes(weights)
    if len(blocks) < layout.stages:
        raise ConfigError(f"parallel.pipe: {len(blocks)} blocks cannot be cut into {layout.stages} stages")
    head = sum(weight.whole_elements(_ONE) for weight in weights if weight.place in ("last", "ends"))
    bounds = cut_costs(blocks, layout.stages, head)
    return [_stage(weights, layout, bounds, rank) for rank in range(layout.pipe)]


def _stage(weights: Sequence[Weight], layout: Layout, bounds: Sequence[int], rank: int) -> StageWeights:
    numbers = range(rank, layout.stages, layout.pipe)
    blocks = tuple(block for number in numbers for block in range(bounds[number], bounds[number + 1]))
    has_first, has_last = 0 in numbers, layout.stages - 1 in numbers
    copies = {"everywhere": len(numbers), "first": has_first, "last": has_last, "ends": has_first or has_last}
    held = tuple(
        weight
        for weight in weights
        for _ in range(weight.place in blocks if isinstance(weight.place, int) else copies[weight.place])
    )
    return StageWeights(rank, held, blocks, has_first, has_last, len(numbers))


def _block_sizes(weights: Sequence[Weight]) -> list[int]:
    sizes: dict[int, int] = {}
    for weight in weights:
        if isinstance(weight.place, int):
            sizes[weight.place] = sizes.get(weight.place, 0) + weight.whole_elements(_ONE)
    return [sizes.get(number, 0) for number in range(max(sizes, default=-1) + 1)]  # a pruned block may have nothing
