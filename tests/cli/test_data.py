"""`hanlin data show`: the form of a file, its rows as the model sees them, what would be cut, left out or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import write_rows
from tiny_folder import write_original

from hanlin.cli.main import main

ROUNDS = [
    {"from": "human", "value": "你好"},
    {"from": "gpt", "value": "世界"},
    {"from": "human", "value": "黑色"},
    {"from": "gpt", "value": "简单"},
]
LONG = [{"from": "human", "value": "你好" * 60}, {"from": "gpt", "value": "世界"}]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("show") / "original")


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = {"conversations": ROUNDS[:1]}
    write_rows(tmp_path / "rows.jsonl", [{"conversations": ROUNDS, "id": 1}, odd, {"conversations": LONG}])


def test_a_file_alone_is_told_by_its_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "rows.jsonl", "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "ShareGPT (told from conversations)" in shown
    assert "conversations, id (in 1)" in shown
    assert 'note      1 rows: key "id" is not read' in shown
    assert "rows.jsonl:2: no answer to learn" in shown
    assert "user: 你好\nassistant: ⟪世界⟫\nuser: 黑色\nassistant: ⟪简单⟫\n" in shown
    assert "longest   rows.jsonl:3: 122 characters" in shown
    assert "2. rows.jsonl" not in shown


def test_what_is_wrong_with_rows_is_said_in_the_users_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANLIN_LANG", "zh")
    assert main(["data", "show", "rows.jsonl", "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "训练遇到它们会停止" in shown
    assert "rows.jsonl:2: 没有" in shown


def test_with_a_model_the_samples_are_those_that_it_sees(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "show", "rows.jsonl", "--base", str(original), "data.max_length=60", "data.bad_rows=drop"]
    assert main([*words, "data.overlong=drop"]) == 0
    shown = capsys.readouterr().out
    first = "[gMASK]sop[Round 1]\n\n问：你好\n\n答：⟪世界</s>⟫世界\n\n[Round 2]\n\n问：黑色\n\n答：⟪简单</s>⟫"
    assert first.replace(" ", "") in shown.replace(" ", "")
    assert "rows dropped" in shown
    assert "too long" in shown
    assert main([*words, "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert told["unit"] == "tokens"
    assert told["num_rows"] == 3
    assert [where for where, _ in told["bad"]] == ["rows.jsonl:3"]
    assert told["first"][0]["learned"] == 2 * 2 + 2
    assert told["longest"] == ["rows.jsonl:1", told["sizes"]["max"]]


def test_a_recipe_shows_all_its_files(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "eval.jsonl", [{"prompt": "你好", "response": "世界"}])
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{family: chatglm2, base: {original}}}\nrun: {{folder: run}}\n"
        "data: {train: rows.jsonl, eval: eval.jsonl, max_length: 60}\n",
        encoding="utf-8",
    )
    assert main(["data", "show", "recipe.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in told] == ["rows.jsonl", "eval.jsonl"]
    assert [one["read_as"] for one in told] == ["ShareGPT (told from conversations)", "the model's own records"]


def test_preferences_and_unknown_rows_are_shown_too(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "你好", "chosen": "世界", "rejected": "黑色"}])
    assert main(["data", "show", "pairs.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "preference rows" in shown
    assert "user: 你好\nassistant: ⟪世界⟫\nrejected assistant: 黑色" in shown
    assert main(["data", "show", "pairs.jsonl", "--base", str(original)]) == 0
    shown = capsys.readouterr().out
    assert "chosen: [gMASK]sop[Round 1]" in shown
    assert "⟪世界</s>⟫\nrejected: [gMASK]sop" in shown
    write_rows(tmp_path / "own.jsonl", [{"input": "你好", "<ans>": "世界"}])
    assert main(["data", "show", "own.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "no form that is known: say which columns" in shown
    assert "input: 你好\n<ans>: 世界" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.jsonl"], "there is no such file"),
        (["rows.jsonl", "train.lr=1"], "only settings of data"),
        (["rows.jsonl", "--vocab", "v.txt"], "say whose it is"),
        (["rows.jsonl", "-n", "-1"], "expected numbers of rows"),
    ],
)
def test_what_cannot_be_shown_is_said(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_format_that_no_row_has_makes_bad_rows_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "rows.jsonl", "data.format=text"]) == 0
    shown = capsys.readouterr().out
    assert "plain text (as data.format says)" in shown
    assert "bad rows  3 of 3" in shown


def test_rows_that_cannot_be_read_are_not_taken_for_rows_of_no_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gbk.jsonl").write_bytes('{"prompt": "你好", "response": "世界"}\n'.encode("gbk"))
    assert main(["data", "show", "gbk.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "no form that is known" not in shown
    assert "no row can be read" in shown
    assert "it reads as GB18030" in shown
