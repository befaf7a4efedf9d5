"""Where a model may be cut and split: pure data that a model states and `parallel/` reads.

The contract of a model (docs/design.md): single-device code, blocks in an `nn.ModuleDict` keyed "0", "1", ...,
`forward(*state, **inputs)` that makes the state where the first part exists, runs the blocks that exist and
finishes where the last part exists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

TensorSplit = Literal["column", "query", "kv", "row", "vocab", "logits", "heads", "experts"]
"""How a module's weight is divided over tensor ranks.

column: by output rows; query: the same, by whole heads; kv: the same, where a head is shared by several ranks if there
are fewer heads than ranks; row: by input columns; vocab: by vocabulary rows of an embedding; logits: by vocabulary rows
of a head; heads: by the last dimension, which has one entry per head; experts: by expert.
"""

_BY_ROWS: dict[str, int | None] = {"weight": 0, "bias": 0}
_DIVIDED: dict[TensorSplit, dict[str, int | None]] = {
    "column": _BY_ROWS,
    "query": _BY_ROWS,
    "kv": _BY_ROWS,
    "row": {"weight": 1, "bias": None},
    "vocab": {"weight": 0},
    "logits": _BY_ROWS,
    "heads": {"weight": -1},
    "experts": {},
}
_NO_LINEARS: tuple[TensorSplit, ...] = ("vocab", "heads", "experts")


@dataclass(frozen=True)
class Along:
    """Which dimension of a parameter that tuning adds to a linear runs along its outputs, which along its inputs.

    None: none does. Tensor ranks divide the one that the linear's own weight is divided by.
    """

    outputs: int | None = None
    inputs: int | None = None


@dataclass(frozen=True)
class Plan:
    """What may be done to a model without asking it.

    first / last: module names that live on the first / last pipeline stage; blocks: the names of the `nn.ModuleDict`s
    of repeated blocks, in the order of the flow (an encoder-decoder has two); shared: small modules that every stage
    keeps; a module named in both first and last (an embedding that is the head as well) lives on both ends, with its
    gradients summed;
    tensor: module name pattern (`*` stands for a block's number) -> `TensorSplit`; head_dim: rows of a head in those of
    `query` and `kv`; whole: patterns of linears in `tensor` that read something else than the stream of hidden states
    (the cross attention's keys and values), which is never divided along the text; blocks that have them (a decoder's)
    have a stream of their own;
    added: how what tuning adds to linears is divided with them, by the last part of a parameter's name.
    """

    first: tuple[str, ...]
    blocks: tuple[str, ...]
    last: tuple[str, ...]
    tensor: dict[str, TensorSplit] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    head_dim: int = 1
    whole: tuple[str, ...] = ()
    added: Mapping[str, Along] = field(default_factory=dict)


def divided_dimensions(plan: Plan, split: TensorSplit) -> dict[str, int | None]:
    """Which dimension of a module's parameters its `TensorSplit` divides over tensor ranks.

    None: it is whole on every rank, and each rank computes a part of its gradient. A parameter that is not named is
    whole, and its gradient is the same on all ranks.
    """
    if split in _NO_LINEARS:
        return _DIVIDED[split]
    return _DIVIDED[split] | {
        name: along.inputs if split == "row" else along.outputs for name, along in plan.added.items()
    }


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """What matches the names of the modules that a pattern of a plan stands for."""
    return re.compile(re.escape(pattern).replace(r"\*", "[^.]+"))


class LanguageModel(Protocol):
    """What every model of ours, and every model of a user's, offers."""

    plan: Plan

    def __call__(self, *state: torch.Tensor, **inputs: Any) -> Any:
        """Logits `[batch, length, vocab]`; with `labels` and `weights` the summed weighted loss (a fp32 scalar), or
        with `reduction="none"` the loss of each position `[batch, length]`; on a stage without last part the state.

        `kv_cache` (a `layers.kv_cache.KVCache`) makes the call incremental; `logits_to_keep=n` returns the last n
        positions only.
        """
        ...

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a freshly made model has it."""
        ...
