from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import openai
import pytest
import torch

from hanlin.data.forms.messages import FORM
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.serve import answers
from hanlin.serve.limits import Limits
from hanlin.serve.schema import ChatBody, CompletionBody
from hanlin.serve.service import Service

ASKED = [{"role": "user", "content": "床前明月光"}]

Start = Callable[..., tuple[str, Service]]


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def post(url: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.loads(error.read())


def answer_of(engine: Engine, messages: list[dict[str, Any]], options: Any, seed: int = 0) -> str:
    record = engine.processor.record_of(FORM.read({"messages": messages}))
    [answered] = engine.generate([record], options, seed)
    return engine.processor.answer_of(answered)


def test_openai_gets_our_answer(serve: Start, engine: Engine) -> None:
    url, _ = serve()
    found = client_of(url).chat.completions.create(model="tiny", messages=ASKED, temperature=0, max_tokens=12)
    [choice] = found.choices
    assert choice.message.content == answer_of(engine, ASKED, GreedySettings(max_new_tokens=12))
    assert choice.finish_reason in ("stop", "length")
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model == "tiny"


def test_a_stream_adds_up_to_the_answer_and_tells_its_usage(serve: Start) -> None:
    client = client_of(serve()[0])
    asked: dict[str, Any] = {"model": "tiny", "messages": ASKED, "seed": 3, "temperature": 1.5, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    told: Any = {"include_usage": True, "include_obfuscation": False}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=told))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_a_seed_holds_under_load(serve: Start, engine: Engine) -> None:
    client = client_of(serve()[0])
    options = SampleSettings(max_new_tokens=20, temperature=1.3, top_p=1.0)

    def ask(number: int) -> str | None:
        messages = [{"role": "user", "content": "床前明月光，" * (1 + number % 4)}]
        found = client.chat.completions.create(
            model="tiny",
            messages=messages,
            temperature=1.3,
            seed=number,
            max_tokens=20,  # pyright: ignore
        )
        return found.choices[0].message.content

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(24)))
    for number, text in enumerate(found):
        messages = [{"role": "user", "content": "床前明月光，" * (1 + number % 4)}]
        assert text == answer_of(engine, messages, options, seed=number)


def test_several_answers_differ_and_a_stop_text_ends_them(serve: Start) -> None:
    client = client_of(serve()[0])
    found = client.chat.completions.create(model="tiny", messages=ASKED, n=3, seed=1, temperature=1.5, max_tokens=20)
    texts = [choice.message.content or "" for choice in found.choices]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    stop = texts[0][3:5]
    again = client.chat.completions.create(
        model="tiny", messages=ASKED, n=3, seed=1, temperature=1.5, max_tokens=20, stop=[stop]
    )
    for before, choice in zip(texts, again.choices, strict=True):
        assert choice.message.content == before.partition(stop)[0]
    streamed = client.chat.completions.create(
        model="tiny", messages=ASKED, seed=1, temperature=1.5, max_tokens=20, stop=[stop], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == texts[0].partition(stop)[0]


def test_texts_are_gone_on_with(serve: Start, text_engine: Engine) -> None:
    client = client_of(serve(engine=text_engine)[0])
    found = client.completions.create(model="tiny", prompt=["床前", "明月光"], temperature=0, max_tokens=5, n=1)
    assert [choice.index for choice in found.choices] == [0, 1]
    streamed = list(client.completions.create(model="tiny", prompt="床前", temperature=0, max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text


def test_every_family_goes_on_with_a_text_or_says_which_route_it_has(
    serve: Start, engine_of: Callable[[str], Engine]
) -> None:
    for family, status in {"chatglm2": 200, "cpm_bee": 400, "cpm1_t5": 400, "cpm2": 400}.items():
        url, _ = serve(engine=engine_of(family))
        found, answer = post(url, "/v1/completions", {"prompt": "床前明月", "max_tokens": 3})
        assert found == status, (family, answer)
        assert status == 200 or "/v1/chat/completions" in answer["error"]["message"]
        assert post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 3})[0] == 200, family


def test_how_likely_tokens_were_is_told(serve: Start) -> None:
    client = client_of(serve()[0])
    asked: dict[str, Any] = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 6, "logprobs": True}
    [choice] = client.chat.completions.create(**asked, top_logprobs=2, frequency_penalty=0.5).choices
    assert choice.logprobs is not None
    noted = choice.logprobs.content or []
    # A token alone is shown without the blanks that stand at its ends.
    assert "".join(one.token for one in noted).split() == ["".join((choice.message.content or "").split())]
    assert all(len(one.top_logprobs) == 2 and one.logprob <= one.top_logprobs[0].logprob <= 0 for one in noted)
    streamed = client.chat.completions.create(**asked, top_logprobs=2, frequency_penalty=0.5, stream=True)
    told = [one for chunk in streamed if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content or []]
    assert told == noted


