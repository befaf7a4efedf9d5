"""Scores of several ranks are those of one process, to the last digit, also when they go on from a killed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from hanlin.evaluation.run import Metrics, evaluate
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.run.weights import load_engine

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
POEM = "床前明月光疑是地上霜举头望低思故乡"
TASKS = ("generate", "likelihood", "loss")
RECORDS = [
    {
        "input": POEM[start : start + 1 + start % 4],
        "options": {f"<option_{number}>": POEM[number] for number in range(2 + start % 3)},
        "<ans>": f"<option_{start % 2}>",
    }
    for start in range(11)
]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    words = [*MARKS, "<", "input", "options", *POEM]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "ffn_size": 24}
    model = {"family": "cpm_bee", "config": {**shape, "num_distance_buckets": 32, "num_relation_buckets": 64}}
    return make_recipe(
        {
            "model": {**model, "vocab": str(tmp_path / "vocab.txt")},
            "generate": {"method": "greedy", "max_new_tokens": 4, "batch_size": 2},
            "run": {"folder": str(tmp_path), "device": "cpu", "threads": 1},
        }
    )


def score(recipe: Recipe, folder: Path, world: int = 1, killed_after: int | None = None, **layout: int) -> Metrics:
    """The metrics that all ranks find; killed_after: batches of a rank before it dies."""
    placed = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=layout)})

    def work() -> Metrics | None:
        engine = load_engine(placed)
        if killed_after is None:
            return evaluate(engine, RECORDS, TASKS, recipe.generate, folder)
        compute, left = engine._answer_batch, [killed_after]

        def dying(*args: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return compute(*args)

        engine._answer_batch = dying  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(KeyboardInterrupt):
            evaluate(engine, RECORDS, TASKS, recipe.generate, folder)
        return None

    if world == 1:
        return work() or {}
    first, *others = run_ranks(world, work)
    assert all(other == first for other in others)
    return first or {}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("world", [2, 3])
def test_data_ranks_find_the_same_bytes(recipe: Recipe, tmp_path: Path, world: int) -> None:
    alone = score(recipe, tmp_path / "alone")
    assert score(recipe, tmp_path / "together", world) == alone
    assert files(tmp_path / "together") == files(tmp_path / "alone")


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"pipe": 2}])
def test_ranks_that_share_a_model_find_the_same_but_for_rounding(
    recipe: Recipe, tmp_path: Path, layout: dict[str, int]
) -> None:
    alone = score(recipe, tmp_path / "alone")
    sharded = score(recipe, tmp_path / "together", 2, **layout)
    for task in TASKS:
        assert sharded[task] == pytest.approx(alone[task], rel=1e-6)
    # The weights are known by the same fingerprint: nothing is scored again.
    keys = [[json.loads(line)["key"] for line in lines_of(tmp_path / run, "loss")] for run in ("alone", "together")]
    assert keys[0] == keys[1]


def lines_of(folder: Path, task: str) -> list[str]:
    return (folder / "predictions" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_a_killed_run_goes_on_with_another_number_of_ranks(
    recipe: Recipe, tmp_path: Path, first: int, then: int
) -> None:
    whole = score(recipe, tmp_path / "whole")
    small = recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"batch_size": 1})})
    score(small, tmp_path / "cut", first, killed_after=4)
    part = tmp_path / "cut" / "predictions" / "generate.jsonl.part"
    assert len(part.read_bytes().splitlines()) == 4 * first
    assert score(recipe, tmp_path / "cut", then) == whole
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
