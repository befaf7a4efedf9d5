"""`hanlin init` of rows that give a text one of few labels: a family that fills blanks chooses among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_bee import LETTERS, write_base

import hanlin
from hanlin.cli.main import main
from hanlin.recipe.yaml12 import parse_yaml

TEXTS = ("床前明月", "明月光", "月光", "床前光") * 4
OPTIONS = {"<option_0>": "坏", "<option_1>": "好"}


def labelled(make: Callable[[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [make(text, number % 2) for number, text in enumerate(TEXTS)]


def recipe_of(rows: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    write_base(folder / "base", LETTERS + "好坏input12options")
    Path("rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert main(["init", "rows.jsonl", "--base", "base", *words]) == 0
    return parse_yaml(Path("recipe.yaml").read_text("utf-8"))[0]


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        (
            lambda text, at: {"id": f"{text}{at}", "text": text, "label": "坏好"[at]},
            {"input": "$text", "options": OPTIONS, "<ans>": "$label"},
        ),
        (
            lambda text, at: {"text1": text, "text2": text, "label": at},
            {
                "text1": "$text1",
                "text2": "$text2",
                "options": {"<option_0>": "0", "<option_1>": "1"},
                "<ans>": {"$join": ["$label"]},
            },
        ),
        (
            lambda text, at: {"input": text, "options": ["坏", "好"], "<ans>": "坏好"[at]},
            {"input": "$input", "options": OPTIONS, "<ans>": "$<ans>"},
        ),
        (
            lambda text, at: {"input": text, "options": ["坏", "好"], "answer": "坏好"[at]},
            {"input": "$input", "options": OPTIONS, "<ans>": "$answer"},
        ),
    ],
    ids=["text and label", "two texts", "list of options", "list of options and an answer"],
)
def test_labels_become_options(
    row: Callable[[str, int], dict[str, Any]],
    mapping: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = recipe_of(labelled(row), tmp_path, monkeypatch, "train.steps=1", "train.batch_size=2", "run.threads=1")
    assert json.dumps(found["data"]["transform"]) == json.dumps(mapping)  # their order is what the model sees
    assert found["evaluate"] == {"tasks": ["likelihood"]}
    hanlin.train("recipe.yaml")
    scores = hanlin.evaluate("recipe.yaml", {"evaluate.data": ["rows.jsonl"]})["likelihood"]
    assert (scores["records"], scores["chance"]) == (len(TEXTS), 0.5)
    assert 0 <= scores["accuracy"] <= 1


def test_rows_with_options_of_their_own_stay_and_are_scored_by_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled(lambda text, at: {"input": text, "options": OPTIONS, "<ans>": f"<option_{at}>"})
    found = recipe_of(rows, tmp_path, monkeypatch)
    assert "transform" not in found["data"]
    assert found["evaluate"] == {"tasks": ["likelihood"]}


@pytest.mark.parametrize(
    "row",
    [
        lambda text, at: {"text": text},
        lambda text, at: {"input": text, "<ans>": "坏好"[at]},
        lambda text, at: {"text": text, "label": f"{text}{at}", "number": at},
        lambda text, at: {"question": text, "answer": "坏好"[at]},
    ],
    ids=["a text", "an answer", "too many labels", "a question"],
)
def test_other_rows_are_read_as_before(
    row: Callable[[str, int], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**one, **({"label": f"{at}"} if "number" in one else {})} for at, one in enumerate(labelled(row))]
    found = recipe_of(rows, tmp_path, monkeypatch)
    assert "transform" not in found["data"]
    assert "evaluate" not in found


def test_what_is_decided_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = labelled(lambda text, at: {"text": text, "label": "坏好"[at]})
    found = recipe_of(rows, tmp_path, monkeypatch, "data.transform={input: $text, <ans>: $label}")
    assert found["data"]["transform"] == {"input": "$text", "<ans>": "$label"}
