"""Each rank tries the kernels of attention by itself: ranks on which one does not work compute with the others all the
same, since nothing that ranks send each other depends on which it is.
"""

from __future__ import annotations

from typing import Any

import pytest
from layouts import Cell, alone, differences, train
from ranks import run_ranks
from torch import distributed

from hanlin.layers.attention_kernels import KernelScope

STEPS = 3
CELLS = [
    Cell("chatglm2", "prefix", "single", "parameters"),
    Cell("cpm1", "full", "packed", "sequence"),
    Cell("cpm1", "full", "packed", "pipe"),
    Cell("cpm_bee", "lora", "packed", "parameters"),
    Cell("cpm2", "full", "single", "tensor"),
]
"""The first families have flash attention of samples behind each other, the last ones attention pair by pair."""


def train_with_kernels_on_rank_0(cell: Cell) -> dict[str, Any]:
    used = []

    def takes(*_: Any) -> bool:
        used.append(1)
        return True

    if distributed.get_rank() == 0:
        KernelScope.takes_sequences = KernelScope.takes_pairs = takes  # pyright: ignore[reportAttributeAccessIssue]
    # Weights whose gradients are nothing but rounding (a bias of keys) move by it.
    return {**train(cell, cell.settings, STEPS), "weights": {}, "kernels": len(used)}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_ranks_need_not_have_the_same_kernels(cell: Cell) -> None:
    expected = {**alone(cell.variant, cell.method, cell.kind, STEPS), "weights": {}}
    found = run_ranks(2, train_with_kernels_on_rank_0, cell)
    assert found[0]["kernels"] >= STEPS
    assert found[1]["kernels"] == 0
    assert not list(differences(found, expected))