def test_how_likely_the_tokens_of_a_text_were_is_told(serve: Start, text_engine: Engine) -> None:
    client = client_of(serve(engine=text_engine)[0])
    [choice] = client.completions.create(model="tiny", prompt="床前", temperature=0, max_tokens=5, logprobs=3).choices
    noted = choice.logprobs
    assert noted is not None
    assert noted.tokens is not None
    assert "".join(noted.tokens) == choice.text
    assert noted.text_offset == [len("".join(noted.tokens[:n])) for n in range(len(noted.tokens))]
    assert noted.top_logprobs is not None
    assert all(1 <= len(top) <= 3 for top in noted.top_logprobs)


def test_no_temperature_is_too_low_and_none_disturbs_others(serve: Start, engine: Engine) -> None:
    client = client_of(serve()[0])
    coldest = answer_of(engine, ASKED, GreedySettings(max_new_tokens=8))

    def ask(temperature: float) -> str | None:
        found = client.chat.completions.create(
            model="tiny",
            messages=ASKED,
            max_tokens=8,
            seed=1,
            temperature=temperature,  # pyright: ignore
        )
        return found.choices[0].message.content

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, [1e-38, 5e-324, 1.0, 1e-9]))
    assert found[0] == found[1] == found[3] == coldest


def test_what_goes_wrong_with_a_request_fails_it_and_no_other(
    serve: Start, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its numbers are none, where it cannot be fed, drawn, decoded or told: others get the ids of a lone run."""
    url, service = serve()
    client, processor = client_of(url), engine.processor
    options = SampleSettings(max_new_tokens=60, temperature=1.3, top_p=1.0)
    expected = answer_of(engine, ASKED, options, seed=3)
    others: dict[str, Any] = {"messages": ASKED, "max_tokens": 60, "temperature": 1.3, "top_p": 1.0, "seed": 3}
    written = set(processor.tokenizer.encode(expected))
    mark = next(id for id in range(processor.tokenizer.vocab_size) if id > 20 and id not in written)
    bad: Any = [{"role": "user", "content": processor.tokenizer.decode([mark])}]
    embedding: Any = engine.model.embedding
    forward, embed, follow = engine.model.forward, embedding.forward, processor.follow_answer

    def strict(*args: Any, **inputs: Any) -> torch.Tensor:
        if mark in inputs["tokens"]:
            raise RuntimeError("it cannot be fed")
        return forward(*args, **inputs)

    def numberless(ids: torch.Tensor) -> torch.Tensor:
        return embed(ids).masked_fill((ids == mark)[..., None], torch.nan)

    def untold(prompt: Any) -> Any:
        return follow(prompt) if mark not in prompt.inputs["tokens"] else lambda tokens: 1 / 0

    faults = [
        (engine.model, "forward", strict),
        (embedding, "forward", numberless),
        (processor, "follow_answer", untold),
    ]
    with ThreadPoolExecutor(8) as threads:
        for where, name, fault in faults:
            with monkeypatch.context() as broken:
                broken.setattr(where, name, fault)
                good = [threads.submit(client.chat.completions.create, model="tiny", **others) for _ in range(3)]
                whole = post(url, "/v1/chat/completions", {"messages": bad, "max_tokens": 60, "n": 3})
                with pytest.raises(openai.APIError, match=whole[1]["error"]["message"][:20]):
                    list(client.chat.completions.create(model="tiny", messages=bad, stream=True, logprobs=True))
                assert [one.result().choices[0].message.content for one in good] == [expected] * 3
            assert (whole[0], whole[1]["error"]["type"], whole[1]["error"]["param"]) == (500, "server_error", None)
    scheduler = service.scheduler
    wait_for(lambda: not scheduler.is_busy)
    scheduler._count()
    assert scheduler.counts.cache_positions == 0
    assert scheduler.is_alive
    assert client.chat.completions.create(model="tiny", **others).choices[0].message.content == expected


def test_what_an_encoder_reads_counts_too(serve: Start, engine_of: Callable[[str], Engine]) -> None:
    url, _ = serve(Limits(cache_tokens=60), engine=engine_of("cpm2"))
    body = {"messages": [{"role": "user", "content": "床前明月光" * 20}], "max_tokens": 4}
    status, answer = post(url, "/v1/chat/completions", body)
    assert (status, answer["error"]["code"]) == (400, "too_large")


def test_models_health_and_metrics(serve: Start) -> None:
    url, _ = serve()
    assert [model.id for model in client_of(url).models.list()] == ["tiny"]
    assert client_of(url).models.retrieve("tiny").id == "tiny"
    post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 2})
    with urllib.request.urlopen(f"{url}/metrics") as response:
        told = dict(line.split() for line in response.read().decode().splitlines() if not line.startswith("#"))
    assert (told["hanlin_requests_total"], told["hanlin_queue_seconds_count"]) == ("1", "1")
    assert (told["hanlin_first_token_seconds_count"], told["hanlin_inter_token_seconds_count"]) == ("1", "1")
    assert float(told["hanlin_inter_token_seconds_sum"]) > 0
    assert told["hanlin_cache_positions_limit"] == "65536"
    for path in ("/health", "/ready", "/version"):
        assert urllib.request.urlopen(f"{url}{path}").status == 200


def test_large_counts_are_told_to_the_last_token(serve: Start) -> None:
    url, service = serve()
    service.scheduler.counts.prompt_tokens, service.scheduler.counts.queue_seconds = 123_456_789, 1234567.25
    with urllib.request.urlopen(f"{url}/metrics") as response:
        told = dict(line.split() for line in response.read().decode().splitlines() if not line.startswith("#"))
    assert (told["hanlin_prompt_tokens_total"], told["hanlin_queue_seconds_sum"]) == ("123456789", "1234567.25")


def test_a_page_that_is_named_may_ask_and_no_other_one(serve: Start) -> None:
    url, _ = serve(origins=["https://pages.example"])
    for origin, status in (("https://pages.example", 200), ("https://other.example", 400)):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        asked["access-control-request-headers"] = "content-type, authorization"
        connection = HTTPConnection(urlsplit(url).netloc, timeout=120)
        connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"messages": ASKED, "max_tokns": 3}, 400, "max_tokns"),
        ({"messages": ASKED, "max_tokens": 0}, 400, "max_tokens"),
        ({"messages": ASKED, "max_tokens": "3"}, 400, "max_tokens"),
        ({"messages": ASKED, "max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens"),
        ({"messages": ASKED, "temperature": 2.1}, 400, "temperature"),
        ({"messages": ASKED, "temperature": True}, 400, "temperature"),
        ({"messages": ASKED, "n": 0}, 400, "n"),
        ({"messages": ASKED, "n": 17}, 400, "n"),
        ({"messages": ASKED, "seed": -1}, 400, "seed"),
        ({"messages": ASKED, "stop": [""]}, 400, "stop"),
        ({"messages": ASKED, "stop": ["x"] * 17}, 400, "stop"),
        ({"messages": ASKED, "logprobs": 1}, 400, "logprobs"),
        ({"messages": ASKED, "top_logprobs": 1}, 400, "top_logprobs"),
        ({"messages": ASKED, "min_p": 1.5}, 400, "min_p"),
        ({"messages": ASKED, "tools": []}, 400, "tools"),
        ({"messages": ASKED, "tools": [{"type": "function"}]}, 400, "tools"),
        ({"messages": ASKED, "tools": "f"}, 400, "tools"),
        ({"messages": ASKED, "tools": [{"name": "f"}], "tool_choice": "required"}, 400, "tool_choice"),
        ({"messages": ASKED, "tool_choice": "auto"}, 400, "tool_choice"),
        ({"record": {"prompt": "床"}, "tools": [{"name": "f"}]}, 400, "record"),
        ({"record": "床"}, 400, "record"),
        ({"record": {"prompt": "床"}, "messages": ASKED}, 400, "record"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages"),
        ({"messages": [{"content": "床"}]}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "12"}]}, 400, "messages"),
        ({"messages": [None]}, 400, "messages.0"),
        ({"messages": [{**ASKED[0], "audio": {"id": "a"}}]}, 400, "messages"),
        ({"messages": [{**ASKED[0], "contents": "床"}]}, 400, "messages"),
        ({"messages": None}, 400, "messages"),
        ({"messages": ASKED, "stream": "yes"}, 400, "stream"),
        ({"messages": ASKED, "stop": [1]}, 400, "stop.0"),
        ({"messages": ASKED, "stop": {}}, 400, "stop"),
        ({"messages": ASKED, "user": 5}, 400, "user"),
        ({"messages": ASKED, "model": ""}, 404, "model"),
        ({"messages": ASKED, "model": ["tiny"]}, 400, "model"),
        ({"messages": ASKED, "top_p": 0}, 400, "top_p"),
        ({"messages": ASKED, "top_k": -1}, 400, "top_k"),
        ({"messages": ASKED, "presence_penalty": 2.5}, 400, "presence_penalty"),
        ({"messages": ASKED, "repetition_penalty": 0.5}, 400, "repetition_penalty"),
        ({"messages": ASKED, "seed": 2**63}, 400, "seed"),
        ({"messages": ASKED, "seed": 1.5}, 400, "seed"),
        ({"messages": ASKED, "temperature": 1e999}, 400, None),
        ({"messages": ASKED, "max_tokens": 10**30}, 400, "max_tokens"),
        ("床", 400, None),
        (b"", 400, None),
        (b"null", 400, None),
        (b"[" * 5000, 400, None),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, None),
        ({"messages": ASKED, "logit_bias": {"1": 101}}, 400, "logit_bias.1"),
        ({"messages": ASKED, "logit_bias": {"1": True}}, 400, "logit_bias.1"),
        ({"messages": ASKED, "logit_bias": {"1": 1, "01": -1}}, 400, "logit_bias.01"),
        ({"messages": ASKED, "logit_bias": {"床": 1}}, 400, "logit_bias.床"),
        ({"messages": ASKED, "logit_bias": {"99999999": 1}}, 400, "logit_bias"),
        ({"messages": ASKED, "logit_bias": [1]}, 400, "logit_bias"),
        ({"messages": ASKED, "response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"messages": ASKED, "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"messages": ASKED, "stream": True, "stream_options": {"other": 1}}, 400, "stream_options.other"),
        (
            {"messages": ASKED, "stream": True, "stream_options": {"include_obfuscation": True}},
            *(400, "stream_options.include_obfuscation"),
        ),
        ({"messages": ASKED, "model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "床"}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "床"}]}, 400, "messages"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "疑"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "床" * 999}]}, 400, "messages"),
        ({"messages": ASKED, "max_tokens": 5000}, 400, "messages"),
        ({"messages": ASKED, "max_tokens": 2**24 + 1}, 400, "max_tokens"),
        ({}, 400, "messages"),
        ([1], 400, None),
        (b"{", 400, None),
        (b'{"messages": [], "messages": []}', 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"temperature": NaN}', 400, None),
    ],
)
def test_what_is_not_honoured_is_refused(serve: Start, body: Any, status: int, param: str | None) -> None:
    url, _ = serve()
    found, answer = post(url, "/v1/chat/completions", body)
    assert found == status, answer
    assert answer["error"]["message"]
    assert answer["error"]["param"] == param, answer
    assert "nput" not in answer["error"]["message"]  # of pydantic's own words


def test_what_else_openais_client_asks_is_refused_in_that_shape(serve: Start) -> None:
    client = client_of(serve()[0])
    text: Any = {"model": "tiny", "input": "床"}
    refused: list[Callable[[], Any]] = [
        lambda: client.responses.create(**text),
        lambda: client.embeddings.create(**text),
        lambda: client.moderations.create(**text),
        lambda: client.images.generate(model="tiny", prompt="床"),
        lambda: client.audio.speech.create(**text, voice="alloy"),
        client.files.list,
        client.batches.list,
        client.fine_tuning.jobs.list,
        client.vector_stores.list,
        lambda: client.models.delete("tiny"),
        client.chat.completions.list,
        lambda: client.chat.completions.retrieve("id"),
        lambda: client.chat.completions.delete("id"),
    ]
    for ask in refused:
        with pytest.raises(openai.APIStatusError, match=r"there is no route /v1/|is not for /v1/") as told:
            ask()
        assert told.value.status_code in (404, 405)
        body: Any = told.value.body
        assert set(body) == {"message", "type", "param", "code"}


def test_errors_have_one_shape_on_every_route(serve: Start) -> None:
    url, _ = serve(Limits(body_bytes=1000))
    assert post(url, "/v1/nothing", {})[0] == 404
    assert post(url, "/v1/models", {})[0] == 405
    status, answer = post(url, "/v1/completions", {"prompt": "床" * 1000})
    assert status == 413
    assert answer["error"]["type"] == "invalid_request_error"


def test_bodies_that_are_packed_slow_or_no_utf8_are_told(serve: Start) -> None:
    url, _ = serve(Limits(wait_seconds=0.3))
    head = "POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 15\r\n"
    for more, body, status, told in (
        ("Content-Encoding: gzip\r\n", b'{"prompt":"ab"}', 415, "send it unpacked"),
        ("", b'{"prompt":', 408, "the body did not come within 0.3 seconds"),
        ("", b'{"prompt":"ab"}'.replace(b"ab", b"\xb4\xb2"), 400, "not UTF-8"),
    ):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20) as connection:
            connection.sendall(f"{head}{more}Connection: close\r\n\r\n".encode() + body)
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert told in json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"]


def test_more_text_than_a_tokenizer_should_read_is_refused_before_it_does(serve: Start) -> None:
    url, service = serve(Limits(text_characters=100, decision_tokens=100))
    questions = [{"type": "choice", "instructions": "床", "choices": [{"value": str(n)} for n in range(50)]}]
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "床" * 51} for _ in range(2)]}),
        ("/v1/chat/completions", {"record": {"prompt": "床" * 101}}),
        ("/v1/completions", {"prompt": ["床" * 50, "月" * 51]}),
        ("/tokenize", {"prompt": "床" * 101}),
        ("/v1/decisions", {"input": "床" * 95, "questions": questions[:1]}),
        ("/v1/decisions", {"input": "床" * 20, "questions": questions[:1]}),
    ):
        status, answer = post(url, path, body)
        assert (status, answer["error"]["code"]) == (400, "too_large"), (path, answer)
        assert "characters" in answer["error"]["message"]
    assert post(url, "/tokenize", {"prompt": "床" * 90})[0] == 200
    assert service.scheduler.counts.requests == 0


def test_a_key_is_asked_for_everywhere_but_at_health(serve: Start) -> None:
    url, _ = serve(key="secret")
    status, answer = post(url, "/v1/completions", {"prompt": "床"})
    assert (status, answer["error"]["message"]) == (401, "a key is needed: Authorization: Bearer KEY")
    with pytest.raises(openai.AuthenticationError, match="this key is wrong"):
        client_of(url, "wrong").models.list()
    assert client_of(url, "secret").models.list().data[0].id == "tiny"
    assert urllib.request.urlopen(f"{url}/health").status == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8000", None, 200),
        ("localhost", None, 200),
        ("[::1]:8000", None, 200),
        ("pages.example:8000", None, 403),  # a page's own name that leads here now
        ("127.0.0.1.pages.example", None, 403),
        ("", None, 403),
        ("localhost:8000", "http://localhost:8000", 200),
        ("localhost:8000", "https://pages.example", 403),  # a page's form, which no preflight holds back
        ("localhost:8000", "null", 403),
        ("localhost:8000", "https://named.example", 200),
    ],
)
def test_without_a_key_pages_of_others_are_kept_out(serve: Start, host: str, origin: str | None, status: int) -> None:
    url, _ = serve(origins=["https://named.example"])
    connection = HTTPConnection(urlsplit(url).netloc, timeout=120)
    kind = "application/json" if status == 200 else "text/plain"
    headers = {"host": host, "content-type": kind, **({"origin": origin} if origin else {})}
    connection.request("POST", "/tokenize", json.dumps({"prompt": "明月"}), headers)
    response = connection.getresponse()
    assert response.status == status
    assert response.status == 200 or json.load(response)["error"]["code"] == "forbidden"
    connection.close()


def test_with_a_key_a_server_may_be_called_by_any_name(serve: Start) -> None:
    url, _ = serve(key="secret")
    assert post(url, "/tokenize", {"prompt": "明月"}, host="far.example", authorization="Bearer secret")[0] == 200


def test_a_client_that_leaves_frees_its_place(serve: Start) -> None:
    url, service = serve()
    for stream in (True, False):
        connection = HTTPConnection(urlsplit(url).netloc)
        body = {"messages": ASKED, "temperature": 1.9, "seed": 5, "max_tokens": 200, "stream": stream, "n": 8}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        wait_for(lambda: service.scheduler.counts.running > 0)
        assert connection.sock is not None
        connection.sock.close()
        wait_for(lambda: service.scheduler.counts.running == 0)
    assert post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 1})[0] == 200


def test_too_many_are_turned_away(serve: Start) -> None:
    url, service = serve(Limits(queue=1, rows=2))
    body = {"messages": ASKED, "temperature": 1.9, "max_tokens": 200, "n": 2}
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda seed: post(url, "/v1/chat/completions", {**body, "seed": seed}), range(8)))
    statuses = {status for status, _ in found}
    assert statuses == {200, 429}
    assert post(url, "/v1/chat/completions", {**body, "n": 3})[0] == 400
    wait_for(lambda: service.scheduler.counts.running == 0)


def test_who_waits_hears_so_and_who_may_not_when_to_ask_again(
    serve: Start, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = serve(Limits(queue=1, rows=1))
    monkeypatch.setattr(answers, "_QUIET_SECONDS", 0.05)
    may_go_on, asked = threading.Event(), json.dumps({"messages": ASKED, "max_tokens": 2, "stream": True})
    hook = engine.model.register_forward_pre_hook(lambda *_: may_go_on.wait(60) and None)
    some = [HTTPConnection(urlsplit(url).netloc, timeout=60) for _ in range(3)]
    try:
        for count, one in enumerate(some[:2], start=1):
            one.request("POST", "/v1/chat/completions", asked, {"content-type": "application/json"})
            stream = one.getresponse()
            wait_for(lambda count=count: service.scheduler.counts.requests == count)
            assert stream.readline().startswith(b"data: ")
            assert [stream.readline() for _ in range(2)] == [b"\n", b": waiting\n"]
        some[2].request("POST", "/v1/chat/completions", asked, {"content-type": "application/json"})
        refused = some[2].getresponse()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    finally:
        may_go_on.set()
        hook.remove()
        for one in some:
            one.close()


@pytest.mark.parametrize("page", ["serving.md", "serving.zh-CN.md"])
def test_the_pages_name_every_field_and_limit(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text("utf-8")
    names = {*ChatBody.model_fields, *CompletionBody.model_fields} - {"stream_options"}
    limits = {f"--max-{field.name.replace('_', '-')}" for field in fields(Limits)} - {"--max-body-bytes"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
    assert [name for name in sorted(limits) if f"`{name}`" not in text] == []


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_an_answer_of_no_stated_length_has_the_room_that_is_left(serve: Start, engine: Engine) -> None:
    url, _ = serve(max_new_tokens=1024)
    status, found = post(url, "/v1/chat/completions", {"messages": ASKED})
    assert status == 200, found
    assert found["usage"]["completion_tokens"] < 256
    status, found = post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 1024})
    assert (status, found["error"]["param"], found["error"]["code"]) == (400, "messages", "too_large")
    assert "lower max_tokens" in found["error"]["message"]


def test_a_prompt_that_is_read_whole_has_a_bound(serve: Start, engine_of: Callable[[str], Engine]) -> None:
    url, _ = serve(Limits(prompt_tokens=40), engine=engine_of("cpm_bee"))
    for count, wanted in ((2, 200), (40, 400)):
        body = {"messages": [{"role": "user", "content": "明月" * count}], "max_tokens": 2, "temperature": 0}
        status, found = post(url, "/v1/chat/completions", body)
        assert status == wanted, found
    assert found["error"]["code"] == "too_large"


def test_scores_of_prompts_have_a_bound(serve: Start, text_engine: Engine) -> None:
    url, _ = serve(Limits(decision_tokens=4), engine=text_engine)
    body = {"prompt": [[3, 4]] * 5, "echo": True, "logprobs": 1, "max_tokens": 0}
    status, found = post(url, "/v1/completions", body)
    assert (status, found["error"]["code"]) == (400, "too_large"), found


def test_answers_that_are_not_ready_when_the_server_ends_are_told(serve: Start) -> None:
    url, service = serve()
    service.scheduler.end_by(time.monotonic() - 1)
    status, found = post(url, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 100})
    assert (status, found["error"]["message"]) == (503, "the server is shutting down")
    streamed = client_of(url).chat.completions.create(model="tiny", messages=ASKED, max_tokens=100, stream=True)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(streamed)
