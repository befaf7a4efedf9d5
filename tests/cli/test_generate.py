"""`hanlin generate`: answers as they come, in order, gone on with after an end in the middle; bad rows are named."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from small_bee import write_base

from hanlin.cli._answers import in_order
from hanlin.cli.main import main

ASK = ["generate", "--base", "base", "generate.max_new_tokens=2", "generate.method=sample", "generate.batch_size=1"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", 30)
    return tmp_path


def write_rows(path: Path, count: int) -> None:
    """Longer and longer ones, so that the engine answers them in another order."""
    rows = [json.dumps({"input": "床前" * (number % 7 + 1), "id": str(number), "<ans>": ""}) for number in range(count)]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def answers(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_numbered_answers_are_put_in_order_as_soon_as_they_can() -> None:
    given = iter([(3, "d"), (1, "b"), (2, "c"), (4, "e")])
    came = in_order(given, [1, 2, 3, 4])
    assert next(came) == "b"
    assert list(given) == [(2, "c"), (4, "e")], "not more was read than needed"


def test_an_output_that_was_cut_off_is_gone_on_with(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, "--input", "rows.jsonl", "--output", "whole.jsonl"]) == 0
    assert [row["id"] for row in answers("whole.jsonl")] == [str(number) for number in range(30)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # as a full disk, in the middle of a line
    try:
        assert main([*ASK, "--input", "rows.jsonl", "--output", "parts.jsonl"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    there = (project / "parts.jsonl").read_bytes()
    assert len(there) == 1500
    assert not there.endswith(b"\n")
    for changed in (["generate.top_p=0.5"], ["run.seed=7"]):
        assert main([*ASK, "--input", "rows.jsonl", "--output", "parts.jsonl", *changed]) == 2
        assert "holds the first answers of a command with another input" in capsys.readouterr().err
    assert (project / "parts.jsonl").read_bytes() == there
    assert main([*ASK, "--input", "rows.jsonl", "--output", "parts.jsonl"]) == 0
    assert f"going on behind the {there.count(10)} answers" in capsys.readouterr().err
    assert (project / "parts.jsonl").read_bytes() == (project / "whole.jsonl").read_bytes()
    assert not list(project.glob(".*"))


def test_answers_of_another_adapter_file_are_not_gone_on_with(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "encoder.layers.0.self_att.self_attention.project_q.lora.lora_"
    command = [*ASK, "model.adapter=delta.pt", "--input", "rows.jsonl", "--output", "parts.jsonl"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for scale, more in ((0.5, 1500), (5.0, limits[0])):
        torch.save({f"{name}A": torch.ones(2, 8) * scale, f"{name}B": torch.ones(8, 2)}, project / "delta.pt")
        resource.setrlimit(resource.RLIMIT_FSIZE, (more, limits[1]))
        try:
            assert main(command) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "holds the first answers of a command with another input, model or settings" in capsys.readouterr().err


def test_bad_rows_are_named_and_can_be_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (project / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    lines[1], lines[2] = '{"input": ', '{"input": 3, "<ans>": ""}'
    (project / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main([*ASK, "--input", "rows.jsonl"]) == 2
    told = capsys.readouterr()
    assert "rows.jsonl:2: not JSON" in told.err
    assert "rows.jsonl:3: " in told.err
    assert told.out == ""
    assert main([*ASK, "--input", "rows.jsonl", "data.bad_rows=drop"]) == 0
    told = capsys.readouterr()
    assert "2 rows are left out" in told.err
    assert [json.loads(line)["id"] for line in told.out.splitlines()] == ["0", "3"]


def test_rows_of_training_are_told_that_they_are_no_records(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "rows.jsonl").write_text('{"上句": "床前", "下句": ""}\n', encoding="utf-8")
    transform = "data.transform={input: $上句, <ans>: $下句}"
    assert main([*ASK, "--input", "rows.jsonl", transform]) == 2
    told = capsys.readouterr().err
    assert 'rows.jsonl:1: no "<ans>"' in told
    assert "without data.transform" in told


def test_rows_without_answers_are_answered_in_their_own_form(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [{"instruction": "床前", "output": ""}, {"instruction": "明月", "input": "光", "id": 7}]
    (project / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given), encoding="utf-8")
    assert main([*ASK, "--input", "rows.jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{**row, "output": ""} for row in rows] == [{**row, "output": ""} for row in given]
    assert all(isinstance(row["output"], str) for row in rows)
    assert main([*ASK, "--record", '{"messages": [{"role": "user", "content": "床前"}]}']) == 0
    assert [turn["role"] for turn in json.loads(capsys.readouterr().out)["messages"]] == ["user", "assistant"]


def test_it_is_a_filter_in_a_pipe(project: Path) -> None:
    """A program that waits for each answer before it asks again gets them, also behind a bad line."""
    command = [sys.executable, "-m", "hanlin", *ASK, "generate.batch_size=8", "data.bad_rows=drop"]
    rows = (project / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        watch = threading.Timer(120, running.kill)  # else a lost answer would be waited for
        watch.start()
        for number in range(3):
            running.stdin.write(f"{rows[number]}\n{{bad\n".encode())
            running.stdin.flush()
            assert json.loads(running.stdout.readline())["id"] == str(number)
        running.stdin.close()
        assert running.stdout.read() == b""
        assert running.stderr.read().decode().count("left out: standard input:") == 3
        watch.cancel()
    assert running.returncode == 0


def test_streamed_texts_go_to_the_output(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = ["--base", "base", "generate.max_new_tokens=2", "--stream", "--input", "rows.jsonl"]
    write_rows(project / "rows.jsonl", 3)
    assert main(["generate", *stream]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 3
    assert main(["generate", *stream, "--output", "texts.txt"]) == 0
    assert capsys.readouterr().out == ""
    assert (project / "texts.txt").read_text(encoding="utf-8") == shown


def test_a_device_is_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.stat("/dev/null")
    assert main([*ASK, "--input", "rows.jsonl", "--output", "/dev/null"]) == 0
    assert os.path.samestat(os.stat("/dev/null"), before)
    assert not list(Path("/dev").glob(".null*"))
