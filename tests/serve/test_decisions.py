"""POST /v1/decisions, asked by the real client."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import openai
import pytest
import uvicorn
from decision_cases import LABELS, QUESTIONS, TEXT, asked, engine_of_family, label_engine, poll

from hanlin.evaluation.decisions.answers import answer_of, probabilities_of
from hanlin.evaluation.decisions.scoring import score_polls
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.serve.app import make_app
from hanlin.serve.decisions import DecisionBody
from hanlin.serve.limits import Limits
from hanlin.serve.scheduler import Scheduler, ServerCounts
from hanlin.serve.service import Service
from hanlin.serve.side_jobs import SideJob, SideJobs

Start = Callable[..., tuple[str, Service]]


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def post(url: str, body: Any) -> tuple[int, Any]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/decisions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.loads(error.read())


def expected(engine: Engine, text: str = TEXT, temperature: float = 1.0) -> list[dict[str, Any]]:
    questions = asked(QUESTIONS)
    scored = score_polls(engine, [poll(engine, question, text) for question in questions], 4)
    return [answer_of(one, probabilities_of(own, temperature)) for one, own in zip(questions, scored, strict=True)]


def near(answer: dict[str, Any]) -> Any:
    return {name: value for name, value in answer.items() if name != "probabilities"} | {
        "probabilities": [
            {**one, "probability": pytest.approx(one["probability"], abs=1e-9)} for one in answer["probabilities"]
        ],
        **{name: pytest.approx(answer[name], abs=1e-9) for name in ("confidence", "score") if name in answer},
    }


@pytest.mark.parametrize("family", ["cpm_bee", "cpm1", "cpm2", "chatglm2"])
def test_openai_gets_typed_answers(serve: Start, family: str) -> None:
    engine = engine_of_family(family)
    url, _ = serve(engine=engine)
    predicate = {"type": "predicate", "name": "whether", "instructions": "床 moon" if family == "cpm2" else "床"}
    questions: Any = [*QUESTIONS, *([predicate] if family != "cpm2" else [])]
    found = client_of(url).decisions.create(model="tiny", input=TEXT, questions=questions)
    choice, score = expected(engine)
    assert found.answers[0].model_dump() == near(choice)
    assert found.answers[1].model_dump() == near(score)
    if family != "cpm2":
        [statement] = found.answers[2:]
        assert statement.type == "predicate"
        assert statement.name == "whether"
        assert 0 < statement.probability < 1
    assert found.model == "tiny"
    assert found.usage.total_tokens == found.usage.input_tokens > 5 * len(TEXT)


def test_a_head_for_labels_answers_too_and_booleans_stay_booleans(serve: Start) -> None:
    url, _ = serve(engine=label_engine())
    choice: Any = {"type": "choice", "instructions": "", "choices": [{"value": name} for name in LABELS]}
    card = client_of(url).models.list().data[0].model_dump()
    assert (card["accepts"][0], card["labels"]) == ("decision", list(LABELS))
    [found] = client_of(url).decisions.create(model="tiny", input=TEXT, questions=[choice]).answers
    assert found.type == "choice"
    assert sum(one.probability for one in found.probabilities) == pytest.approx(1)
    url, _ = serve(engine=engine_of_family("cpm_bee"))
    choice = {"type": "choice", "instructions": "月", "choices": [{"value": True}, {"value": False}, {"value": "?"}]}
    [found] = client_of(url).decisions.create(model="tiny", input=TEXT, questions=[choice]).answers
    assert found.type == "choice"
    assert [one.value for one in found.probabilities] == [True, False, "?"]


def test_messages_and_calls_of_tools_are_read_as_a_text(serve: Start) -> None:
    engine = engine_of_family("chatglm2")
    url, _ = serve(engine=engine)
    items: Any = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "明月"}, {"type": "input_json", "data": {"月": 1}}],
        },
        {"role": "assistant", "content": "故乡", "type": "message"},
        {"type": "function_call", "call_id": "a", "name": "望", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "霜"}]},
    ]
    asked_of: Any = QUESTIONS
    found = client_of(url).decisions.create(model="tiny", input=items, questions=asked_of)
    text = '用户：明月\n{"月":1}\nAI：故乡\nAI 调用工具 望：{}\n工具结果：霜'
    assert found.answers[0].model_dump() == near(expected(engine, text)[0])
    one: Any = [{"role": "user", "content": TEXT}]
    alone = client_of(url).decisions.create(model="tiny", input=one, questions=asked_of)
    assert alone.answers[0].model_dump() == near(expected(engine)[0])


IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png"}
OUTPUT = {"type": "function_call_output", "call_id": "b", "output": "霜"}
CHOICE = QUESTIONS[0]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"input": None}, "input", "expected a text"),
        ({"input": []}, "input", "empty list"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.0.content.0", "pictures"),
        ({"input": [{"role": "bot", "content": "月"}]}, "input.0.role", '"user"'),
        ({"input": [{"role": "user", "content": "月", "phase": "commentary"}]}, "input.0", "phase"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "月"}]}]}, "input.0", "role"),
        ({"input": [{"role": "user", "content": "月"}, OUTPUT]}, "input", "no call before it has the call_id 'b'"),
        ({"questions": []}, "questions", "at least 1"),
        ({"questions": [CHOICE] * 401}, "questions", "at most 400"),
        ({"questions": [{"type": "guess", "instructions": "月"}]}, "questions.0", "predicate"),
        ({"questions": [{"type": "predicate", "instructions": " "}]}, "questions.0", "empty statement"),
        ({"questions": [{"type": "predicate", "instructions": [IMAGE]}]}, "questions.0.instructions.0", "pictures"),
        ({"questions": [{"type": "predicate"}]}, "questions.0.instructions", "is missing"),
        ({"questions": [{**CHOICE, "choices": [{"value": "月"}]}]}, "questions.0.choices", "at least 2"),
        ({"questions": [{**CHOICE, "choices": [{"value": "月"}] * 2}]}, "questions.0", "'月'"),
        (
            {"questions": [{**CHOICE, "choices": [{"value": 1}, {"value": "月"}]}]},
            "questions.0.choices.0.value",
            "a text or true or false",
        ),
        ({"questions": [CHOICE, {**CHOICE, "weight": 2}]}, "questions.1.weight", "unknown field"),
        ({"questions": [{**QUESTIONS[1], "levels": [{"label": ""}, {"label": "月"}]}]}, "questions.0", "empty text"),
        ({"model": "other"}, "model", "no model 'other'"),
        ({"temperature": 0}, "temperature", "unknown field"),
        ({"prompt_cache_options": {"ttl": "30m"}}, "prompt_cache_options", "nothing is cached"),
        ({"input": "月" * 400}, "questions.0", "the model reads at most"),
    ],
)
def test_every_mistake_is_a_400_that_names_the_field(
    refusing: str, changes: dict[str, Any], param: str, message: str
) -> None:
    status, found = post(refusing, {"model": "tiny", "input": TEXT, "questions": QUESTIONS, **changes})
    assert status == (404 if param == "model" else 400), found
    assert found["error"].keys() == {"message", "type", "param", "code"}
    assert found["error"]["param"] == param, found
    assert message in found["error"]["message"], found


@contextmanager
def running(engine: Engine, **options: Any) -> Iterator[tuple[str, Service]]:
    limits = Limits()
    service = Service("tiny", engine, GreedySettings(), Scheduler(engine, limits), limits, 1, **options)
    server = uvicorn.Server(uvicorn.Config(make_app(service), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    """One server for all mistakes."""
    with running(engine_of_family("chatglm2")) as (url, _):
        yield url


def test_the_temperature_of_the_weights_is_used_and_tokens_are_counted() -> None:
    engine = engine_of_family("cpm1")
    questions: Any = QUESTIONS
    with running(engine, temperature=3.0) as (url, service):
        found = client_of(url).decisions.create(model="tiny", input=TEXT, questions=questions)
        assert service.scheduler.counts.prompt_tokens == found.usage.input_tokens
    warm, cold = expected(engine, temperature=3.0), expected(engine)
    assert found.answers[0].model_dump() == near(warm[0])
    assert warm[0]["choice"] == cold[0]["choice"]
    assert warm[0]["confidence"] < cold[0]["confidence"]


def test_fields_that_say_nothing_here_are_taken(serve: Start) -> None:
    url, _ = serve(engine=engine_of_family("cpm1"))
    client = client_of(url)
    questions: Any = QUESTIONS
    found = client.decisions.create(
        model="tiny", input=TEXT, questions=questions, prompt_cache_key="k", safety_identifier="s"
    )
    assert len(found.answers) == 2


def test_a_request_reads_no_more_than_the_limit(serve: Start) -> None:
    url, _ = serve(Limits(decision_tokens=60), engine=engine_of_family("cpm1"))
    status, found = post(url, {"input": TEXT, "questions": QUESTIONS * 3})
    assert (status, found["error"]["code"]) == (400, "too_large")
    assert post(url, {"input": "月", "questions": QUESTIONS[:1]})[0] == 200
    url, _ = serve(Limits(prompt_tokens=9), engine=engine_of_family("cpm_bee"))
    status, found = post(url, {"input": TEXT, "questions": QUESTIONS})
    assert (status, found["error"]["param"], found["error"]["code"]) == (400, "questions.0", "too_large")


def test_streams_and_decisions_go_on_beside_each_other(serve: Start) -> None:
    """A stream gets tokens while a long list of questions is answered, and both are as they are alone."""
    engine = engine_of_family("chatglm2")
    url, service = serve(engine=engine)
    client = client_of(url)
    chat: Any = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "temperature": 0, "max_tokens": 40}
    alone = client.chat.completions.create(**chat).choices[0].message.content
    questions: Any = QUESTIONS * 40

    def stream() -> tuple[str, list[float]]:
        pieces = [(piece, time.monotonic()) for piece in client.chat.completions.create(**chat, stream=True)]
        text = "".join(piece.choices[0].delta.content or "" for piece, _ in pieces)
        return text, [at for _, at in pieces]

    def decide() -> tuple[Any, float]:
        return client.decisions.create(model="tiny", input=TEXT, questions=questions), time.monotonic()

    with ThreadPoolExecutor(4) as threads:
        decisions = [threads.submit(decide) for _ in range(2)]
        streams = [threads.submit(stream) for _ in range(2)]
        texts, times = zip(*(one.result() for one in streams), strict=True)
        found = [one.result() for one in decisions]
    assert set(texts) == {alone}
    choice, score = expected(engine)
    for decision, _ in found:
        assert [answer.model_dump() for answer in decision.answers] == [near(choice), near(score)] * 40
    last = max(at for _, at in found)
    assert min(map(min, times)) < last, "no stream began before the decisions were done"
    assert service.scheduler.is_alive


def test_a_failing_step_is_told_to_its_own_request_alone() -> None:
    told: list[tuple[Any, Exception | None]] = []

    def failing() -> Iterator[list[int]]:
        yield []
        raise RuntimeError("broken")

    def counting(name: int) -> Iterator[list[int]]:
        yield []
        yield [name]

    counts = ServerCounts()
    jobs = SideJobs(counts)
    gone = SideJob(counting(9), lambda *found: told.append(found))
    for steps in (failing(), counting(1), counting(2)):
        jobs.add(SideJob(steps, lambda *found: told.append(found)))
    jobs.add(gone)
    gone.is_cancelled = True
    while jobs:
        jobs.step(10.0)
    assert [str(error) for _, error in told if error] == ["broken"]
    assert [found for found, error in told if error is None] == [[1], [2]]
    assert (counts.failed, counts.cancelled) == (1, 1)


def test_what_takes_too_long_is_ended() -> None:
    told: list[Exception | None] = []
    jobs = SideJobs(ServerCounts())
    jobs.add(SideJob(iter(()), lambda _, error: told.append(error), submitted=time.monotonic() - 5))
    jobs.step(4.0)
    assert "more than 4 seconds" in str(told[0])


def test_all_are_told_when_the_server_ends() -> None:
    told: list[Exception | None] = []
    jobs = SideJobs(ServerCounts())
    for _ in range(6):  # some of them begun
        jobs.add(SideJob(iter([[], []]), lambda _, error: told.append(error)))
    jobs.step(9.0)
    jobs.fail_all(TimeoutError("the server is shutting down"))
    assert len(jobs) == 0
    assert [str(error) for error in told] == ["the server is shutting down"] * 6


@pytest.mark.parametrize("page", ["decisions.md", "decisions.zh-CN.md"])
def test_the_pages_name_every_field(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text("utf-8")
    assert [name for name in DecisionBody.model_fields if f"`{name}`" not in text] == []
