"""One process at a time writes to the target of a command; a second one is told who does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cpm2_tiny import write_original

from hanlin.cli.main import main
from hanlin.core.files import written_alone

RECORD = json.dumps({"source": "今天天气", "target": ""}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["convert", "base", "out"], "out"),
        (["convert", "base", "out", "--to", "original", "--overwrite"], "out"),
        (["prepare", "--to", "bee", "rows.jsonl", "set/train"], "set"),
        (["prepare", "--from", "jsonl", "rows.jsonl", "out.jsonl"], "out.jsonl"),
        (["prepare", "--to", "indexed", "rows.jsonl", "corpus", "--vocab", "vocab"], "corpus"),
        (["generate", "--base", "base", "--record", RECORD, "--output", "out.jsonl"], "out.jsonl"),
    ],
)
def test_a_target_is_written_by_one_process_at_a_time(
    words: list[str], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_original(tmp_path).rename("base")
    Path("rows.jsonl").write_text(f"{RECORD}\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with written_alone(Path(target)):
        assert main(words) == 2
    assert f"{target}: is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_conversion_left_goes_with_the_next_one(tmp_path: Path) -> None:
    base = write_original(tmp_path)
    left = tmp_path / ".out.0123abcd.tmp" / "out"
    left.mkdir(parents=True)
    (tmp_path / ".out.lock").write_text("process 1 on nowhere since yesterday")
    assert main(["convert", str(base), str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([base.name, "out"])
