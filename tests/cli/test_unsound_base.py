"""A base that holds something else than numbers, or nothing: found by `check`, before anything is prepared or made."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from hanlin.cli.main import main
from hanlin.formats import load
from hanlin.formats.files import write_safetensors
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee

SPECIALS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
SMALL = CpmBeeConfig(vocab_size=17, hidden_size=16, num_layers=1, num_heads=2, head_dim=8, ffn_size=24)
RECIPE = """\
model: {family: cpm_bee, base: base}
tuning: {method: lora, rank: 2}
data: {train: [rows.jsonl], cache: cache}
train: {steps: 1, batch_size: 2}
evaluate: {data: [rows.jsonl], tasks: [loss]}
run: {folder: run}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"input": "床前", "<ans>": "明月光"}\n' * 3)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"family": "cpm_bee", **asdict(SMALL)}))
    (tmp_path / "base" / "vocab.txt").write_text("\n".join([*SPECIALS, "<", *"床前明月光"]) + "\n")
    return tmp_path


def write_base(value: float, *, whole: bool = False) -> str:
    """A base with a number that is none, or a whole tensor of it; the name of the tensor."""
    torch.manual_seed(0)
    weights = {name: torch.randn(weight.shape) / 10 for name, weight in CpmBee(SMALL).named_parameters()}
    name = next(name for name in weights if "ffn" in name and weights[name].dim() > 1)
    weights[name].view(-1)[slice(None) if whole else slice(3, 4)] = value
    write_safetensors(Path("base") / "model.safetensors", weights)
    return name


@pytest.mark.parametrize(
    ("value", "changes", "told"),
    [
        (float("nan"), [], "1 NaN, 0 inf"),
        (float("-inf"), [], "0 NaN, 1 inf"),
        (float("nan"), ["tuning=full"], "1 NaN, 0 inf"),
        (7e4, ["train.precision=fp16"], r"numbers up to 7e+04, which float16 cannot hold"),
    ],
)
def test_check_train_and_evaluate_refuse_it_before_anything_is_made(
    value: float, changes: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_base(value)
    for command in (["check", "recipe.yaml"], ["train", "recipe.yaml"], ["evaluate", "recipe.yaml", "--weights=base"]):
        assert main([*command, *changes]) == 2
        said = capsys.readouterr().err
        assert "model.base" in said
        assert name in said
        assert told in said
    assert not Path("run").exists()
    assert not Path("cache").exists()


def test_what_training_can_hold_is_not_refused() -> None:
    write_base(7e4)
    assert main(["check", "recipe.yaml", "train.precision=bf16"]) == 0
    assert main(["check", "recipe.yaml", "train.precision=fp16", "tuning=full"]) == 0  # which keeps them in fp32


@pytest.mark.parametrize("command", ["check", "train", "generate"])
def test_a_tensor_of_zeros_is_told_once_by_each_command(
    command: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_base(0, whole=True)
    words = ["--weights=base", "--record", '{"input": "床前", "<ans>": ""}'] if command == "generate" else []
    assert main([command, "recipe.yaml", *words]) == 0
    told = f"1 of 12 tensors hold nothing but zeros ({name})"
    assert (capsys.readouterr().err if command == "train" else caplog.text).count(told) == 1


def test_a_large_base_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    real = load.count_values
    monkeypatch.setattr(load, "count_values", lambda tensors: counted.append(1) or real(tensors))
    monkeypatch.setattr(load, "MIN_REMEMBERED_BYTES", 1)
    write_base(float("nan"))
    now = os.stat("base/model.safetensors").st_ctime_ns
    monkeypatch.setattr("hanlin.core.remembered.time.time_ns", lambda: now + 3_000_000_000)
    assert [main(["check", "recipe.yaml"]) for _ in range(3)] == [2, 2, 2]
    assert len(counted) == 1
    write_base(0.5)
    assert main(["check", "recipe.yaml"]) == 0
    assert len(counted) > 1
