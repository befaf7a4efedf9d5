"""Each form by itself: what its rows say, what is odd about them, how an answer is written into them."""

from __future__ import annotations

from typing import Any

import pytest

from hanlin.core.errors import DataError
from hanlin.data.forms.content import ChatMessage, Conversation, PlainText, Preference, ToolCall
from hanlin.data.forms.detection import FORMS

Q, A = ChatMessage("user", "问"), ChatMessage("assistant", "答")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def said(*messages: ChatMessage, tools: tuple[Any, ...] = ()) -> Conversation:
    return Conversation(messages, tools)


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


SAYS: list[tuple[str, dict[str, Any], Any]] = [
    ("alpaca", {"instruction": "问", "input": "", "output": "答"}, said(Q, A)),
    ("alpaca", {"instruction": "译", "input": "问", "output": "答"}, said(ChatMessage("user", "译\n问"), A)),
    ("alpaca", {"instruction": "译", "context": "问", "response": "答"}, said(ChatMessage("user", "译\n问"), A)),
    (
        "alpaca",
        {"instruction": "问", "output": "答", "system": "你是", "history": [["甲", "乙"]]},
        said(ChatMessage("system", "你是"), ChatMessage("user", "甲"), ChatMessage("assistant", "乙"), Q, A),
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, said(Q, A)),
    ("sharegpt", {"conversations": turns(("user", "问"), ("assistant", "答"))}, said(Q, A)),
    (
        "sharegpt",
        {
            "system": "你是",
            "tools": '[{"name": "weather"}]',
            "conversations": [
                {"from": "human", "value": "问"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
                {"from": "observation", "value": "晴"},
                {"from": "gpt", "value": "答"},
            ],
        },
        said(
            ChatMessage("system", "你是"),
            Q,
            ChatMessage("assistant", calls=(ToolCall("weather", {"city": "北京"}),)),
            ChatMessage("tool", "晴"),
            A,
            tools=({"name": "weather"},),
        ),
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "你是"},
                {"role": "user", "content": [{"type": "text", "text": "问"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "京"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "晴"},
                {"role": "assistant", "content": "答", "weight": 0},
            ],
            "tools": [WEATHER],
        },
        said(
            ChatMessage("system", "你是"),
            Q,
            ChatMessage("assistant", calls=(ToolCall("weather", {"city": "京"}),)),
            ChatMessage("tool", "晴"),
            ChatMessage("assistant", "答", is_learned=False),
            tools=(WEATHER,),
        ),
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "你是", "tools": [WEATHER]},
                {"role": "user", "content": "问"},
                {"role": "assistant", "metadata": "weather", "content": "```python\ntool_call()\n```"},
            ]
        },
        said(
            ChatMessage("system", "你是"),
            Q,
            ChatMessage("assistant", calls=(ToolCall("weather", "```python\ntool_call()\n```"),)),
            tools=(WEATHER,),
        ),
    ),
    ("prompt_completion", {"prompt": "问", "completion": "答"}, said(Q, A)),
    ("prompt_completion", {"query": "问", "response": "答"}, said(Q, A)),
    ("prompt_completion", {"question": "问", "answer": "答"}, said(Q, A)),
    ("prompt_completion", {"input": "问", "output": "答"}, said(Q, A)),
    ("prompt_completion", {"content": "问", "summary": "答"}, said(Q, A)),
    ("prompt_completion", {"text": "问", "summary": "答"}, said(Q, A)),
    (
        "prompt_completion",
        {"prompt": turns(("user", "问")), "completion": turns(("assistant", "答"))},
        said(Q, A),
    ),
    ("text", {"text": "床前"}, PlainText("床前")),
    (
        "preference",
        {"prompt": "问", "chosen": "答", "rejected": "错"},
        Preference(said(Q, A), said(Q, ChatMessage("assistant", "错"))),
    ),
    (
        "preference",
        {
            "chosen": turns(("user", "问"), ("assistant", "答")),
            "rejected": turns(("user", "问"), ("assistant", "错")),
        },
        Preference(said(Q, A), said(Q, ChatMessage("assistant", "错"))),
    ),
    (
        "preference",
        {
            "conversations": [{"from": "human", "value": "问"}],
            "chosen": {"from": "gpt", "value": "答"},
            "rejected": {"from": "gpt", "value": "错"},
        },
        Preference(said(Q, A), said(Q, ChatMessage("assistant", "错"))),
    ),
]


@pytest.mark.parametrize(("name", "row", "content"), SAYS, ids=[f"{name}{at}" for at, (name, _, _) in enumerate(SAYS)])
def test_what_a_row_says_and_that_its_keys_tell_so(name: str, row: dict[str, Any], content: Any) -> None:
    assert FORMS[name].read(row) == content
    assert {other for other, form in FORMS.items() if form.fits(row) == "whole"} - {name} <= {"sharegpt"}
    assert FORMS[name].fits(row) == "whole"
    assert FORMS[name].unread(row) == []


