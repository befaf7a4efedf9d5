"""MFU of whole runs on a card that is pretended: in metrics.jsonl, the log and the report, alike under every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from family_cases import Case, case_of
from ranks import run_ranks

from hanlin.cli.main import main
from hanlin.formats.load import save_base
from hanlin.recipe.reading import load_recipe
from hanlin.run.assemble import assemble
from hanlin.training.needed_flops import needed_flops
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.lora import LoraTuning

FP32_PEAK = 67e12
"""Of an H200, by core/cards.py."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of("cpm2", tmp_path_factory.mktemp("cpm2"))


@pytest.fixture
def write_recipe(case: Case, tmp_path: Path) -> Callable[..., Path]:
    """9 rows, one sample each, so that 3 steps are an epoch."""
    weights = {name: weight.float() for name, weight in case.model().named_parameters()}
    save_base(tmp_path / "base", case.family, case.config, weights, case.tokenizer)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in case.records * 3), "utf-8")

    def write(name: str, **parallel: Any) -> Path:
        recipe = {
            "model": {"family": "cpm2", "base": str(tmp_path / "base")},
            "data": {
                "train": str(tmp_path / "rows.jsonl"),
                "max_length": 64,
                "pack": False,
                "cache": str(tmp_path / "cache"),
            },
            "tuning": {"method": "lora", "rank": 2},
            "train": {"steps": 3, "batch_size": 3},
            "parallel": parallel,
            "run": {"folder": str(tmp_path / name), "device": "cpu", "threads": 1, "log_every": 1},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe), "utf-8")
        return path

    return write


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("hanlin.run.precision.device_memory", lambda device: (name, 2**37))


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def flops_of(step: dict[str, Any], devices: int = 1) -> float:
    """What the MFU of a line says that the step needed."""
    return step["mfu"] * (step["seconds"] + step["data_seconds"]) * FP32_PEAK * devices


def test_a_run_on_a_known_card_tells_its_mfu(
    write_recipe: Callable[..., Path], case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "NVIDIA H200")
    assert main(["train", str(write_recipe("run"))]) == 0
    needed = needed_flops(apply_tuning(case.empty(), LoraTuning(rank=2), case.family))
    epoch = 3 * sum(needed.of(case.processor.sample(record).extent) for record in case.records)
    assert sum(map(flops_of, steps_of(tmp_path / "run"))) == pytest.approx(epoch, rel=1e-3)  # mfu has four digits
    assert " mfu=0.0% " in (tmp_path / "run/log.txt").read_text("utf-8")
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert '<th data-zh="mfu 的中位数">median mfu</th>' in page
    assert '{"name": "mfu", "title": "MFU' in page


@pytest.mark.parametrize("card", ["a card of nobody", None])
def test_where_no_peak_is_known_there_is_no_mfu(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str | None
) -> None:
    if card is not None:
        pretend(monkeypatch, card)
    assert main(["train", str(write_recipe("run"))]) == 0
    assert not any("mfu" in step or "flops" in step for step in steps_of(tmp_path / "run"))
    assert "mfu" not in (tmp_path / "run/log.txt").read_text("utf-8")


def test_layouts_need_what_one_process_does(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "NVIDIA H200")
    alone = write_recipe("alone")
    assert main(["train", str(alone)]) == 0
    expected = [flops_of(step) for step in steps_of(tmp_path / "alone")]
    for name, layout in {
        "rows": {"data": 2, "shard": "parameters", "checkpoint_activations": "full"},
        "tensors": {"tensor": 2},
        "stages": {"pipe": 2},
    }.items():
        recipe = load_recipe(write_recipe(name, **layout), {})
        run_ranks(2, lambda recipe=recipe: assemble(recipe).train().end)
        found = [flops_of(step, devices=2) for step in steps_of(tmp_path / name)]
        assert found == pytest.approx(expected, rel=1e-3), name
