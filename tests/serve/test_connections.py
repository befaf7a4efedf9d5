"""Raw connections: what is no request, comes half or never, or is not read holds nothing for long and nobody up."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_routes import ASKED, post, wait_for

from hanlin.generate.engine import Engine
from hanlin.serve.limits import Limits
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]
HEAD = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = HEAD + b'Content-Length: 15\r\n\r\n{"prompt":"ab"}'


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 60)


def said(connection: socket.socket) -> str:
    """All that comes until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def ask(url: str, sent: bytes) -> tuple[str, dict[str, str], Any]:
    """The status line, headers and body that answer it."""
    with connect(url) as connection:
        connection.sendall(sent.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost", 1))
        head, _, body = said(connection).partition("\r\n\r\n")
    first, *others = head.split("\r\n")
    return first, {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in others}, body


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["at first", "after another"])
@pytest.mark.parametrize("begin", [b"", b"POST /tok", HEAD], ids=["nothing", "a line", "headers"])
def test_a_request_that_comes_half_is_given_up(serve: Start, before: bytes, begin: bytes) -> None:
    url, _ = serve(Limits(wait_seconds=0.3))
    with connect(url) as connection:
        connection.sendall(before + begin)
        answers = said(connection).split("HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == ["200"] * bool(before) + ["408"] * bool(begin)
    if begin:
        body = answers[-1].partition("\r\n\r\n")[2]
        assert json.loads(body)["error"]["message"] == "no request came within 0.3 seconds"


def trickle(connection: socket.socket, end: float) -> None:
    while time.monotonic() < end:
        connection.sendall(b"x")
        time.sleep(0.02)


def test_a_byte_now_and_then_is_no_request(serve: Start) -> None:
    url, _ = serve(Limits(wait_seconds=0.3))
    begun = time.monotonic()
    for begin in (HEAD, b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"):
        with connect(url) as connection:
            connection.sendall(begin)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                trickle(connection, begun + 60)
    assert time.monotonic() < begun + 60


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00 no HTTP at all \r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"X: " + b"a" * 100_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"GET /he\xffalth HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["tls", "two lengths", "a negative length", "long headers", "odd chunks", "odd path"],
)
def test_what_is_no_http_is_told_in_the_shape_of_all_errors(serve: Start, sent: bytes) -> None:
    url, _ = serve()
    with connect(url) as connection:
        connection.sendall(sent)
        head, _, body = said(connection).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")


def test_odd_bytes_behind_an_answer_end_the_connection(
    serve: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    url, _ = serve()
    with connect(url) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}}"):
            answer += connection.recv(65536)
        connection.sendall(b"zz\r\nabc\r\n")
        assert said(connection) == ""
    assert "Traceback" not in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        (b"GET /v1/models?limit=5 HTTP/1.1", 400, "/v1/models takes no parameters behind '?', found 'limit=5'"),
        (b"POST /v1/chat/completions?x HTTP/1.1", 400, "takes no parameters"),
        (b"GET /health?&& HTTP/1.1", 400, "takes no parameters"),
        (b"GET /health? HTTP/1.1", 200, ""),
        (b"GET /?vscodeBrowserReqId=1 HTTP/1.1", 200, ""),  # what browsers and proxies put there is none of the page's
        (b"GET /version HTTP/1.1\r\nContent-Length: 2", 400, "/version takes no body"),
        (b"GET /version HTTP/1.1\r\nContent-Length: 0", 200, ""),
        (b"POST /tokenize HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 15", 415, "application/json"),
        (b"POST /tokenize HTTP/1.1\r\nContent-Type: application/json; charset=gbk\r\nContent-Length: 15", 415, "UTF-8"),
        (b"POST /tokenize HTTP/1.1\r\nContent-Type: application/JSON;charset=UTF-8\r\nContent-Length: 15", 200, ""),
        (b"POST /tokenize HTTP/1.1\r\nContent-Length: 15", 200, ""),
        (b"POST /tokenize/ HTTP/1.1\r\nContent-Length: 15", 404, "there is no route /tokenize/"),
        (b"GET /v1/models HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket", 200, ""),
    ],
)
def test_nothing_of_a_request_is_ignored(serve: Start, sent: bytes, status: int, told: str) -> None:
    url, _ = serve()
    body = b'{"prompt":"ab"}' if b"Content-Length: 15" in sent else b"{}" if b"Length: 2" in sent else b""
    first, _, answer = ask(url, sent + b"\r\nHost: localhost\r\n\r\n" + body)
    assert first.startswith(f"HTTP/1.1 {status} "), answer
    assert status == 200 or told in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "FOO"])
