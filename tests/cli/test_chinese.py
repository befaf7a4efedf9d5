"""Who reads Chinese reads no English word in what commands print, but for names; and tables stand straight."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_bee import write_base

from hanlin.cli.main import main
from hanlin.core.terminal import width_of
from hanlin.diagnosis import examination
from hanlin.diagnosis.machine import machine_findings

RECIPE = """\
model: {family: cpm_bee, base: base}
data: {train: rows.jsonl, eval: rows.jsonl, max_length: 64, bad_rows: drop, overlong: drop}
train: {steps: 2, batch_size: 1, eval_every: 1, save_every: 1, warmup_steps: 0, precision: fp32}
evaluate: {tasks: [generate]}
generate: {max_new_tokens: 2}
run: {folder: run, log_every: 1}
"""
GRID = """\
folder: grid
recipes: {small: recipe.yaml}
methods: {full: {}}
seeds: [1]
score: generate.exact_match
"""
# Names of things: programs, files, formats, devices, settings and their values, metrics and what units are called.
NAMES = re.findall(
    r"\S+",
    """
hanlin python torch numpy safetensors pydantic matplotlib rich jieba pypinyin tensorboard wandb swanlab ahocorasick rs
GiB FLOP FlashAttention efficient math none full gradients parameters data tensor pipe recompute rank loss lr step
grad norm tokens eta exact match rouge bleu edit similarity records generate cpm bee Megatron sentencepiece tiktoken
input ans assistant user text jsonl base rows run fp adamw steps epochs JSON INFO WARNING cpu gloo Linux glibc
shard beam flash pad dropout True float inspect
converted seed small Python PyYAML max prompt response completion option sep unk mask root layout lines bfloat
""",
)
_KEPT = re.compile(r"""`[^`]*`|'[^']*'|"[^"]*"|⟪[^⟫]*⟫|\S*[/.=_]\S*|--[a-z-]+|\b[A-Z0-9]+-\d+\b""")
_WORD = re.compile(r"[A-Za-z][a-z]{2,}")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANLIN_LANG", "zh")
    monkeypatch.setenv("COLUMNS", "200")
    write_base(tmp_path / "base")
    rows = [{"input": "床前" * number, "<ans>": "明月"} for number in range(1, 8)]
    rows += [{"input": "床前"}, {"input": "光" * 80, "<ans>": "月"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    Path("answered.jsonl").write_text('{"input": "床前", "<ans>": "明月"}\n' * 3, "utf-8")
    Path("plain.jsonl").write_text('{"prompt": "床前", "response": "明月"}\n{"prompt": "床前"}\n', "utf-8")
    Path("recipe.yaml").write_text(RECIPE, "utf-8")
    Path("grid.yaml").write_text(GRID, "utf-8")


def english_of(told: str) -> set[str]:
    """English words that are no names."""
    return {word for word in _WORD.findall(_KEPT.sub(" ", told)) if word not in NAMES}


@pytest.mark.parametrize(
    "command",
    [
        "plan recipe.yaml data.max_length=64",
        "plan recipe.yaml --per-node 4 parallel.pipe=1 parallel.shard=parameters train.batch_size=8",
        "plan recipe.yaml --device T4-16 --serve --context 64",
        "inspect base base/vocab.txt rows.jsonl recipe.yaml . --values",
        "data show plain.jsonl",
        "data show recipe.yaml",
        "check recipe.yaml",
        "prepare recipe.yaml",
        "recipes copy cpm_bee_ccpm_lora copied.yaml",
        "init answered.jsonl --base base --output first.yaml",
        "convert base converted --dtype bf16",
        "compare grid.yaml --dry-run",
    ],
)
def test_what_a_command_prints_is_chinese(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(command.split())
    out, err = capsys.readouterr()
    assert re.search("[\u4e00-\u9fff]", out), out + err
    assert english_of(out + err) == set(), out + err


def test_the_lines_of_a_run_are_chinese_and_its_log_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe.yaml"]) == 0
    assert main(["evaluate", "recipe.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "训练结束" in err
    assert english_of(out + err) == set(), out + err
    log = Path("run/log.txt").read_text("utf-8")
    assert "training ended by=steps" in log
    assert not re.search("[\u4e00-\u9fff]", log)


def test_the_report_on_a_machine_is_chinese(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examination, "examine", lambda **_: machine_findings())
    main(["doctor"])
    out = capsys.readouterr().out
    assert english_of(out) == set(), out
    main(["doctor", "--json"])
    assert capsys.readouterr().out.isascii()  # what programs read is English


def test_tables_stand_straight(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "recipe.yaml"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "│┃"]
    assert lines
    ends = {}
    for line in lines:
        ends.setdefault(line.count(line[0]), set()).add(width_of(line))
    assert all(len(widths) == 1 for widths in ends.values()), "\n".join(lines)


def test_labels_of_facts_stand_straight(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "recipe.yaml"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert {width_of(re.match(r"  \S+\s+", line)[0]) for line in lines} == {15}  # type: ignore[index]
