"""The same rows in every kind of file: the commands read them as JSON lines, and say what is wrong with one alike."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import KINDS, lines_of, write_kind
from small_bee import write_base

from hanlin.cli.main import main

ROWS = [{"input": "床前" * (number % 5 + 1), "<ans>": "明月光"[: number % 3 + 1]} for number in range(12)]
LINES = lines_of(ROWS)
"""The file that all others are compared with."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text(LINES, "utf-8")
    return tmp_path


def recipe(data: str, name: str) -> str:
    Path(f"{name}.yaml").write_text(
        f"model: {{family: cpm_bee, base: base}}\ndata: {{train: ['{data}'], eval: ['{data}'], cache: cache}}\n"
        "tuning: {method: lora, rank: 2, alpha: 4}\ntrain: {steps: 2, batch_size: 4}\n"
        f"run: {{folder: runs/{name}}}\n"
        "evaluate: {tasks: [loss]}\n",
        "utf-8",
    )
    return f"{name}.yaml"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_conversions_are_those_of_json_lines(kind: str, project: Path) -> None:
    path = str(write_kind(Path(), kind, ROWS))
    if kind not in ("folder", "pattern"):  # of these each file gets a place of its own
        assert main(["prepare", "--to", "jsonl", path, "back/back.jsonl"]) == 0
        assert Path("back/back.jsonl").read_text("utf-8") == LINES
    assert main(["check", recipe(path, "run")]) == 0
    ask = ["generate", "--base", "base", "generate.max_new_tokens=2"]
    for source, answers in (("rows.jsonl", "lines.out"), (path, "kind.out")):
        assert main([*ask, "--input", source, "--output", answers]) == 0
    assert Path("kind.out").read_bytes() == Path("lines.out").read_bytes()


def test_a_pattern_of_files_is_converted_file_by_file(project: Path) -> None:
    write_kind(project, "folder", ROWS)
    assert main(["prepare", "--to", "bee", "pieces/part-[02].jsonl", "sets"]) == 0
    assert sorted(path.name for path in Path("sets").iterdir()) == ["part-0", "part-2"]


def test_data_sets_by_weight_may_be_patterns_and_tables(project: Path) -> None:
    write_kind(project, "folder", ROWS)
    write_kind(project, "Parquet", ROWS)
    paths = {"a": "pieces/*.jsonl", "b": "rows.parquet"}
    sets = [{"task_name": name, "dataset_name": "x", "path": path} for name, path in paths.items()]
    Path("sets.json").write_text(json.dumps(sets), "utf-8")
    words = [recipe("rows.jsonl", "run"), "data.train=[]", "data.mixture=sets.json"]
    assert main(["check", *words]) == 0
    assert main(["train", *words]) == 0
    sets[0]["path"] = "pieces/*.csv"
    Path("sets.json").write_text(json.dumps(sets), "utf-8")
    assert main(["check", *words]) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("none/*.jsonl", "data.train: none/*.jsonl: nothing matches this pattern; there is no none"),
        ("x*.csv", "data.train: x*.csv: nothing matches this pattern; . has bad.csv"),
        ("notes", "notes: a folder without data files"),
        ("bad.csv", "bad.csv:3: 3 values, the first line names 2 columns"),
        ("bad.parquet", "bad.parquet: row 2: "),
    ],
)
def test_check_tells_what_training_would(data: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.csv").write_text("input,<ans>\n床,前\n床,前,月\n", "utf-8")
    pq.write_table(pa.Table.from_pylist([ROWS[0], {"input": "床"}]), "bad.parquet")
    Path("notes").mkdir()
    assert main(["check", recipe(data, "run")]) == 2
    assert said in capsys.readouterr().err
