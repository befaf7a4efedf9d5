"""What docs/accelerators.md says of memory is what the plan says today, in both languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sampled import sampled

from hanlin.planner.devices import find_device
from hanlin.planner.estimate import estimate
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.layout import layout_of
from hanlin.recipe.reading import make_recipe

DOCS = Path(__file__).parents[2] / "docs"
COMMON = {
    "train.steps": 1,
    "train.precision": "bf16",
    "train.batch_size": 1,
    "train.micro_batch_size": 1,
    "parallel.checkpoint_activations": "full",
}
LORA, PROMPTS = {"tuning.method": "lora"}, {"tuning.method": "prompt", "tuning.length": 100}
NF4, BF16 = {"model.quantise": "nf4"}, {"train.weight_dtype": "bf16"}
EIGHT_BIT, ADAFACTOR = {"train.optimizer": "adamw_8bit"}, {"train.optimizer": "adafactor"}
GLM, BEE, CPM2 = ("chatglm2", "6b"), ("cpm_bee", "10b"), ("cpm2", "11b")
OFFLOADED = {"parallel.shard": "parameters", "parallel.offload": True}
# By the optimizer: fp32 and bf16 weights, with 4 rows of 129 tokens.
FULL = [
    (
        GLM,
        129,
        {"train.optimizer": name, "train.weight_dtype": dtype, "train.batch_size": 4, "train.micro_batch_size": 4},
    )
    for name in ("adamw", "adamw_8bit", "adafactor", "muon")
    for dtype in ("fp32", "bf16")
]
ONE_CARD: list[tuple[tuple[str, str], int, dict[str, Any]]] = [
    (GLM, 2048, LORA),
    (GLM, 2048, LORA | NF4),
    (BEE, 1024, LORA),
    (BEE, 1024, LORA | NF4),
    (CPM2, 512, PROMPTS),
    (CPM2, 512, PROMPTS | NF4),
    (CPM2, 512, LORA | NF4),
    (GLM, 129, OFFLOADED),
    (BEE, 1024, EIGHT_BIT),
    (BEE, 1024, EIGHT_BIT | BF16),
    (BEE, 1024, ADAFACTOR | BF16),
]


def peak(model: tuple[str, str], length: int, changes: Mapping[str, Any]) -> str:
    """As the page has it, in GiB."""
    named = {"family": model[0], "size": model[1], "vocab": "vocab"}
    recipe = make_recipe({"model": named, "run": {"folder": "run"}}, {**COMMON, "data.max_length": length, **changes})
    job = PlannedModel(recipe, SequenceLengths(length), device=find_device("H200"))
    return f"{estimate(job, layout_of(recipe, 1)).peak / 2**30:.1f}"


LONG = [
    number for number, (model, _, changes) in enumerate(ONE_CARD) if model == CPM2 and changes.items() >= NF4.items()
]
"""Rows that take a quarter of a minute each, and have nothing that others have not."""


@cache
def planned(row: int) -> str:
    """For both pages: a figure of the table of single cards."""
    return peak(*ONE_CARD[row])


@cache
def planned_in_full() -> list[str]:
    return [peak(*row) for row in FULL]


def figures(page: str, begin: str, columns: slice) -> list[str]:
    """The figures of a table's columns; begin: of its first line."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    table = lines[lines.index(begin) + 2 :]
    rows = table[: next(place for place, line in enumerate(table) if not line.startswith("|"))]
    return [figure for row in rows for cell in row.split("|")[1:][columns] for figure in re.findall(r"\d+\.\d\b", cell)]


@pytest.mark.parametrize(
    ("page", "full", "one_card"),
    [
        (
            "accelerators.md",
            "| `train.optimizer` | bytes a weight | peak, fp32 weights | peak, bf16 weights | |",
            "| | peak | the least card |",
        ),
        (
            "accelerators.zh-CN.md",
            "| `train.optimizer` | 每个权重的字节数 | 峰值，fp32 权重 | 峰值，bf16 权重 | |",
            "| | 峰值 | 最小的卡 |",
        ),
    ],
)
@pytest.mark.parametrize("are_long", sampled([False, True], [False]))
def test_memory_is_documented_as_it_is_planned(page: str, full: str, one_card: str, are_long: bool) -> None:
    assert figures(page, full, slice(2, 4)) == planned_in_full()
    # The last row is of answers, which `plan --serve` plans.
    told = figures(page, one_card, slice(1, 2))[:-1]
    assert len(told) == len(ONE_CARD)
    rows = [row for row in range(len(told)) if (row in LONG) == are_long]
    assert [told[row] for row in rows] == [planned(row) for row in rows]
