"""Rows of each form with values of the wrong kind anywhere: a `DataError` and nothing else, for every family."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from family_cases import BUILT_IN, case_of

from hanlin.core.errors import DataError
from hanlin.data.forms.detection import FORMS, tell_row
from hanlin.data.preview import preview
from hanlin.data.sources.jsonl import write_jsonl
from hanlin.recipe.settings import DataSettings

TRIES = 250
ODD: list[Any] = [
    None, True, 0, -1, 1.5, "", " ", "<", "[", '{"name": 5}', "床", [], {}, [None], ["床"], [["床"]], {"床": None},
    {"role": "user"}, {"role": ["user"], "content": "床"}, {"from": "gpt", "value": 5}, {"type": "text"}, "assistant",
]  # fmt: skip
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": '{"b": 1}'}}]}
ROWS: list[dict[str, Any]] = [
    {"instruction": "床", "input": "前", "output": "明", "history": [["月", "光"]], "system": "霜"},
    {
        "conversations": [
            {"from": "human", "value": "床"},
            {"from": "function_call", "value": '{"name": "a", "arguments": {}}'},
            {"from": "observation", "value": "前"},
            {"from": "gpt", "value": "明"},
        ],
        "tools": [{"type": "function", "function": {"name": "a"}}],
    },
    {
        "messages": [
            {"role": "system", "content": "霜", "tools": [{"name": "a"}]},
            {"role": "user", "content": [{"type": "text", "text": "床"}]},
            CALL,
            {"role": "tool", "content": "前"},
            {"role": "assistant", "content": "明", "weight": 1},
        ]
    },
    {"prompt": [{"role": "user", "content": "床"}], "completion": [{"role": "assistant", "content": "前"}]},
    {"query": "床", "response": "前"},
    {"text": "床前明月光疑是地上霜"},
    {"conversations": [{"from": "human", "value": "床"}], "chosen": {"from": "gpt", "value": "前"}, "rejected": "明"},
]


def spots(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*above, key)
        yield from spots(below, (*above, key))


def spoilt(rng: random.Random) -> dict[str, Any]:
    """A row in which one or two values are others."""
    row = copy.deepcopy(rng.choice(ROWS))
    for _ in range(rng.randint(1, 2)):
        *path, last = rng.choice(list(spots(row)))
        inside = row
        for key in path:
            inside = inside[key]
        inside[last] = copy.deepcopy(rng.choice(ODD))
    return row


def is_used(use: Callable[[], object]) -> bool:
    try:
        use()
    except DataError:
        return False
    return True


@pytest.mark.parametrize("family", BUILT_IN)
def test_a_spoilt_row_is_learned_asked_or_refused(family: str, tmp_path: Path) -> None:
    case, rng = case_of(family, tmp_path), random.Random(family)
    processor, used = case.processor, 0
    for _ in range(TRIES):
        row = spoilt(rng)

        def learn(row: Any = row) -> None:
            processor.sample(tell_row(row, processor).record(row))

        def ask(row: Any = row) -> None:
            reading = tell_row(row, processor)
            prompt = processor.prompt(reading.record(row))
            reading.answered(row, processor.answer(prompt, case.tokenizer.encode("光")))

        used += is_used(learn)
        is_used(ask)
        for form in FORMS.values():
            is_used(lambda form=form, row=row: (form.fits(row), form.read(row)))
            form.unread(row)
    assert used


def test_a_file_of_spoilt_rows_is_shown(tmp_path: Path) -> None:
    rng = random.Random(7)
    case = case_of("chatglm2", tmp_path)
    for number in range(8):
        write_jsonl(tmp_path / f"{number}.jsonl", [spoilt(rng) for _ in range(40)])
        for processor in (None, case.processor):
            path = tmp_path / f"{number}.jsonl"
            is_used(lambda at=path, by=processor: preview(at, DataSettings(), by, shown=3, most=100))
