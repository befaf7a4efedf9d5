"""Runs in a program: their results, and a process that is as before at their end."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hanlin
from hanlin.core.errors import ConfigError

LOGGER = logging.getLogger("hanlin")


def state() -> list[Any]:
    """What a library has to leave alone."""
    return [
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),  # pyright: ignore[reportCallIssue, reportArgumentType]
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        dict(os.environ),
        Path.cwd(),
        [LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)],
        threading.active_count(),
    ]


def test_a_run_is_trained_once_and_a_program_is_left_as_it_was(bee: dict[str, Any], tmp_path: Path) -> None:
    own, before = logging.NullHandler(), state()
    LOGGER.addHandler(own)
    before[7] = [LOGGER.level, LOGGER.propagate, [*LOGGER.handlers]]
    try:
        folder = {"run": {"folder": tmp_path / "run", "threads": 2}}
        result = hanlin.train(bee, {**folder, "train.steps": 4}, quiet=True)
        assert (result.folder, result.end, result.steps) == (tmp_path / "run", "steps", 4)
        assert result.best_step == 4
        assert result.weights == tmp_path / "run" / "best"
        assert hanlin.train(bee, {**folder, "train.steps": 4}, quiet=True) == result
        assert "there is nothing left to train" in (result.folder / "log.txt").read_text(encoding="utf-8")
        assert hanlin.evaluate(bee, folder, quiet=True)["loss"]["records"] == 8
        starts = [json.loads(line) for line in (result.folder / "starts.jsonl").read_text("utf-8").splitlines()]
        assert [start["machine"]["threads"] for start in starts] == [2, 2]
        assert {part: report["samples"] for part, report in starts[1]["data"].items()} == {"train": 8, "eval": 8}
        assert hanlin.load(result.folder).score("北京").tokens > 0
        assert state() == before
    finally:
        LOGGER.removeHandler(own)


def test_a_run_is_trained_in_a_thread_with_the_same_losses(bee: dict[str, Any], tmp_path: Path) -> None:
    results: list[hanlin.TrainResult] = []

    def train(name: str) -> None:
        results.append(hanlin.train(bee, {"run.folder": tmp_path / name, "train.steps": 4}, quiet=True))

    threads = [threading.Thread(target=train, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train("three")
    assert len({result.best_loss for result in results}) == 1
    assert [result.steps for result in results] == [4, 4, 4]


def test_lines_go_where_a_program_sends_its_own(
    bee: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    hanlin.train(bee, {"run.folder": tmp_path / "run", "train.steps": 1})
    assert "training ended by=steps step=1" in caplog.text
    assert "training ended" not in capsys.readouterr().err  # pytest's handlers have it
    caplog.clear()
    hanlin.train(bee, {"run.folder": tmp_path / "quiet", "train.steps": 1}, quiet=True)
    assert not [record for record in caplog.records if record.name.startswith("hanlin")]
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert "training ended by=steps step=1" in (tmp_path / "quiet" / "log.txt").read_text(encoding="utf-8")


def test_problems_are_listed_and_raised(bee: dict[str, Any], tmp_path: Path) -> None:
    assert hanlin.check(bee) == []
    wrong = {"train": {"lrr": 1, "steps": -1}, "run.folder": tmp_path}
    assert {problem.key for problem in hanlin.check(bee, wrong)} == {"train.lrr", "train.steps"}
    with pytest.raises(hanlin.ConfigError, match="recipe: 2 problems"):
        hanlin.train(bee, wrong)
    with pytest.raises(hanlin.ConfigError, match="there is no such recipe"):
        hanlin.check(tmp_path / "nowhere.yaml")


def test_a_run_goes_on_in_the_precision_that_it_began_with(bee: dict[str, Any], tmp_path: Path) -> None:
    folder = {"run.folder": tmp_path / "run"}
    hanlin.train(bee, {**folder, "train.steps": 1, "train.precision": "bf16"}, quiet=True)
    hanlin.train(bee, {**folder, "train.steps": 2}, quiet=True)
    assert hanlin.load_recipe(tmp_path / "run").train.precision == "bf16"
    with pytest.raises(hanlin.ConfigError, match=r"train\.precision: bf16 -> fp32"):
        hanlin.train(bee, {**folder, "train.steps": 3, "train.precision": "fp32"}, quiet=True)
    hanlin.train(bee, {"run.folder": tmp_path / "other", "train.steps": 1}, quiet=True)
    assert hanlin.load_recipe(tmp_path / "other").train.precision == "fp32"  # auto, on a CPU


def test_a_run_goes_on_with_another_optimizer(bee: dict[str, Any], tmp_path: Path) -> None:
    folder = {"run.folder": tmp_path / "run"}
    hanlin.train(bee, {**folder, "train.steps": 1}, quiet=True)
    other = {**folder, "train.steps": 2, "train.optimizer": "adafactor"}
    with pytest.raises(ConfigError, match=r"\(train\.optimizer\.name: adamw -> adafactor\).*--change"):
        hanlin.train(bee, other, quiet=True)
    assert hanlin.train(bee, other, quiet=True, start="change").steps == 2
    assert hanlin.train(bee, {**other, "train.steps": 3}, quiet=True).steps == 3


def test_a_setting_without_effect_is_no_other_one_when_a_run_goes_on_by_its_folder(
    bee: dict[str, Any], tmp_path: Path
) -> None:
    folder = {"run.folder": tmp_path / "run", "train.loss_scale": 64.0}
    hanlin.train(bee, {**folder, "train.steps": 1}, quiet=True)
    assert hanlin.train(tmp_path / "run", {"train.steps": 2}, quiet=True).steps == 2


def test_one_device_keeps_its_weights_in_memory_of_the_cpu(bee: dict[str, Any], tmp_path: Path) -> None:
    offload = {"parallel.shard": "parameters", "parallel.offload": True}
    losses = []
    for name, layout in (("plain", {}), ("offload", offload)):
        folder = {"run.folder": tmp_path / name, "train.precision": "bf16"}
        hanlin.train(bee, {**folder, **layout, "train.steps": 2}, quiet=True)
        losses.append(hanlin.train(bee, {**folder, **layout, "train.steps": 4}, quiet=True).best_loss)
        assert not torch.distributed.is_initialized()
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_data_are_prepared_and_reported(bee: dict[str, Any]) -> None:
    reports = hanlin.prepare(bee, quiet=True)
    assert list(reports) == ["train", "eval"]
    assert (reports["train"].samples, reports["train"].max_length) == (8, 64)


def test_what_the_system_refuses_is_told_in_our_words(bee: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.symlink_to(recipe)
    with pytest.raises(hanlin.HanlinError, match=r"recipe\.yaml"):
        hanlin.check(recipe)


def test_a_file_that_a_recipe_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    text = f"model: {{family: {tmp_path / 'own.py'}}}\nrun: {{folder: {tmp_path}}}\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    for call in (hanlin.check, hanlin.train, hanlin.prepare):
        found = []
        try:
            found = [problem.text for problem in call(tmp_path / "recipe.yaml") or ()]
        except hanlin.ConfigError as error:
            found = [str(error)]
        assert any("which is not run because a file names it" in text for text in found), call
    assert not (tmp_path / "ran").exists()
    hanlin.check({"model": {"family": str(tmp_path / "own.py")}, "run": {"folder": tmp_path}})  # the caller names it
    assert (tmp_path / "ran").exists()


def test_a_file_of_settings_that_a_recipe_names_is_not_run(tmp_path: Path) -> None:
    own, recipe = tmp_path / "own.py", tmp_path / "recipe.yaml"
    own.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    text = f"model: {{family: cpm1}}\nrun: {{folder: {tmp_path}}}\ntrain: {{optimizer: {{name: {own}}}}}\n"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(hanlin.ConfigError, match="which is not run because a file names it"):
        hanlin.load_recipe(recipe)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(hanlin.ConfigError, match="optimizer"):  # it holds none
        hanlin.load_recipe(recipe, trust_code=True)
    assert (tmp_path / "ran").exists()
