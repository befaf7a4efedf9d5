from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.cli.main import main

RAW = {"target": "1", "input": "[翻译]月光[0]床前[1]明月光[答案]"}


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_raw_ccpm_becomes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_rows(tmp_path / "raw.jsonl", RAW, RAW), tmp_path / "data" / "train.jsonl"
    assert main(["prepare", "--from", "ccpm", str(source), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 2 rows\n"
    record = json.loads(target.read_text(encoding="utf-8").splitlines()[0])
    assert record["options"] == {"<option_0>": "床前", "<option_1>": "明月光"}
    assert record["<ans>"] == "<option_1>"


def test_the_binary_form_is_written_and_read_back(tmp_path: Path) -> None:
    source, binary, back = tmp_path / "a.jsonl", tmp_path / "bee" / "train", tmp_path / "b.jsonl"
    write_rows(source, {"input": "床", "<ans>": "月"}, {"input": "前", "<ans>": "光"})
    assert main(["prepare", "--to", "bee", str(source), str(binary)]) == 0
    assert main(["prepare", "--from", "bee", str(binary.parent), str(back)]) == 0
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "bee", "raw.jsonl", "out.jsonl"], "FOLDER/NAME"),
        (["--from", "bee", "raw.jsonl", "out"], "ends with .jsonl"),
        (["--from", "ccpm", "raw.jsonl"], "SOURCE and TARGET"),
        (["--from", "ccpm", "none.jsonl", "out.jsonl"], "there is no such file"),
        (["--from", "ccpm", "odd.jsonl", "out.jsonl"], "odd.jsonl:1: "),
    ],
)
def test_wrong_words_are_explained(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "raw.jsonl", RAW)
    write_rows(tmp_path / "odd.jsonl", {"a": 1})
    assert main(["prepare", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
