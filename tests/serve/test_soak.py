"""Many clients at once, some of which leave, die or do not read: no place is lost, nobody waits for them, and every
answer is that of a lone run.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hanlin.data.forms.messages import FORM
from hanlin.generate.engine import Engine
from hanlin.generate.methods.sample import SampleSettings
from hanlin.serve.limits import Limits
from hanlin.serve.service import Service

REQUESTS = int(os.environ.get("HANLIN_SOAK_REQUESTS", "50"))
"""As many as `make drill` asks for are 10,000."""
Start = Callable[..., tuple[str, Service]]


def test_no_place_is_lost(serve: Start, engine: Engine) -> None:
    limits = Limits(rows=12, cache_tokens=2048, queue=64, step_tokens=16, kept_prompts=8)
    url, service = serve(limits)
    memory: dict[int, int] = {}

    @cache
    def alone(words: int, seed: int, tokens: int) -> str:
        record = engine.processor.record_of(FORM.read({"messages": messages(words)}))  # pyright: ignore
        options = SampleSettings(max_new_tokens=tokens, temperature=1.4, top_p=1.0)
        return engine.processor.answer_of(engine.generate([record], options, seed)[0])  # pyright: ignore

    def ask(number: int) -> tuple[tuple[int, int, int], str | None]:
        if number in (REQUESTS // 5, REQUESTS - 1):
            memory[number] = resident_bytes()
        draw = random.Random(number)
        words, seed, tokens = draw.randrange(1, 6), draw.randrange(3), draw.choice([1, 5, 20, 60])
        body = {"messages": messages(words), "seed": seed, "max_tokens": tokens, "temperature": 1.4}
        is_streamed, leaves = draw.random() < 0.5, draw.random() < 0.3
        connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        text = json.dumps({**body, "stream": is_streamed})
        connection.request("POST", "/v1/chat/completions", text, {"content-type": "application/json"})
        if leaves:
            time.sleep(draw.random() / 20)
            if draw.random() < 0.5:  # in the middle of its answer
                connection.getresponse().readline()
            connection.close()
            return (words, seed, tokens), None
        response = connection.getresponse()
        found = response.read().decode()
        connection.close()
        assert response.status == 200, found
        return (words, seed, tokens), streamed_text(found) if is_streamed else json.loads(found)["choices"][0][
            "message"
        ]["content"]

    with ThreadPoolExecutor(32) as threads:
        answered = [one for one in threads.map(ask, range(REQUESTS)) if one[1] is not None]
    assert len(answered) > REQUESTS / 2
    for asked, text in answered:
        assert text == alone(*asked), asked
    wait_until_idle(service)
    assert service.scheduler.counts.failed == 0
    # All that the cache holds can still be had at once.
    body = {"messages": messages(1), "n": 8, "max_tokens": 200, "temperature": 1.0}
    assert read_whole(ask_for(url, body)).count('"finish_reason"') == 8
    first, last = (value / 2**20 for value in memory.values())
    print(f"{REQUESTS} requests, {len(answered)} answers; {first:.0f} MiB after a fifth, {last:.0f} MiB at the end")
    assert REQUESTS < 2000 or last - first < 48


@pytest.mark.parametrize("is_streamed", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_costs_a_step_or_two(serve: Start, slow_steps: list[float], is_streamed: bool) -> None:
    url, service = serve()
    connection = ask_for(url, {"messages": messages(1), "max_tokens": 200, "temperature": 1.9, "stream": is_streamed})
    wait_for(lambda: len(slow_steps) > 3)
    assert connection.sock is not None
    connection.sock.close()
    left = len(slow_steps)
    wait_until_idle(service)
    assert len(slow_steps) - left < 100  # of about 200: all but a few of them are what a busy machine needs to notice


def test_a_client_that_is_killed_frees_its_places(serve: Start, slow_steps: list[float]) -> None:
    url, service = serve()
    body = json.dumps({"messages": messages(1), "max_tokens": 200, "temperature": 1.9, "stream": True, "n": 4})
    program = f"""
import http.client, time
some = [http.client.HTTPConnection({urlsplit(url).netloc!r}) for _ in range(3)]
for one in some:
    one.request("POST", "/v1/chat/completions", {body!r}, {{"content-type": "application/json"}})
    one.getresponse().readline()
print("reading", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"reading\n"
    wait_for(lambda: service.scheduler.counts.running == 12)
    process.kill()
    process.wait()
    process.stdout.close()
    left = len(slow_steps)
    wait_until_idle(service)
    assert len(slow_steps) - left < 100  # of about 200


def test_who_does_not_read_holds_nobody_up_and_loses_nothing(serve: Start) -> None:
    url, service = serve()
    body = {"messages": messages(2), "max_tokens": 200, "n": 8, "temperature": 1.9, "seed": 1, "logprobs": True}
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", urlsplit(url).port))
        text = json.dumps({**body, "top_logprobs": 20, "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        head += f"content-length: {len(text)}\r\n\r\n"
        slow.sendall(head.encode() + text)
        wait_for(lambda: service.scheduler.counts.requests == 1)
        for _ in range(3):
            assert '"finish_reason"' in read_whole(ask_for(url, {"messages": messages(1), "max_tokens": 5}))
        wait_until_idle(service)
        read = b"".join(iter(lambda: slow.recv(65536), b""))
    assert len(read) > 1_000_000  # more than any buffer between the two takes
    assert read.count(b'"finish_reason": "') == 8
    assert b"data: [DONE]" in read


@pytest.fixture
def slow_steps(engine: Engine) -> Iterator[list[float]]:
    """Lets each step of the model take a while; the times of the steps."""
    steps: list[float] = []

    def wait(*_: object) -> None:
        steps.append(time.monotonic())
        time.sleep(0.03)

    hook = engine.model.register_forward_pre_hook(wait)
    yield steps
    hook.remove()


def ask_for(url: str, body: dict[str, Any]) -> HTTPConnection:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def read_whole(connection: HTTPConnection) -> str:
    response = connection.getresponse()
    found = response.read().decode()
    connection.close()
    assert response.status == 200, found
    return found


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def wait_until_idle(service: Service) -> None:
    counts = service.scheduler.counts
    wait_for(lambda: counts.running + counts.waiting + counts.cache_positions == 0)


def resident_bytes() -> int:
    """Of this process, by Linux's own account; 0 elsewhere."""
    path = Path("/proc/self/statm")
    return int(path.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.is_file() else 0


def messages(words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "床前明月光，" * words}]


def streamed_text(events: str) -> str:
    lines = [line.removeprefix("data: ") for line in events.split("\n\n") if line.startswith("data: {")]
    assert events.endswith("data: [DONE]\n\n")
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)