USER = {"role": "user", "content": "问"}
ODD = [
    ("messages", {"messages": turns(("narrator", "问"))}, "unknown role 'narrator'; known: system"),
    ("messages", {"messages": turns(("user", "问"), ("user", "问"))}, "message 2, by the user: two user turns"),
    ("messages", {"messages": turns(("user", "问"), ("assistant", " "))}, "message 2, by the assistant: an empty turn"),
    ("messages", {"messages": turns(("user", "问"), ("assistant", "答"), ("assistant", "答"))}, "two assistant turns"),
    ("messages", {"messages": turns(("assistant", "答"), ("user", "问"))}, "the dialogue begins with an answer"),
    ("messages", {"messages": turns(("user", "问"), ("system", "你"))}, "a system message stands first"),
    ("messages", {"messages": turns(("user", "问"), ("tool", "晴"))}, "no tool was called before it"),
    ("messages", {"messages": turns(("system", "你"))}, "no question"),
    ("messages", {"messages": []}, "no question"),
    ("messages", {"messages": "问"}, "expected a list of turns, found the text '问'"),
    ("messages", {"messages": ["问"]}, "expected an object .*turn 1 of \"messages\""),
    ("messages", {"messages": turns(("user", 5))}, '"content": expected a text, found the number 5 .turn 1'),
    ("messages", {"messages": [{"content": "问"}]}, "says not who speaks"),
    ("messages", {"messages": turns(("user", [{"type": "image_url", "image_url": {}}]))}, "'image_url': only texts"),
    ("messages", {"messages": turns(("user", "问")), "tools": "["}, '"tools": a text that is no JSON'),
    ("messages", {"messages": turns(("user", "问")), "tools": ["weather"]}, '"tools": expected a list of descriptions'),
    (
        "messages",
        {"messages": [{"role": "user", "content": "问", "tool_calls": [{"function": {"name": "a"}}]}]},
        "tools are called by the assistant, not by 'user'",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
        "the arguments of the call of 'a' are no JSON",
    ),
    (
        "messages",
        {"messages": [*turns(("user", "问")), {"role": "assistant", "tool_calls": [{"name": "a"}]}, USER]},
        "the answer of the tool that was called is missing",
    ),
    ("messages", {"messages": [{"role": "assistant", "content": "答", "weight": 2}]}, '"weight": expected 0'),
    ("sharegpt", {"conversations": [{"from": "function_call", "value": "x"}]}, "expected JSON"),
    ("alpaca", {"instruction": " ", "output": "答"}, '"instruction" is empty'),
    ("alpaca", {"instruction": "问", "output": ["答"]}, '"output": expected a text, found a list of 1'),
    ("alpaca", {"instruction": "问", "output": "答", "history": [["甲"]]}, '"history" 1: expected a .question'),
    ("alpaca", {"instruction": "问", "output": "答", "response": "答"}, "both 'output' and 'response' could be"),
    ("prompt_completion", {"prompt": "问", "question": "问", "answer": "答"}, "could be the question; say which"),
    ("text", {"text": 5}, '"text": expected a text, found the number 5'),
    ("preference", {"prompt": "问", "chosen": "答", "rejected": ""}, '"rejected" is empty'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "reason"), ODD, ids=[str(at) for at in range(len(ODD))])
def test_an_odd_row_is_refused_with_its_place_and_the_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        FORMS[name].read(row)


def test_keys_that_nothing_reads_are_named() -> None:
    row = {"conversations": [{"from": "human", "value": "问", "lang": "zh"}], "id": "7"}
    assert FORMS["sharegpt"].unread(row) == ['key "id" is not read', 'key "lang" of a turn is not read']
    assert FORMS["alpaca"].unread({"instruction": "问", "output": "答", "id": 1}) == ['key "id" is not read']


@pytest.mark.parametrize(
    ("name", "row", "written"),
    [
        ("alpaca", {"instruction": "问", "id": 1}, {"instruction": "问", "id": 1, "output": "答"}),
        ("prompt_completion", {"query": "问", "response": ""}, {"query": "问", "response": "答"}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "问"}]},
            {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        ),
        (
            "messages",
            {"messages": turns(("user", "问"), ("assistant", "旧"))},
            {"messages": turns(("user", "问"), ("assistant", "答"))},
        ),
        (
            "prompt_completion",
            {"prompt": turns(("user", "问"))},
            {"prompt": turns(("user", "问")), "completion": turns(("assistant", "答"))},
        ),
        ("alpaca", {"指令": "问"}, {"指令": "问", "输出": "答"}),
        ("prompt_completion", {"提问": "问"}, {"提问": "问", "回答": "答"}),
    ],
)
def test_an_answer_stands_where_the_form_has_it(name: str, row: dict[str, Any], written: dict[str, Any]) -> None:
    assert FORMS[name].write(row, "答") == written
