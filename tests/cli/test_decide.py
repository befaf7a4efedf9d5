"""`hanlin decide` and `hanlin calibrate`, and the same in Python, with a small CPM-Bee on disk."""

from __future__ import annotations

import argparse
import csv
import json
import math
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from small_bee import write_base

import hanlin
from hanlin.api.recipes import recipe_of_base
from hanlin.cli.main import main
from hanlin.cli.serve import _service
from hanlin.evaluation.decisions.calibration import read_calibration
from hanlin.run.components import build_components
from hanlin.run.weights import load_engine
from hanlin.serve.limits import Limits

QUESTIONS = [
    {"type": "predicate", "name": "moon", "instructions": "明月"},
    {"type": "choice", "name": "where", "instructions": "地上", "choices": [{"value": "霜"}, {"value": "光"}]},
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS, ensure_ascii=False), "utf-8")
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return name


def own_rows(count: int) -> list[dict[str, Any]]:
    """Records as `hanlin evaluate` takes them."""
    options = {"<option_0>": "霜", "<option_1>": "光"}
    texts = ["床前" * (number % 5 + 1) for number in range(count)]
    return [{"input": text, "options": options, "<ans>": f"<option_{number % 2}>"} for number, text in enumerate(texts)]


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def test_rows_of_a_table_get_the_answers_that_python_gets() -> None:
    with Path("rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["id", "input"], *([number, "床前" * (number + 1)] for number in range(5))])
    command = ["decide", "--base", "base", "--input", "rows.csv", "--questions", "questions.json"]
    assert main([*command, "--output", "out.jsonl", "generate.batch_size=2"]) == 0
    model = hanlin.load("base")
    found = read("out.jsonl")
    assert [row["id"] for row in found] == list("01234")
    for row, answers in zip(found, model.decide([row["input"] for row in found], QUESTIONS), strict=True):
        assert row["decisions"][0]["probability"] == pytest.approx(answers[0]["probability"], abs=1e-6)
        assert row["decisions"][1]["choice"] == answers[1]["choice"]
        assert [one["name"] for one in row["decisions"]] == ["moon", "where"]
    single = model.decide(found[0]["input"], QUESTIONS[0])
    assert single["probability"] == pytest.approx(found[0]["decisions"][0]["probability"], abs=1e-6)


def test_records_with_options_are_decided_as_evaluate_decides_them(project: Path) -> None:
    rows = own_rows(6)
    write("rows.jsonl", rows)
    assert main(["decide", "--base", "base", "--input", "rows.jsonl", "--output", "out.jsonl"]) == 0
    recipe = {
        "model": {"family": "cpm_bee", "base": "base"},
        "data": {"eval": "rows.jsonl"},
        "evaluate": {"tasks": ["likelihood"]},
        "run": {"folder": "run"},
    }
    hanlin.evaluate(recipe, weights="base", quiet=True)
    scored = read("run/evaluation/predictions/likelihood.jsonl")
    for row, own, one in zip(read("out.jsonl"), rows, scored, strict=True):
        [answer] = row.pop("decisions")
        assert row == own
        assert answer["choice"] == one["answer"]
        assert [chance["value"] for chance in answer["probabilities"]] == list(one["scores"])
        assert sum(chance["probability"] for chance in answer["probabilities"]) == pytest.approx(1)


def test_rows_may_ask_questions_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"input": "床前", "questions": QUESTIONS[:1]}, {"input": "明月", "questions": QUESTIONS}]
    assert main(["decide", "--base", "base", "--input", write("rows.jsonl", rows)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["decisions"]) for row in found] == [1, 2]


