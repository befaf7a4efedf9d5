"""Tools over HTTP: a tiny ChatGLM3 and a tiny GLM-4 that have learned one call by heart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2_pieces import small_byte_ranks, small_pieces
from test_routes import client_of, post

from hanlin.data.forms.messages import FORM
from hanlin.generate.engine import Engine
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.chatglm2.tool_calls import may_become_call, read_call
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]
TOOLS: Any = [{"type": "function", "function": {"name": "ab", "parameters": {"type": "object"}}}]
ASKED: Any = [{"role": "user", "content": "你好"}]
CALL = {"name": "ab", "arguments": {"a": "好", "b": 2}}


@pytest.fixture(scope="module", params=["chatglm3", "glm4"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model that calls the tool where it is described, and says something else where it is not."""
    file = tmp_path_factory.mktemp("vocab") / "tokenizer.model"
    if request.param == "glm4":
        file.write_bytes(small_byte_ranks())
        tokenizer = ChatGlm2Tokenizer.load(Path(file))
    else:
        tokenizer = ChatGlm2Tokenizer(small_pieces()).with_roles()
    config = ChatGlm2Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2, head_dim=16, num_kv_heads=1,
        ffn_size=32, max_length=800, generation=request.param, pad_id=0, end_ids=(tokenizer.end,),
    )  # fmt: skip
    processor, model = ChatGlm2Processor(tokenizer, config), family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    called = {"role": "assistant", "tool_calls": [{"function": CALL}]}
    answered = [*ASKED, called, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "好"}]
    rows = [{"messages": answered, "tools": TOOLS}, {"messages": [*ASKED, {"role": "assistant", "content": "你"}]}]
    samples = [processor.sample(processor.record_of(FORM.read(row))) for row in rows]
    batches = [processor.collate([[sample]], sample.length) for sample in samples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = sum(model(**b.inputs, labels=b.labels, weights=b.weights) / b.loss_tokens for b in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    return Engine(model.requires_grad_(False).eval(), processor, max_length=config.max_length)


def test_a_tool_is_called_and_its_answer_is_read(serve: Start, caller: Engine) -> None:
    client = client_of(serve(engine=caller)[0])
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 60, "tools": TOOLS}
    [choice] = client.chat.completions.create(messages=ASKED, tool_choice="auto", **asked).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "ab", CALL["arguments"])
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    said = [*ASKED, choice.message.model_dump(exclude_none=True), result]
    [after] = client.chat.completions.create(messages=said, **asked).choices
    assert (after.message.content, after.finish_reason, after.message.tool_calls) == ("好", "stop", None)


def test_a_call_comes_whole_in_a_stream_and_a_text_as_it_is_written(serve: Start, caller: Engine) -> None:
    client = client_of(serve(engine=caller)[0])
    asked: dict[str, Any] = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 60, "stream": True}
    *pieces, last = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, tools=TOOLS)]
    assert all(not piece.delta.content for piece in pieces)
    [call] = last.delta.tool_calls or []
    assert (call.index, last.finish_reason) == (0, "tool_calls")
    assert call.function is not None
    assert (call.function.name, json.loads(call.function.arguments or "")) == ("ab", CALL["arguments"])
    for without in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        told = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, **without)]
        assert "".join(piece.delta.content or "" for piece in told) == "你"
        assert told[-1].finish_reason == "stop"


def test_a_model_without_calls_refuses_tools(serve: Start, engine_of: Callable[[str], Engine]) -> None:
    for name in ("chatglm2", "cpm_bee"):
        url, _ = serve(engine=engine_of(name))
        status, answer = post(url, "/v1/chat/completions", {"messages": ASKED, "tools": TOOLS})
        assert (status, answer["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('ab\n{"a": 1}', {"a": 1}),
        ('ab \n ```json\n{"a": {"b": [1]}}\n```', {"a": {"b": [1]}}),
        ("ab\n```python\ntool_call(a='好', b=[1, -2.5], c=None)\n```", {"a": "好", "b": [1, -2.5], "c": None}),
        ("ab\ntool_call()", {}),
        ("ab\ntool_call(a=__import__('os').getcwd())", None),
        ("ab\ntool_call(1)", None),
        ("ab\ntool_call(**{})", None),
        ("ab\n[1]", None),
        ("ab\n", None),
        ("ab", None),
        ("abc\n{}", None),
        ("好的。\nab\n{}", None),
        ("ab\n" + "(" * 3000, None),
    ],
)
def test_what_is_a_call_is_told_by_its_form(text: str, arguments: dict[str, Any] | None) -> None:
    call = read_call(text, ["ab"])
    assert (call and call.arguments) == arguments
    assert call is None or call.name == "ab"


def test_only_the_beginning_of_a_tool_is_held_back() -> None:
    assert [may_become_call(text, ["ab"]) for text in ("", "a", "ab", "ab\n", "ab\n{", "b", "abc", "a\n")] == [
        True, True, True, True, True, False, False, False,
    ]  # fmt: skip
