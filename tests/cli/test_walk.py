"""Who reads Chinese goes from rows of their own to a model that answers, and reads no English (docs/start.zh-CN.md)."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_bee import write_base
from test_chinese import english_of

from hanlin.cli.main import main

PAIRS = [("明天没空，不去了", "明日另有安排，恕不能出席。"), ("这事我不管", "此事不在我的职责范围内。")]
NAMES = {"instruction", "output", "label", "alpaca", "auto", "out"}
CHARACTERS = "".join(sorted({character for pair in PAIRS for text in pair for character in text}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows as they come: JSON lines, a table saved as GBK, and some with mistakes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANLIN_LANG", "zh")
    monkeypatch.setenv("COLUMNS", "200")
    write_base(tmp_path / "base", CHARACTERS)
    rows = [{"instruction": one, "output": other} for one, other in PAIRS]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    Path("train.jsonl").write_text("\n".join(lines * 10) + "\n", "utf-8")
    Path("eval.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    Path("bad.jsonl").write_text("\n".join([lines[0], lines[1][:-3], '{"instruction": ""}', "[]"]) + "\n", "utf-8")
    Path("labels.jsonl").write_text('{"text": "不错", "label": "正面"}\n' * 3, "utf-8")
    table = "问题,答案\r\n" + "".join(f"{one},{other}\r\n" for one, other in PAIRS)
    Path("table.csv").write_bytes(table.encode("gbk"))
    return tmp_path


def test_the_walk_is_in_chinese(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = json.dumps({"instruction": PAIRS[0][0]}, ensure_ascii=False)
    settings = (
        "data.eval=eval.jsonl evaluate.tasks=[generate] generate.max_new_tokens=2 train.epochs=1 train.save_every=5"
    )
    english: set[tuple[str, str]] = set()
    for line in (
        "data show train.jsonl",
        "data show table.csv -n 1",
        "data show bad.jsonl --base base",
        "data show labels.jsonl",
        "init train.jsonl --base base",
        "init labels.jsonl --base base --output labels.yaml",
        f"check recipe.yaml {settings}",
        f"plan recipe.yaml {settings}",
        f"train recipe.yaml {settings}",
        "evaluate runs/train",
        "report runs/train",
        "convert runs/train out",
        "inspect runs/train out",
        f"generate runs/train --record {shlex.quote(asked)}",
        "train recipe.yaml data.train=table.csv train.epochs=1 run.folder=runs/table",
    ):
        assert main(shlex.split(line)) == 0, capsys.readouterr()
        out, err = capsys.readouterr()
        english |= {(line, word) for word in english_of(out + err) - NAMES}
    assert english == set()
    remarks = re.findall(r"(?m)# ([^#\n]+)$", Path("recipe.yaml").read_text("utf-8"))[1:]
    assert len(remarks) > 5
    assert english_of("\n".join(remarks)) - NAMES == set()
    assert re.search('# 3 行：键 "label" 不会被读取', Path("labels.yaml").read_text("utf-8"))


def test_warnings_are_in_chinese_where_there_is_no_log(folder: Path) -> None:
    command = [sys.executable, "-m", "hanlin", "data", "show", "table.csv"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert told == "table.csv：不是 UTF-8，按 GB18030（GBK）读取；如果不对，请把文件另存为 UTF-8\n"


def test_what_stops_the_walk_says_why_in_chinese(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "train.jsonl", "--base", "base"]) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for line, told in (
            ("check recipe.yaml data.train=bad.jsonl", "bad.jsonl:2"),
            ("train recipe.yaml data.train=bad.jsonl", "bad.jsonl:4"),
            ("train recipe.yaml train.lr=fast", "train.lr"),
            ("train recipe.yaml data.train=none.jsonl", "none.jsonl"),
            ("evaluate runs/none", "runs/none"),
            ("init train.jsonl --output second.yaml", "--base"),
            (f"serve --base base --port {taken.getsockname()[1]}", "端口已被占用"),
            ("report runs/none", "runs/none"),
        ):
            capsys.readouterr()
            assert main(shlex.split(line)) == 2, line
            out, err = capsys.readouterr()
            assert told in err
            assert english_of(out + err) - NAMES == set(), (line, err)