def test_each_route_says_which_methods_it_has(serve: Start, method: str) -> None:
    url, _ = serve()
    get = ("/", "/v1/models", "/v1/models/tiny", "/tokenizer_info", "/health", "/ready", "/metrics", "/version")
    for path in (*get, "/v1/chat/completions", "/v1/completions", "/v1/decisions", "/tokenize", "/detokenize"):
        first, headers, body = ask(url, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        if method == "HEAD" and path in get:
            assert (first, body) == ("HTTP/1.1 200 OK", ""), path
            continue
        assert first == "HTTP/1.1 405 Method Not Allowed", path
        assert {*headers["allow"].split(", ")} == ({"GET", "HEAD"} if path in get else {"POST"})
        assert method == "HEAD" or json.loads(body)["error"]["message"] == f"{method} is not for {path}"


def test_requests_behind_each_other_are_answered_in_their_order(serve: Start, engine: Engine) -> None:
    url, _ = serve()
    body = json.dumps({"messages": ASKED, "max_tokens": 3, "stream": True}).encode()
    stream = HEAD.replace(b"tokenize", b"v1/chat/completions") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connect(url) as connection:
        connection.sendall(stream + WHOLE + stream + HEAD + b"Connection: close\r\n" + WHOLE.removeprefix(HEAD))
        found = said(connection)
    places = [found.find("data: [DONE]"), found.find('"tokens"'), found.rfind("data: [DONE]"), found.rfind('"tokens"')]
    assert found.count("HTTP/1.1 200 ") == 4
    assert places == sorted(places)


def test_chunks_without_an_end_are_bounded(serve: Start) -> None:
    url, _ = serve(Limits(body_bytes=1000))
    with connect(url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"64\r\n" + b"a" * 100 + b"\r\n") * 11)
        assert b" 413 " in connection.recv(65536)


def test_hundreds_that_come_and_go_lose_no_place(serve: Start) -> None:
    url, service = serve(Limits(queue=1000, rows=8))
    body = json.dumps({"messages": ASKED, "max_tokens": 40, "temperature": 1.9, "stream": True}).encode()
    stream = HEAD.replace(b"tokenize", b"v1/chat/completions") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    held = []
    for number in range(300):
        connection = connect(url)
        connection.sendall([b"", HEAD[:20], HEAD, stream[:-5], stream, WHOLE][number % 6])
        if number % 3:  # at once, with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        else:
            held.append(connection)
    status, found = post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 2})
    assert status == 200, found
    for connection in held:
        connection.close()
    counts = service.scheduler.counts
    wait_for(lambda: not service.scheduler.is_busy and counts.running + counts.waiting + counts.cache_positions == 0)
    assert counts.failed == 0
    status, found = post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 2, "n": 8})
    assert (status, len(found["choices"])) == (200, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_USER_TIMEOUT")
def test_who_does_not_read_at_all_is_let_go(serve: Start) -> None:
    url, _ = serve(Limits(wait_seconds=0.5))
    body = json.dumps({"prompt": "床" * 80_000, "return_token_strs": True, "add_special_tokens": False}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        ends = f":{int(url.rpartition(':')[2]):04X} 0100007F:{connection.getsockname()[1]:04X} "
        tables = Path("/proc/net/tcp")
        wait_for(lambda: ends in tables.read_text("ascii"))  # the server's end of it
        wait_for(lambda: ends not in tables.read_text("ascii"))


def test_a_process_may_have_as_many_connections_as_the_system_lets_it() -> None:
    resource = pytest.importorskip("resource")
    from hanlin.serve.server import _allow_many_connections

    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before, 1000), most))
        _allow_many_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
