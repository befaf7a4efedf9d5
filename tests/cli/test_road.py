"""The whole road by commands, on tiny data: train, be killed, go on, score, answer, and original files in and out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from worlds import CASE, ROWS, write_rows

from hanlin.cli.main import main


def write_recipe(folder: Path, name: str, *, steps: int = 12, **changes: dict) -> Path:
    """A recipe on the golden checkpoint in the original's form, with its run in `folder/name`."""
    data = write_rows(folder / "rows.jsonl", ROWS * 3)
    recipe = {
        "model": {"family": "cpm_bee", "base": str(CASE), "vocab": str(CASE / "vocab.txt")},
        "data": {"train": str(data), "eval": str(data), "max_length": 64, "cache": str(folder / "cache")},
        "train": {"steps": steps, "batch_size": 2, "lr": 0.01, "eval_every": 4, "save_every": 2},
        "generate": {"method": "greedy", "max_new_tokens": 6},
        "evaluate": {"tasks": ["generate", "loss"], "limit": 4},
        "run": {"folder": str(folder / name), "seed": 3, "threads": 1},
    }
    for group, values in changes.items():
        recipe[group] = {**recipe.get(group, {}), **values}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_killed_run_goes_on_with_the_same_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(write_recipe(tmp_path, "whole", steps=60))]) == 0
    recipe = write_recipe(tmp_path, "killed", steps=60)
    process = subprocess.Popen(
        [sys.executable, "-m", "hanlin", "train", str(recipe)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # so that it does not come to its end meanwhile
    assert main(["train", str(recipe)]) == 2  # the same command once more, while it runs
    assert f"is in use by process {process.pid} on " in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses(tmp_path / "killed")) > 0
    assert main(["train", str(recipe)]) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "killed")) == 60


