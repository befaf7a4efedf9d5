"""A few steps of cells of the matrix of layouts (tests/drills/layouts.py), those that once hung, failed or differed."""

from __future__ import annotations

import pytest
from layouts import LAYOUTS, VARIANTS, Cell, cells, run_cell

STEPS = 3

# Lengths differ by rank and step in all of them.
EQUAL = (
    Cell("cpm2", "full", "packed", "interleaved-gradients"),
    Cell("cpm1_t5", "lora", "packed", "pipe-parameters"),
    Cell("cpm_bee", "full", "packed", "pipe-gradients"),
    # What a stage has gathered is let go on all data ranks, or on none.
    Cell("cpm2", "prompt", "packed", "pipe-gradients"),
    # Ties between tokens.
    Cell("cpm2-experts", "full", "packed", "tensor"),
    Cell("chatglm2-int4", "prefix", "single", "parameters"),
    Cell("cpm1", "prompt", "packed", "sequence"),
    # Dialogues of which every answer is learned: branches, which only some micro-batches and ranks have.
    Cell("chatglm2-turns", "lora", "packed", "sequence-sharded"),
    Cell("chatglm2-turns-int4", "prefix", "single", "pipe"),
    Cell("cpm_bee-nf4", "lora", "packed", "parameters"),
)
REFUSED = (
    Cell("chatglm2-int8", "lora", "packed", "tensor"),
    Cell("cpm1-nf4", "lora", "packed", "tensor"),
    Cell("cpm2", "full", "packed", "expert"),
)


@pytest.mark.parametrize("cell", EQUAL, ids=lambda cell: cell.name)
def test_many_steps_are_those_of_one_process(cell: Cell) -> None:
    assert run_cell(cell, STEPS) == ("equal", "")


@pytest.mark.parametrize("cell", REFUSED, ids=lambda cell: cell.name)
def test_check_and_training_refuse_with_the_same_words(cell: Cell) -> None:
    assert run_cell(cell, STEPS)[0] == "refused"


def test_the_matrix_has_a_cell_for_each_family_method_and_layout() -> None:
    assert len({cell.name for cell in cells()}) == 2 * len(LAYOUTS) * sum(len(one.methods) for one in VARIANTS.values())
