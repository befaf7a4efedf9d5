"""No command works for half a minute without a word, by a clock that goes on by ten seconds at each look."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from small_bee import write_base

from hanlin.cli.main import main
from hanlin.core import progress
from hanlin.training import run_logger

RECIPE = """\
model: {family: cpm_bee, base: base}
data: {train: rows.jsonl, eval: rows.jsonl, max_length: 64}
train: {steps: 8, batch_size: 1, eval_every: 8, warmup_steps: 0, precision: fp32}
evaluate: {tasks: [generate]}
generate: {max_new_tokens: 1, batch_size: 1}
run: {folder: run, log_every: 1000}
"""


class FastClock:
    now: ClassVar = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    Path("rows.jsonl").write_text('{"input": "床前", "<ans>": "明月"}\n' * 12, "utf-8")
    Path("recipe.yaml").write_text(RECIPE, "utf-8")
    monkeypatch.setattr(progress, "time", FastClock())
    monkeypatch.setattr(run_logger, "time", FastClock())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("convert base out --dtype bf16", "Converting weights: "),
        ("prepare recipe.yaml data.cache=cache", "Encoding: "),
        ("inspect base --values", "Looking at the weights: "),
        ("train recipe.yaml", "step=3/8 "),  # although log_every says otherwise
        ("train recipe.yaml", "Evaluating: "),
        ("evaluate recipe.yaml --weights base", "Hashing the weights: under way"),
        ("evaluate recipe.yaml --weights base", "generate: "),
    ],
)
def test_long_work_is_told(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    assert told in capsys.readouterr().err
