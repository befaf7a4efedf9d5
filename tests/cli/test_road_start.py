"""docs/start.md as a reader follows it: its rows and recipe in files, its commands one by one, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tiny_folder import write_original

from hanlin.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/start.zh-CN.md"


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_every_command_of_the_first_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_original(tmp_path / "models/chatglm2-6b")
    [rows], [recipe] = _blocks("json"), _blocks("yaml")
    assert all(json.loads(row).keys() == {"instruction", "input", "output"} for row in rows.splitlines())
    (tmp_path / "train.jsonl").write_text(rows, "utf-8")
    (tmp_path / "eval.jsonl").write_text(rows, "utf-8")
    # The tiny model knows 256 positions, and writes what it likes.
    recipe = recipe.replace("max_length: 1024", "max_length: 256").replace("max_new_tokens: 256", "max_new_tokens: 8")
    (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    commands = [shlex.split(line, comments=True) for block in _blocks("sh") for line in block.splitlines()]
    called = " ".join(words[1] for words in commands if words[0] == "hanlin")
    assert called == "doctor data check plan train report evaluate generate serve convert convert"
    for words in commands:
        if words[0] == "hanlin" and words[1] not in ("doctor", "serve"):  # doctor takes its time; serve stays
            assert main(words[1:]) == 0, words
    out = capsys.readouterr().out
    assert "alpaca" in out.lower()
    assert (tmp_path / "runs/mine/best/adapter.safetensors").exists()
    assert json.loads((tmp_path / "runs/mine/evaluation/metrics.json").read_text("utf-8"))
    assert (tmp_path / "glm/config.json").exists()
