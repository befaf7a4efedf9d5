"""`hanlin suite`, with a small CPM-Bee on disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from small_bee import write_base

from hanlin.cli import suite
from hanlin.cli.main import main
from hanlin.evaluation.suites.run import SUITES

LETTERS = "床前明月光举头ABCD以下是关于的单项选择题答案"


def test_the_command_knows_every_suite() -> None:
    assert tuple(SUITES) == suite._NAMES


def test_a_model_is_scored_on_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_base(tmp_path / "base", LETTERS)
    for part in ("dev", "test"):
        (tmp_path / part).mkdir()
        for subject in ("arts", "virology"):
            with (tmp_path / part / f"{subject}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([["", "Question", *"ABCD", "Answer"], [0, "床前", *"明月光举", "A"]])
    words = ["suite", "cmmlu", "--base", str(tmp_path / "base"), "--data", str(tmp_path),
             "--folder", str(tmp_path / "out"), "--shots", "1", "run.device=cpu"]  # fmt: skip
    assert main([*words, "--subjects", "arts, virology"]) == 0
    said = capsys.readouterr()
    assert all(one in said.out for one in ("arts 艺术学", "Humanities", "STEM", "mean of the subjects"))
    assert str(tmp_path / "out") in said.err
    metrics = json.loads((tmp_path / "out/metrics.json").read_text("utf-8"))
    assert metrics["cmmlu"].keys() == {"accuracy", "accuracy by question", "Humanities", "STEM"}
    before = (tmp_path / "out/predictions/arts.jsonl").read_bytes()
    several = [*words, "--subjects", "arts, virology", "--nproc", "2"]
    several[several.index(str(tmp_path / "out"))] = str(tmp_path / "several")
    assert main(several) == 0
    assert (tmp_path / "several/predictions/arts.jsonl").read_bytes() == before
    assert main([*words, "--subjects", "arts, virology", "generate.batch_size=1"]) == 0
    assert main([*words, "--subjects", "arts", "--limit", "1", "--prompt", "chat"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--subjects", "arts", "--overwrite"]) == 0
    with (tmp_path / "out/predictions/arts.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"id": "7", "ans')
    assert main([*words, "--subjects", "arts"]) == 2
    assert "arts.jsonl:2" in capsys.readouterr().err
    assert main(words) == 2
    assert "agronomy.csv" in capsys.readouterr().err
