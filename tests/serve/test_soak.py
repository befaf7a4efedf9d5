"""Many clients at once, some of which leave: no place is lost, and every answer is that of a lone run."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.client import HTTPConnection
from urllib.parse import urlsplit

from hanlin.data.forms.messages import FORM
from hanlin.generate.engine import Engine
from hanlin.generate.methods.sample import SampleSettings
from hanlin.serve.limits import Limits
from hanlin.serve.service import Service

REQUESTS = int(os.environ.get("HANLIN_SOAK_REQUESTS", "80"))
"""As many as `make drill` asks for are 10,000."""
Start = Callable[..., tuple[str, Service]]


def test_no_place_is_lost(serve: Start, engine: Engine) -> None:
    url, service = serve(Limits(rows=12, cache_tokens=2048, queue=64))

    @cache
    def alone(words: int, seed: int, tokens: int) -> str:
        record = engine.processor.record_of(FORM.read({"messages": messages(words)}))  # pyright: ignore
        options = SampleSettings(max_new_tokens=tokens, temperature=1.4, top_p=1.0)
        return engine.processor.answer_of(engine.generate([record], options, seed)[0])  # pyright: ignore

    def ask(number: int) -> tuple[tuple[int, int, int], str | None]:
        draw = random.Random(number)
        words, seed, tokens = draw.randrange(1, 6), draw.randrange(3), draw.choice([1, 5, 20, 60])
        body = {"messages": messages(words), "seed": seed, "max_tokens": tokens, "temperature": 1.4}
        is_streamed, leaves = draw.random() < 0.5, draw.random() < 0.3
        connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        text = json.dumps({**body, "stream": is_streamed})
        connection.request("POST", "/v1/chat/completions", text, {"content-type": "application/json"})
        if leaves:
            time.sleep(draw.random() / 20)
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
    end = time.monotonic() + 20
    while service.scheduler.counts.running or service.scheduler.counts.waiting:
        assert time.monotonic() < end, service.scheduler.counts
        time.sleep(0.01)
    assert service.scheduler.counts.cache_positions == 0
    assert service.scheduler.counts.failed == 0


def messages(words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "床前明月光，" * words}]


def streamed_text(events: str) -> str:
    lines = [line.removeprefix("data: ") for line in events.split("\n\n") if line.startswith("data: {")]
    assert events.endswith("data: [DONE]\n\n")
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)