def test_an_output_that_was_cut_off_is_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["decide", "--base", "base", "--input", write("rows.jsonl", own_rows(30)), "generate.batch_size=1"]
    assert main([*command, "--output", "whole.jsonl"]) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # as a full disk, in the middle of a line
    try:
        assert main([*command, "--output", "parts.jsonl"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    capsys.readouterr()
    assert main([*command, "--output", "parts.jsonl"]) == 0
    assert "going on behind the" in capsys.readouterr().err
    whole, parts = read("whole.jsonl"), read("parts.jsonl")
    assert [row["input"] for row in parts] == [row["input"] for row in whole]
    for one, other in zip(whole, parts, strict=True):
        assert one["decisions"][0]["confidence"] == pytest.approx(other["decisions"][0]["confidence"], abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"input": "床前"}], ["--question", '{"type": "predicate"}'], "questions.0.instructions: is missing"),
        ([{"input": "床前"}], ["--question", "{"], "--question: this is no JSON"),
        ([{"text": "床前"}], ["--questions", "questions.json"], 'no "input" (the row has: text)'),
        ([{"input": "床前", "questions": QUESTIONS}], ["--questions", "questions.json"], "keep one of them"),
        ([{"input": "床前", "<ans>": ""}], [], "it has no options to choose from"),
        ([{"input": 5, "questions": QUESTIONS}], [], "input: expected a text, or a list of messages"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_before_the_weights_are_read(
    rows: list[dict[str, Any]], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("base") / "pytorch_model.bin").unlink(missing_ok=True)
    assert main(["decide", "--base", "base", "--input", write("rows.jsonl", rows), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_calibration_lies_beside_the_weights_and_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    rows = write("rows.jsonl", own_rows(40))
    decide = ["decide", "--base", "base", "--input", rows, "--output"]
    assert main([*decide, "before.jsonl"]) == 0
    # The model is right far more often than it dares to say.
    right = [
        {**own, "<ans>": row["decisions"][0]["choice"]}
        for own, row in zip(own_rows(40), read("before.jsonl"), strict=True)
    ]
    write("rows.jsonl", own_rows(4) + right[4:])
    assert main(["calibrate", "--base", "base", "--input", rows]) == 0
    told = capsys.readouterr()
    assert all(word in told.out for word in ("accuracy", "negative log likelihood", "calibration error", "before"))
    found = read_calibration(Path("base/calibration.json"))
    assert found.trials == 40
    assert found.temperature < 1
    assert found.after.negative_log_likelihood < found.before.negative_log_likelihood
    assert found.data.files == ("rows.jsonl",)
    assert Path("base/calibration.png").read_bytes().startswith(b"\x89PNG")
    assert main([*decide, "after.jsonl"]) == 0
    assert f"calibrated on 40 questions, temperature {found.temperature:.3g}" in capsys.readouterr().err
    args = argparse.Namespace(base=Path("base"), words=[], family=None, vocab=None)
    components = build_components(recipe_of_base(Path("base"), []))
    engine = load_engine(components.recipe, components)
    service = _service("m", engine, [components], [], args, Limits())
    assert service.temperature == found.temperature
    assert "decisions: calibrated on 40" in capsys.readouterr().err
    model = hanlin.load("base")
    for one, other, row in zip(read("before.jsonl"), read("after.jsonl"), read("rows.jsonl"), strict=True):
        [before], [after] = one["decisions"], other["decisions"]
        assert after["choice"] == before["choice"]
        odds = [answer["probabilities"][0]["probability"] for answer in (before, after)]
        logits = [_logit(chance) for chance in odds]
        assert logits[1] == pytest.approx(logits[0] / found.temperature, abs=1e-4)
        assert model.decide(row)["confidence"] == pytest.approx(after["confidence"], abs=1e-6)


def _logit(chance: float) -> float:
    return math.log(chance / (1 - chance))


def test_a_calibration_of_other_weights_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    rows = write("rows.jsonl", own_rows(12))
    assert main(["calibrate", "--base", "base", "--input", rows]) == 0
    write_base(Path("other"), "床前明月光地")
    shutil.copy("base/calibration.json", "other/calibration.json")
    shutil.copytree("base", "moved")
    for name, words in {"other": "is of other weights or options, and not used", "moved": "calibrated on 12"}.items():
        capsys.readouterr()
        assert main(["decide", "--base", name, "--input", rows, "--output", f"{name}.jsonl"]) == 0
        assert words in capsys.readouterr().err


def test_calibrating_needs_the_right_answers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"input": "床前", "questions": QUESTIONS, "gold": [True, "霜"]}] * 5
    assert main(["calibrate", "--base", "base", "--input", write("rows.jsonl", rows)]) == 0
    rows[3] = {**rows[3], "gold": [True, "雪"]}
    assert main(["calibrate", "--base", "base", "--input", write("rows.jsonl", rows)]) == 2
    assert "'雪' is none of 霜, 光" in capsys.readouterr().err
    del rows[3]
    assert main(["calibrate", "--base", "base", "--input", write("rows.jsonl", rows)]) == 2
    assert "8 questions with a known answer are too few" in capsys.readouterr().err
    with pytest.raises(hanlin.DataError, match="expected the right answer to each of the 2 questions"):
        hanlin.load("base").calibrate([{"input": "床前", "questions": QUESTIONS}])
    found = hanlin.load("base").calibrate(own_rows(10))
    assert read_calibration(Path("base/calibration.json")) == found


def test_a_table_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rows = [{"input": "床前", "questions": QUESTIONS}] * 25
    assert main(["decide", "--base", "base", "--input", write("rows.jsonl", rows)]) == 0
    shown = capsys.readouterr().out
    assert "moon" in shown
    assert "... and 15 more rows" in shown


def test_the_example_rows_are_asked(project: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    rows, questions = str(examples / "complaints.jsonl"), str(examples / "complaint_questions.json")
    for command in (["calibrate"], ["decide", "--output", "out.jsonl"]):
        assert main([*command, "--base", "base", "--input", rows, "--questions", questions]) == 0
    assert [len(row["decisions"]) for row in read("out.jsonl")] == [3] * 10


def test_no_file_is_replaced_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    rows = write("rows.jsonl", [{"input": "床前"}])
    words = ["decide", "--base", "base", "--input", rows, "--questions", "questions.json", "--output"]
    notes = Path(write("notes.txt", [{"my": "notes"}]))
    for target in ("notes.txt", rows):
        before = Path(target).read_bytes()
        assert main([*words, target]) == 2
        assert "nothing is replaced unasked" in capsys.readouterr().err
        assert Path(target).read_bytes() == before
    assert main([*words, "notes.txt", "--overwrite"]) == 0
    assert "decisions" in json.loads(notes.read_text("utf-8"))
