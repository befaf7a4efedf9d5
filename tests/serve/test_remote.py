"""`hanlin chat --url` and `hanlin generate --url`: a running server answers."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanlin.cli.main import main
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.serve.limits import Limits
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]
ROWS = [{"input": text, "<ans>": ""} for text in ("床前", "明月光", "疑是", "地上霜", "床")]


@pytest.fixture
def bee(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("cpm_bee")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), "utf-8")
    return path


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_come_back_as_they_would_here(
    serve: Start, bee: Engine, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = serve(engine=bee, key="secret")
    output = questions.with_name("answers.jsonl")
    command = ["generate", "--url", url, "--input", str(questions), "generate.max_new_tokens=5"]
    assert main([*command, "--output", str(output)]) == 2
    assert "--api-key-env" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY", "secret")
        assert main([*command, "--output", str(output), "--api-key-env", "KEY"]) == 0
        expected = bee.generate(ROWS, GreedySettings(max_new_tokens=5))
        assert lines_of(output) == expected
        assert main([*command, "--api-key-env", "KEY", "--stream"]) == 0
        assert capsys.readouterr().out.splitlines()[: len(ROWS)] == [row["<ans>"] for row in expected]


def test_an_output_is_gone_on_with(
    serve: Start, bee: Engine, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, service = serve(engine=bee)
    whole, output = questions.with_name("whole.jsonl"), questions.with_name("answers.jsonl")
    command = ["generate", "--url", url, "--input", str(questions), "generate.max_new_tokens=5"]
    assert main([*command, "--output", str(whole)]) == 0
    bad = [*ROWS[:3], {"input": "<床", "<ans>": ""}, *ROWS[4:]]
    questions.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad), "utf-8")
    assert main([*command, "--output", str(output)]) == 2
    assert f"{questions}:4:" in capsys.readouterr().err
    assert lines_of(output) == lines_of(whole)[:3]
    asked = service.scheduler.counts.requests
    assert main([*command, "--output", str(output)]) == 2
    assert service.scheduler.counts.requests - asked <= 1  # what is there is not asked again
    assert "going on behind the 3 answers" in capsys.readouterr().err
    dropped = questions.with_name("dropped.jsonl")
    assert main([*command, "--output", str(dropped), "data.bad_rows=drop"]) == 0
    assert len(lines_of(dropped)) == len(ROWS) - 1
    assert main([*command, "--output", str(whole)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_lines_are_answered_as_they_come(
    serve: Start, bee: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = serve(Limits(rows=1), engine=bee)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["generate", "--url", url, "generate.max_new_tokens=2"]) == 0
    assert [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()] == [
        row["input"] for row in ROWS
    ]


def test_a_dialogue_is_led_over_http(
    serve: Start, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, service = serve()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("床前\n明月\nclear\n床前\n".encode())))
    assert main(["chat", "--url", f"{url}/v1", "generate.method=greedy", "generate.max_new_tokens=6"]) == 0
    first, second, third = capsys.readouterr().out.split("\n")[:3]
    processor, options = engine.processor, GreedySettings(max_new_tokens=6)
    asked = [{"role": "user", "content": "床前"}]
    expected = "".join(engine.stream({"messages": asked}, options))
    assert (first, third) == (expected, expected)
    answered = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "明月"}]
    assert second == "".join(engine.stream({"messages": answered}, options))
    assert processor.remembers
    assert service.scheduler.counts.requests == 3


def test_what_is_wrong_is_said_in_sentences(serve: Start, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = serve()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ask = ["--record", '{"prompt": "床"}']
    for wrong, expected in (
        (["--url", f"http://127.0.0.1:{port}", *ask], "is `hanlin serve` running there"),
        (["--url", "127.0.0.1:8000", *ask], "expected http://"),
        (["--url", url, *ask, "--model", "other"], "there is no model 'other'"),
        (["--url", url, *ask, "--base", "x"], "--base: says which model is loaded here"),
        (["--url", url, *ask, "runs/chat"], "with --url the server answers"),
        (["--url", url, *ask, "train.lr=1"], "train.lr: with --url only"),
        (["--url", url, *ask, "generate.top_p=much"], "expected a number"),
        (["--url", url, *ask, "--api-key-env", "NO_SUCH_KEY"], "the environment has no NO_SUCH_KEY"),
        (["--url", url, "--record", '{"prompt": 5}'], "--record:1:"),
        (["--url", url, "--record", "{"], "--record:1:"),
        (["--base", "x", "--model", "y", *ask], "--model: has an effect with --url only"),
    ):
        assert main(["generate", *wrong]) == 2, wrong
        assert expected in capsys.readouterr().err, wrong