def test_trained_weights_are_scored_and_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe(tmp_path, "run", steps=60))
    assert main(["train", recipe]) == 0
    assert main(["evaluate", recipe, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["generate"]["exact_match"] == 1.0
    capsys.readouterr()
    assert main(["generate", recipe, "--record", json.dumps({**ROWS[0], "<ans>": ""})]) == 0
    assert json.loads(capsys.readouterr().out)["<ans>"] == ROWS[0]["<ans>"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_original_files_go_in_and_come_out(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe(tmp_path, "run", tuning={"method": method}))
    assert main(["train", recipe]) == 0
    best, base = str(tmp_path / "run" / "best"), str(CASE)
    question = json.dumps({**ROWS[1], "<ans>": ""})
    vocab = ["--vocab", str(CASE / "vocab.txt")]
    if method == "full":
        assert main(["convert", best, str(tmp_path / "out"), "--to", "original"]) == 0
        with_tuned = ["--base", str(tmp_path / "out"), *vocab]
        keys = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True).keys()
        assert keys == torch.load(CASE / "pytorch_model.bin", weights_only=True).keys()
    else:
        assert main(["convert", best, str(tmp_path / "delta.pt"), "--base", base, "--to", "delta"]) == 0
        with_tuned = ["--base", base, "--adapter", str(tmp_path / "delta.pt"), *vocab]
        assert main(["convert", base, str(tmp_path / "merged"), "--merge", best, *vocab]) == 0
    answers = [_answer([recipe], question, capsys), _answer(with_tuned, question, capsys)]
    if method == "lora":
        answers.append(_answer(["--base", str(tmp_path / "merged")], question, capsys))
    assert len(set(answers)) == 1


def _answer(model: list[str], record: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    settings = ["generate.method=greedy", "generate.max_new_tokens=6"]
    assert main(["generate", *model, "--record", record, *settings]) == 0
    return capsys.readouterr().out


def test_an_adapter_goes_on_only_on_its_own_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(CASE), str(tmp_path / "base"), "--vocab", str(CASE / "vocab.txt")]) == 0
    changes = {"model": {"base": str(tmp_path / "base")}, "tuning": {"method": "lora"}}
    assert main(["train", str(write_recipe(tmp_path, "run", steps=4, **changes))]) == 0
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "base" / "model.safetensors")
    assert main(["train", str(write_recipe(tmp_path, "run", steps=6, **changes))]) == 2
    assert "not as it was written: model.safetensors" in capsys.readouterr().err
    (tmp_path / "base" / "manifest.json").unlink()
    assert main(["train", str(write_recipe(tmp_path, "run", steps=6, **changes))]) == 2
    assert "model.base weights" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_goes_on_where_its_files_have_moved(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies there counts, not where."""
    assert main(["convert", str(CASE), str(tmp_path / "base"), "--vocab", str(CASE / "vocab.txt")]) == 0
    changes = {
        "model": {"base": str(tmp_path / "base"), "vocab": None},
        "tuning": {"method": method},
        "train": {"decay_steps": 20},
    }
    whole = write_recipe(tmp_path, "whole", steps=8, **changes)
    begun = write_recipe(tmp_path, "run", steps=4, **changes)
    assert main(["train", str(whole)]) == main(["train", str(begun)]) == 0
    (tmp_path / "else").mkdir()
    (tmp_path / "base").rename(tmp_path / "else/b")
    (tmp_path / "rows.jsonl").rename(tmp_path / "else/r.jsonl")
    moved = [
        f"model.base={tmp_path}/else/b",
        f"data.train={tmp_path}/else/r.jsonl",
        f"data.eval={tmp_path}/else/r.jsonl",
    ]
    command = ["train", str(begun), "train.steps=8", *moved]
    assert main(command) == 0
    assert "model.base: " in capsys.readouterr().err, "it is told"
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    weights = load_file(tmp_path / "else/b/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "else/b/model.safetensors")
    (tmp_path / "else/b/manifest.json").unlink()
    assert main(["train", str(begun), "train.steps=9", *moved]) == 2
    assert "model.base weights" in capsys.readouterr().err


def test_what_is_handed_on_may_be_written_in_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {dtype: write_recipe(tmp_path, dtype, steps=4, train={"save_dtype": dtype}) for dtype in ("fp32", "bf16")}
    for recipe in runs.values():
        assert main(["train", str(recipe)]) == 0
        assert main(["train", str(recipe), "train.steps=6"]) == 0, "the run goes on from fp32"
    assert losses(tmp_path / "fp32") == losses(tmp_path / "bf16")
    whole, half = (load_file(tmp_path / dtype / "last/model.safetensors") for dtype in runs)
    assert {str(tensor.dtype) for tensor in half.values()} == {"torch.bfloat16"}
    assert all(half[name].equal(tensor.bfloat16()) for name, tensor in whole.items())
    assert main(["evaluate", str(runs["bf16"])]) == 0
    capsys.readouterr()
    idle = write_recipe(tmp_path, "idle", tuning={"method": "lora"}, train={"save_dtype": "bf16"})
    assert main(["check", str(idle)]) == 2
    assert "train.save_dtype: has no effect with tuning.method lora" in capsys.readouterr().err


def test_bf16_weights_go_on_bitwise_and_are_written_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"weight_dtype": "bf16", "precision": "bf16", "optimizer": "adamw_8bit", "decay_steps": 9}
    whole, begun = (write_recipe(tmp_path, name, steps=4, train=train) for name in ("whole", "begun"))
    assert main(["train", str(whole), "train.steps=6"]) == main(["train", str(begun)]) == 0
    assert main(["train", str(begun), "train.steps=6"]) == 0
    assert losses(tmp_path / "begun") == losses(tmp_path / "whole")
    weights, others = (load_file(tmp_path / name / "last/model.safetensors") for name in ("whole", "begun"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(tensor.equal(others[name]) for name, tensor in weights.items())
    capsys.readouterr()
    assert main(["check", str(begun), "train.steps=7", "train.weight_dtype=fp32", "--change"]) == 2
    assert "other settings (train.weight_dtype: bf16 -> fp32" in capsys.readouterr().err
    for command in ("check", "train", "plan"):
        assert main([command, str(whole), "train.precision=fp32", f"run.folder={tmp_path}/new"]) == 2
        assert "train.weight_dtype: bf16 weights are trained in the arithmetic of bf16" in capsys.readouterr().err
    idle = write_recipe(tmp_path, "idle", tuning={"method": "lora"}, train=train)
    assert main(["check", str(idle)]) == 2
    assert "train.weight_dtype: has no effect with tuning.method lora" in capsys.readouterr().err
