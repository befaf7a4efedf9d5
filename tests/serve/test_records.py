"""Records in place of messages, and what a server tells of its model."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import openai
import pytest

from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings

Start = Callable[..., Any]
EngineOf = Callable[[str], Engine]
BLANKS = {"题": "床前明月光", "<ans>": {"甲": "", "乙": ""}}
ROUTE = "/v1/chat/completions"


def post(url: str, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.loads(error.read())


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def filled(engine: Engine, record: Any, tokens: int = 12) -> Any:
    [found] = engine.generate([record], GreedySettings(max_new_tokens=tokens), 0)
    return found


def test_a_record_comes_back_filled_in(serve: Start, engine_of: EngineOf) -> None:
    engine = engine_of("cpm_bee")
    url, _ = serve(engine=engine)
    client: Any = client_of(url).chat.completions
    asked = {"model": "tiny", "messages": [], "temperature": 0, "max_tokens": 12, "extra_body": {"record": BLANKS}}
    [choice] = client.create(**asked).choices
    assert choice.message.record == filled(engine, BLANKS)
    chunks = [chunk.choices[0] for chunk in client.create(**asked, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == choice.message.content
    assert [chunk.delta.record for chunk in chunks if chunk.finish_reason] == [filled(engine, BLANKS)]


def test_rows_of_other_forms_are_records_too(serve: Start, engine_of: EngineOf, engine: Engine) -> None:
    row = {"instruction": "床前", "input": "", "output": ""}
    url, _ = serve(engine=engine_of("cpm_bee"))
    status, found = post(url, ROUTE, {"record": row, "temperature": 0, "max_tokens": 6})
    assert status == 200, found
    record = found["choices"][0]["message"]["record"]
    answer = filled(engine_of("cpm_bee"), {"input": "床前", "<ans>": ""}, 6)["<ans>"]
    assert record == {**row, "output": engine_of("cpm_bee").processor.answer_of({"<ans>": answer})}
    url, _ = serve(engine=engine)
    assert post(url, ROUTE, {"record": {"prompt": "床前", "history": []}, "max_tokens": 3})[0] == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"record": {"题": "床"}}, "record"),
        ({"record": {}}, "record"),
        ({"record": {"<ans>": {}}}, "record"),
        ({"record": {"题": None, "<ans>": ""}}, "record"),
        ({"record": {"题": ["床"], "<ans>": ""}}, "record"),
        ({"record": {"题": {"深": {"深": 1.5}}, "<ans>": ""}}, "record"),
        ({"record": "床"}, "record"),
        ({"record": [{"<ans>": ""}]}, "record"),
        ({"record": BLANKS, "messages": [{"role": "user", "content": "床"}]}, "record"),
        ({"record": BLANKS, "stop": "光"}, "record"),
        ({"record": None, "messages": []}, "messages"),
    ],
)
def test_records_that_cannot_be_asked_are_refused(
    serve: Start, engine_of: EngineOf, body: dict[str, Any], param: str
) -> None:
    url, service = serve(engine=engine_of("cpm_bee"))
    status, found = post(url, ROUTE, {"max_tokens": 4, **body})
    assert status == 400, found
    assert found["error"]["param"] == param, found
    assert service.scheduler.is_alive


@pytest.mark.parametrize(
    ("family", "accepts"),
    [
        ("cpm_bee", ["record", "messages", "system", "decision"]),
        ("chatglm2", ["messages", "prompt", "record", "decision"]),
        ("cpm1", ["prompt", "messages", "system", "record", "decision"]),
        ("cpm1_t5", ["messages", "system", "record", "decision"]),
        ("cpm2", ["messages", "system", "record", "decision"]),
    ],
)
def test_what_a_model_says_it_accepts_it_answers(
    serve: Start, engine_of: EngineOf, family: str, accepts: list[str]
) -> None:
    url, _ = serve(engine=engine_of(family))
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        [card] = json.load(response)["data"]
    assert card["accepts"] == accepts
    assert card["settings"]["method"] == "greedy"
    assert (card["blanks"] is not None) == (family == "cpm_bee")
    says, asks = {"role": "system", "content": "月"}, {"role": "user", "content": "光"}
    bodies = {"messages": [asks], "system": [says, asks]}
    for name, messages in bodies.items():
        status, found = post(url, ROUTE, {"messages": messages, "max_tokens": 2})
        assert status == (200 if name in accepts else 400), found
    status, found = post(url, "/v1/completions", {"prompt": "月", "max_tokens": 2})
    assert status == (200 if "prompt" in accepts else 400), found
    choice = {"type": "choice", "instructions": "月", "choices": [{"value": "明"}, {"value": "明月光"}]}
    status, found = post(url, "/v1/decisions", {"input": "床前", "questions": [choice]})
    assert status == (200 if "decision" in accepts else 400), found


def test_the_blanks_that_a_model_tells_of_are_those_it_fills(serve: Start, engine_of: EngineOf) -> None:
    url, _ = serve(engine=engine_of("cpm_bee"))
    blanks = client_of(url).models.list().data[0].model_dump()["blanks"]
    names = [blanks["option"].format(number) for number in range(2)]
    record = {"题": "床前", blanks["options"]: dict(zip(names, "明月", strict=True)), blanks["answer"]: ""}
    asked = {"record": record, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    status, found = post(url, ROUTE, asked)
    assert status == 200, found
    likeliest = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert set(names) & {one["token"] for one in likeliest}


def test_texts_are_as_people_read_them_and_records_as_the_family_has_them(
    serve: Start, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("cpm_bee")
    monkeypatch.setattr(engine.processor, "answer_texts", lambda prompt, tokens: ["甲<<乙"])
    monkeypatch.setattr(engine.processor, "follow_answer", lambda prompt: lambda tokens: ["甲<<乙"])
    url, _ = serve(engine=engine)
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 3}
    messages = [{"role": "user", "content": "床前"}]
    for given, wanted in (
        ({"messages": messages}, "甲<乙"),
        ({"record": {"instruction": "床前", "input": "", "output": ""}}, "甲<乙"),
        ({"record": {"题": "床前", "<ans>": ""}}, "甲<<乙"),
    ):
        status, found = post(url, ROUTE, {**asked, **given})
        assert status == 200, found
        assert found["choices"][0]["message"]["content"] == wanted
    streamed: Any = client_of(url).chat.completions.create(model="tiny", messages=messages, **asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "甲<乙"
