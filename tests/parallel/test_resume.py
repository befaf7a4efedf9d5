"""A run that stops under one layout goes on under another, with the losses, and to the model, of one that did not."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from sampled import sampled
from small_bee import write_vocab

from hanlin.formats.files import open_weights
from hanlin.recipe.reading import make_recipe
from hanlin.run.assemble import assemble

POEM = "床前明月光疑是地上霜举头望明月低头思故乡"
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "sharded": {"data": 2, "shard": "parameters"},
    "tensor": {"tensor": 2},
    "pipe": {"pipe": 2, "micro_batches": 2},
}
OFTEN = [("single", "sharded"), ("sharded", "tensor"), ("tensor", "pipe"), ("pipe", "single")]
"""Each layout is left for another one, and gone on under."""
ALL = {"data": 2, "tensor": 2, "pipe": 2, "shard": "parameters", "micro_batches": 2}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_vocab(folder / "vocab.txt", POEM)
    # Unlike options: each is a class for all rows of its batch.
    options = [{f"<option_{number}>": POEM[number] for number in range(2 + start % 3)} for start in range(15)]
    rows = [
        {"input": POEM[start : start + 3], "options": shown, "<ans>": f"<option_{start % 2}>{POEM[start + 3]}"}
        for start, shown in enumerate(options)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def train(
    project: Path, run: str, layout: dict[str, Any], steps: int, tuning: str = "full", **others: Any
) -> list[int]:
    """The exit codes of all ranks."""
    values = {
        "model": {"family": "cpm_bee", "size": "tiny", "config": {"num_layers": 2},
                  "vocab": str(project / "vocab.txt")},
        "data": {"train": str(project / "rows.jsonl"), "eval": str(project / "rows.jsonl"), "max_length": 48,
                 "cache": str(project / "cache")},
        "tuning": {"method": tuning},
        "train": {"steps": steps, "batch_size": 3, "lr": 1e-2, "schedule": "constant", "eval_every": 4, **others},
        "parallel": layout,
        "run": {"folder": str(project / run), "device": "cpu", "threads": 1},
    }  # fmt: skip
    recipe = make_recipe(values)
    world = layout.get("data", 1) * layout.get("tensor", 1) * layout.get("pipe", 1)
    return run_ranks(world, lambda: assemble(recipe).train().exit_code)


def losses(project: Path, run: str) -> list[float]:
    lines = (project / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.fixture(scope="module")
def alone(project: Path) -> list[float]:
    train(project, "alone", {}, 8)
    return losses(project, "alone")


@pytest.mark.parametrize(("first", "second"), sampled(list(product(LAYOUTS, LAYOUTS)), OFTEN))
def test_a_checkpoint_of_any_layout_goes_on_under_any_other(
    project: Path, alone: list[float], first: str, second: str
) -> None:
    run = f"{first} {second}"
    assert set(train(project, run, LAYOUTS[first], 4)) == {0}
    assert set(train(project, run, LAYOUTS[second], 8)) == {0}
    assert losses(project, run) == pytest.approx(alone, rel=1e-5)
    assert_same_weights(project / "alone" / "last", project / run / "last")


@pytest.mark.drill
def test_all_axes_at_once(project: Path, alone: list[float]) -> None:
    train(project, "all", ALL, 8)
    assert losses(project, "all") == pytest.approx(alone, rel=1e-5)
    assert_same_weights(project / "alone" / "last", project / "all" / "last")


@pytest.mark.parametrize("layout", sampled(["sharded", "tensor", "pipe"], ["sharded", "tensor"]))
def test_an_adapter_is_trained_and_written_alike(project: Path, layout: str) -> None:
    train(project, "lora", {}, 6, "lora")
    train(project, f"lora {layout}", LAYOUTS[layout], 4, "lora")
    train(project, f"lora {layout}", {}, 6, "lora")
    assert losses(project, f"lora {layout}") == pytest.approx(losses(project, "lora"), rel=1e-5)
    assert_same_weights(project / "lora" / "last", project / f"lora {layout}" / "last")


@pytest.mark.parametrize("layout", sampled(["single", "sharded", "tensor"], ["single", "sharded"]))
def test_a_checkpoint_written_in_the_background_is_the_same(project: Path, alone: list[float], layout: str) -> None:
    run = f"background {layout}"
    train(project, run, LAYOUTS[layout], 5, save_every=1, save_in_background=True)
    assert [path.name for path in sorted((project / run / "checkpoints").glob("0*"))] == ["000004", "000005"]
    train(project, run, {}, 8)
    assert losses(project, run) == pytest.approx(alone, rel=1e-5)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (open_weights(next(path.glob("*.safetensors"))) for path in (one, other))
    assert set(first) == set(second)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-4)
