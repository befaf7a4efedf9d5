"""The event loop, which serves all clients, does nothing that takes long: others are answered meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from test_routes import ASKED, client_of, post

from hanlin.generate.engine import Engine
from hanlin.serve import service as service_module
from hanlin.serve.limits import Limits
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]
LONG = "床前明月光，" * 4000


def is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, where: Any, *names: str) -> Iterator[list[str]]:
    """Which of these are called in an event loop."""
    found: list[str] = []
    with monkeypatch.context() as patched:
        for name in names:
            usual = getattr(where, name)

            def noted(*args: Any, name: str = name, usual: Any = usual, **given: Any) -> Any:
                if is_in_loop():
                    found.append(name)
                return usual(*args, **given)

            patched.setattr(where, name, noted)
        yield found


def answers(url: str, path: str, body: Any) -> None:
    status, found = post(url, path, body)
    assert status == 200, found


def test_no_text_is_encoded_or_decoded_in_it(
    serve: Start, text_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = serve(engine=text_engine)
    tokenizer = text_engine.processor.tokenizer
    names = [name for name in ("encode", "encode_many", "decode") if hasattr(tokenizer, name)]
    asked: dict[str, Any] = {"prompt": ["明月", "床前"], "max_tokens": 2, "logprobs": 3, "echo": True}
    with watched(monkeypatch, tokenizer, *names) as found:
        answers(url, "/v1/completions", {**asked, "prompt_logprobs": 4})
        answers(url, "/v1/chat/completions", {"record": {"prompt": "明月"}, "max_tokens": 2})
        answers(url, "/tokenize", {"prompt": "明月", "return_token_strs": True})
        answers(url, "/detokenize", {"tokens": [5, 6, 7]})
        question = {"type": "choice", "instructions": "?", "choices": ["明", "月"]}
        post(url, "/v1/decisions", {"input": "明月", "questions": [question]})
        for path in ("/v1/models", "/tokenizer_info"):
            urllib.request.urlopen(f"{url}{path}").read()
        assert found == []
        chunks = list(client_of(url).completions.create(model="tiny", **asked, stream=True))
        assert chunks[-1].choices[0].finish_reason
    # Of a stream's small pieces each is told at once: one token with the likeliest ones beside it.
    assert {*found} <= {"decode"}
    assert len(found) <= 8 * len(chunks)


def test_a_large_body_is_not_parsed_in_it(serve: Start, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = serve()
    with watched(monkeypatch, service_module, "parse_json", "first_problem") as found:
        answers(url, "/tokenize", {"prompt": LONG})
        answers(url, "/detokenize", {"tokens": [5] * 10_000})
        for body in ({"messages": [{"role": "user", "content": LONG}]}, {"messages": [LONG]}, [LONG]):
            assert post(url, "/v1/chat/completions", body)[0] == 400
        assert post(url, "/v1/completions", {"prompt": ["明"] * 10_000})[1]["error"]["param"] == "prompt"
    assert found == []


def test_others_are_answered_while_a_request_takes_long(
    serve: Start, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = serve(Limits(rows=8))
    tokenizer, has_begun, may_go_on = engine.processor.tokenizer, threading.Event(), threading.Event()

    def slowly(usual: Callable[..., Any], *args: Any) -> Any:
        has_begun.set()
        may_go_on.wait(60)
        return usual(*args)

    for name in ("encode", "decode"):
        monkeypatch.setattr(tokenizer, name, partial(slowly, getattr(tokenizer, name)))

    def health() -> None:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as response:
            assert json.load(response) == {"status": "ok"}

    with ThreadPoolExecutor(3) as threads:
        heavy = [
            threads.submit(post, url, "/tokenize", {"prompt": "明月", "add_special_tokens": False}),
            threads.submit(post, url, "/detokenize", {"tokens": [5, 6]}),
            threads.submit(post, url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 1}),
        ]
        assert has_begun.wait(60)
        for _ in range(5):
            health()  # in a loop that waits for one of the heavy ones it would come after its end
            assert not any(one.done() for one in heavy)
        may_go_on.set()
        assert [one.result()[0] for one in heavy] == [200] * 3


def test_more_prompts_than_are_answered_at_once_are_not_even_read(
    serve: Start, text_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = serve(Limits(rows=8), engine=text_engine)
    monkeypatch.setattr(text_engine.processor, "text_ids", lambda text: 1 / 0)
    status, found = post(url, "/v1/completions", {"prompt": ["明"] * 9, "max_tokens": 1})
    assert (status, found["error"]["param"], found["error"]["code"]) == (400, "prompt", "too_large")
