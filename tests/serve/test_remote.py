"""`hanlin chat --url` and `hanlin generate --url`: a running server answers."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hanlin.cli import _http, _remote
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
    # What is there is not asked again; the row behind the bad one may have been, by either command.
    assert service.scheduler.counts.requests - asked < 3
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


class Other(BaseHTTPRequestHandler):
    """A server that is none of ours; what it was asked is noted."""

    asked: ClassVar[list[tuple[str, str | None]]] = []
    location = ""

    def do_POST(self) -> None:
        self.asked.append((self.path, self.headers["authorization"]))
        self.send_response(307 if self.location else 404)
        self.send_header("location", self.location)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def other() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    Other.asked.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_gets_the_key(
    other: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Other, "location", f"http://localhost:{other.rpartition(':')[2]}/elsewhere")
    monkeypatch.setattr(Other, "send_response", lambda self, _: BaseHTTPRequestHandler.send_response(self, status))
    monkeypatch.setenv("KEY", "secret")
    ask = ["--url", f"http://{other}", "--record", "{}", "--api-key-env", "KEY"]
    assert main(["generate", *ask]) == 2
    assert "leads on to http://localhost" in capsys.readouterr().err
    assert Other.asked == [("/v1/chat/completions", "Bearer secret")]


def test_this_machine_is_asked_without_a_proxy_and_others_through_theirs(
    serve: Start, other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = serve()
    monkeypatch.setenv("http_proxy", f"http://{other}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["generate", "--url", url, "--record", '{"prompt": "床"}', "generate.max_new_tokens=2"]) == 0
    assert main(["generate", "--url", url.replace("127.0.0.1", "localhost"), "--record", '{"prompt": "床"}']) == 0
    assert Other.asked == []
    assert main(["generate", "--url", "http://model.example:8000", "--record", "{}"]) == 2
    assert Other.asked == [("http://model.example:8000/v1/chat/completions", None)]
    assert "without a reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", "no answer began within 0.2 seconds"),
        (b"HTTP/1.1 200 OK\r\n\r\n: waiting\n\n", "not a byte came for 0.2 seconds"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\n\n", "the answer has no record"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "no"}}\n\n', ": no\n"),
    ],
)
def test_who_is_silent_is_not_waited_for(
    said: bytes, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (_http, _remote):
        monkeypatch.setattr(module, "QUIET_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def speak() -> None:
            connection, _ = silent.accept()
            connection.recv(1 << 16)
            connection.sendall(said)
            open_connections.append(connection)

        open_connections: list[socket.socket] = []
        threading.Thread(target=speak, daemon=True).start()
        port = silent.getsockname()[1]
        assert main(["generate", "--url", f"http://127.0.0.1:{port}", "--record", "{}"]) == 2
    assert expected in capsys.readouterr().err
    for connection in open_connections:
        connection.close()


def test_a_server_that_is_not_reached_in_time_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_http, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        # Who is not accepted fills the queue, so that the next one waits.
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert main(["generate", "--url", f"http://127.0.0.1:{port}", "--record", "{}"]) == 2
        for one in waiting:
            one.close()
    assert "not reached within" in capsys.readouterr().err


def test_who_waits_too_long_asks_again(
    serve: Start, bee: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, service = serve(Limits(rows=1), engine=bee)
    waits: list[int] = []

    def make_room(number: int) -> None:
        waits.append(number)
        service.scheduler.limits = Limits()

    monkeypatch.setattr(_remote, "_wait", make_room)
    service.scheduler.limits = Limits(wait_seconds=-1)
    assert main(["generate", "--url", url, "--record", '{"input": "床", "<ans>": ""}']) == 0
    assert waits == [0]
    assert "床" in capsys.readouterr().out
