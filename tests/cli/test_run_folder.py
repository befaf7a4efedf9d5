"""A run's folder where another command takes it: what it has trained, and what it began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_bee import write_base

from hanlin.cli.main import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an adapter."""
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"input": "床前", "<ans>": "明月光"}, ensure_ascii=False) + "\n", "utf-8"
    )
    (tmp_path / "recipe.yaml").write_text(
        "model: {family: cpm_bee, base: base}\ndata: {train: rows.jsonl, max_length: 64}\ntuning: lora\n"
        "train: {steps: 1, batch_size: 1}\nrun: {folder: run}\n",
        encoding="utf-8",
    )
    assert main(["train", "recipe.yaml"]) == 0
    return tmp_path / "run"


def test_what_is_to_be_done_with_it_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["check", "recipe.yaml", "model.base=run"]) == 2
    assert "run is a run's folder; it has trained an adapter: name run/last in model.adapter" in capsys.readouterr().err
    assert main(["evaluate", "recipe.yaml", "--weights", "best", "data.eval=rows.jsonl"]) == 2
    assert "the run was not evaluated while it trained" in capsys.readouterr().err
    assert main(["init", "rows.jsonl", "--base", "run", "--output", "new.yaml"]) == 2
    assert "which holds an adapter that goes on its base; to train it further: --base base model.adapter=run/last" in (
        capsys.readouterr().err
    )
    # The base of an adapter is what its run began with.
    assert main(["convert", "run", "delta.pt", "--to", "delta"]) == 0
    assert main(["convert", "run", "same.pt", "--to", "delta", "--base", "base"]) == 0
    found, same = (torch.load(name, weights_only=True) for name in ("delta.pt", "same.pt"))
    assert found.keys() == same.keys()
    assert all(torch.equal(found[name], same[name]) for name in same)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text("utf-8").replace("base: base", "base: gone"), "utf-8"
    )
    assert main(["convert", "run", "other.pt", "--to", "delta"]) == 2
    assert "its run began with gone, which is not there" in capsys.readouterr().err
