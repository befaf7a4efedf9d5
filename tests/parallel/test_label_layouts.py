"""A head for labels under layouts against one process: every rank has the whole of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import LENGTH, ROWS, SHAPE, VOCAB, Case
from ranks import run_ranks
from sampled import sampled
from test_layouts import LAYOUTS, SEQUENCE, _compare, compute_all, world_of

from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.recipe.settings import ParallelSettings

# As many as the cases have tokens, so that any of their labels is one of these.
NAMES = tuple(f"label {number}" for number in range(VOCAB))


def make(kind: str) -> Callable[[], ChatGlm2]:
    config = ChatGlm2Config(**SHAPE, num_kv_heads=2, ffn_size=24, labels=NAMES, label_kind=kind)  # pyright: ignore
    return lambda: ChatGlm2(config)


def inputs(draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.randint(0, VOCAB, (ROWS, LENGTH), generator=draw),
        "targets": torch.rand(ROWS, LENGTH, VOCAB, generator=draw),
    }


CHOSEN = {name: LAYOUTS[name] for name in ("2x1x1 parameters", "1x2x1", "1x1x2")} | {
    "along the text": {**SEQUENCE["1x2x1"], "sequence_parallel": True}
}


METHODS = ("full", "lora", "prefix")
CELLS = [*(("number", name) for name in CHOSEN), ("one", "1x1x2")]
OFTEN = [(*cell, (METHODS[number % len(METHODS)],)) for number, cell in enumerate(CELLS)]
"""Each cell with one method by turns; with all of them in `make drill`."""


@pytest.mark.parametrize(("kind", "layout", "methods"), sampled([*OFTEN, *((*cell, METHODS) for cell in CELLS)], OFTEN))
def test_a_layout_changes_no_number_of_a_classifier(kind: str, layout: str, methods: tuple[str, ...]) -> None:
    case, settings = Case(make(kind), inputs, ("query", "value")), ParallelSettings(**CHOSEN[layout])
    sharded = run_ranks(world_of(settings), compute_all, case, methods, settings, torch.float64)
    expected = compute_all(case, methods, ParallelSettings(), torch.float64)
    for method in methods:
        assert {"head.label_weight", "head.label_bias"} < set(expected[method]["gradients"])
        _compare(expected[method], [results[method] for results in sharded], 1e-12)
