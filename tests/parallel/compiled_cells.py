"""Every family x tuning x kind of rows with compiled blocks, against plain ones.

    python tests/parallel/compiled_cells.py                 all of them, by aot_eager: half an hour
    python tests/parallel/compiled_cells.py chatglm2 cpm1.lora      cells whose name begins so

A cell is right where loss and gradients of two batches are equal, every block was compiled as a whole (`fullgraph`),
and all blocks of a kind share their code.
"""

from __future__ import annotations

import copy
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    TESTS = Path(__file__).parents[1]
    folders = ("contract", "drills", "models/chatglm2", "models/cpm1", "models/cpm2")
    sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in folders)]
    import conftest  # noqa: F401  one thread, no devices

import torch
from layouts import VARIANTS, Cell, loader, model_of
from torch._dynamo.utils import counters

from hanlin.parallel.compiled import compile_block
from hanlin.parallel.layout_checks import compile_problems
from hanlin.parallel.recompute import recompute
from hanlin.recipe.settings import ParallelSettings

KINDS = ("packed", "single")


@dataclass(frozen=True)
class Compared:
    """difference: the greatest of losses and gradients, as a share; graphs: made; refused: lines in the log."""

    difference: float
    graphs: int
    refused: list[str]


def cell_named(name: str) -> Cell:
    return Cell(*name.split("."), layout="data")  # pyright: ignore[reportCallIssue]


def compare(cell: Cell, again: Any = "none", batches: int = 2) -> Compared:
    """again: how blocks are recomputed."""
    torch.compiler.reset()
    counters.clear()
    plain = model_of(cell).float().train()
    compiled = copy.deepcopy(plain)
    for blocks in compiled.plan.blocks:  # pyright: ignore
        for block in getattr(compiled, blocks).children():
            compile_block(block, "aot_eager")
            if again != "none":
                recompute(block, again)
    rows, refused = iter(loader(cell, 0, 1)), _Lines()
    logging.getLogger("hanlin.parallel.compiled").addHandler(refused)
    differences = [_difference(plain, compiled, next(rows)) for _ in range(batches)]
    logging.getLogger("hanlin.parallel.compiled").removeHandler(refused)
    return Compared(max(differences), counters["stats"]["unique_graphs"], refused.lines)


def _difference(plain: Any, compiled: Any, batch: Any) -> float:
    losses = []
    for model in (plain, compiled):
        model.zero_grad()
        torch.manual_seed(0)  # of dropout
        loss = model(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction="sum")
        loss.backward()
        losses.append(loss.item())
    pairs = zip(plain.parameters(), compiled.parameters(), strict=True)
    gaps = [
        ((one.grad - other.grad).abs().max() / one.grad.abs().max().clamp(min=1e-6)).item()
        for one, other in pairs
        if one.grad is not None
    ]
    return max(*gaps, abs(losses[0] - losses[1]) / abs(losses[0]))


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(words: list[str]) -> int:
    wrong = 0
    for name, variant in VARIANTS.items():
        for cell in (cell_named(f"{name}.{method}.{kind}") for method in variant.methods for kind in KINDS):
            is_asked = not words or cell.name.startswith(tuple(words))
            if is_asked and not list(compile_problems(model_of(cell), ParallelSettings())):
                found = compare(cell)
                is_right = found.difference < 1e-4 and not found.refused
                wrong += not is_right
                print("right" if is_right else "WRONG", cell.name, found, flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
