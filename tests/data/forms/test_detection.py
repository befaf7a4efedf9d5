"""Which form a file has, by the keys of its rows, and what each family makes of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_cases import BUILT_IN, Case, case_of

from hanlin.core.errors import DataError
from hanlin.data.expand import FileRecords, open_part
from hanlin.data.prepare import prepare
from hanlin.data.report import render_report
from hanlin.recipe.settings import DataSettings

MakeCase = Callable[[str], Case]
Q, A = "床前明月光，", "疑是地上霜。"
SHAPES: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": Q, "input": "", "output": A},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "messages": {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
    "prompt_completion": {"query": Q, "response": A},
    "指令": {"指令": Q, "输入": "", "输出": A},
    "问题": {"问题": Q, "答案": A},
    "提问": {"提问": Q, "回答": A},
}
CHINESE = {"指令": "alpaca", "问题": "prompt_completion", "提问": "prompt_completion"}
OWN: dict[str, dict[str, Any]] = {
    "chatglm2": {"prompt": Q, "response": A},
    "cpm1": {"prompt": Q, "answer": A},
    "cpm1_t5": {"source": Q, "target": A},
    "cpm2": {"source": Q, "target": A},
    "cpm_bee": {"input": Q, "<ans>": A},
}


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> MakeCase:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            made[name] = case_of(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


def opened(case: Case, folder: Path, rows: list[Any], *, is_asked: bool = False, **settings: Any) -> FileRecords:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return open_part(path, DataSettings(**settings), case.processor, is_asked=is_asked)


@pytest.mark.parametrize("family", BUILT_IN)
def test_every_shape_becomes_the_sample_of_the_family_s_own_record(
    family: str, make_case: MakeCase, tmp_path: Path
) -> None:
    case = make_case(family)
    own = case.processor.sample(opened(case, tmp_path, [OWN[family]])[0])
    for name, row in SHAPES.items():
        source = opened(case, tmp_path, [row])
        assert source.form is not None
        assert source.form.reading.form is not None
        assert source.form.reading.form.name == CHINESE.get(name, name)

        sample = case.processor.sample(source[0])
        assert {key: value.tolist() for key, value in sample.inputs.items()} == {
            key: value.tolist() for key, value in own.inputs.items()
        }
        assert sample.labels.tolist() == own.labels.tolist()


@pytest.mark.parametrize("family", BUILT_IN)
def test_a_family_s_own_record_is_never_anything_else(family: str, make_case: MakeCase, tmp_path: Path) -> None:
    case, own = make_case(family), OWN[family]
    beside = {**SHAPES["messages"], **SHAPES["alpaca"], **own}
    assert opened(case, tmp_path, [beside])[0] == beside
    assert opened(case, tmp_path, [own], is_asked=True)[0] == own


@pytest.mark.parametrize("family", BUILT_IN)
def test_questions_without_answers_are_asked_and_answered_in_their_own_form(
    family: str, make_case: MakeCase, tmp_path: Path
) -> None:
    case = make_case(family)
    rows = [{"instruction": Q}, {"conversations": SHAPES["sharegpt"]["conversations"][:1]}, {"query": Q}]
    for row in rows:
        source = opened(case, tmp_path, [row], is_asked=True)
        prompt = case.processor.prompt(source[0])
        ids = case.tokenizer.encode(A)
        [said] = case.processor.answer_texts(prompt, ids)
        wanted = {
            "instruction": {"instruction": Q, "output": said},
            "conversations": {"conversations": [*row.get("conversations", []), {"from": "gpt", "value": said}]},
            "query": {"query": Q, "response": said},
        }
        assert source.answered(0, case.processor.answer(prompt, ids)) == wanted[next(iter(row))]


def test_the_report_says_what_was_read_and_what_was_not(make_case: MakeCase, tmp_path: Path) -> None:
    case, path = make_case("cpm1"), tmp_path / "rows.jsonl"
    turns = SHAPES["messages"]["messages"]
    rows = [{"messages": turns, "id": 1}, {"messages": [*turns, *turns]}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    settings = DataSettings(cache=tmp_path / "cache", max_length=64)
    counts = prepare([path], case.processor, settings, tokenizer=case.tokenizer, progress=False).counts
    assert counts.read_as == {"messages (OpenAI) (told from messages)": 2}
    assert counts.notes == {
        'key "id" is not read': 1,
        "a dialogue of several answers; the last one is learned, the others are read": 1,
    }


def test_earlier_turns_become_part_of_the_question(make_case: MakeCase, tmp_path: Path) -> None:
    turns = [("system", "低头"), ("user", "床"), ("assistant", "前"), ("user", "明"), ("assistant", "月")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    told = "用户：床\nAI：前\n用户：明\nAI："
    assert opened(make_case("cpm1"), tmp_path, [row])[0] == {"prompt": f"低头\n{told}", "answer": "月"}
    assert opened(make_case("cpm2"), tmp_path, [row])[0] == {"source": f"低头\n{told}", "target": "月"}
    assert opened(make_case("cpm_bee"), tmp_path, [row])[0] == {
        "input": told.replace("\n", "\n<sep>"),
        "prompt": "低头",
        "<ans>": "月",
    }


def test_texts_of_other_forms_hold_no_marks(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("cpm_bee")
    record = opened(case, tmp_path, [{"instruction": "<mask_0> a<b", "output": "</s>"}])[0]
    assert record == {"input": "<<mask_0> a<<b", "<ans>": "<</s>"}
    case.processor.check(record)
    assert case.processor.answer_of(record) == "</s>"


def test_plain_text_is_learned_where_a_family_learns_texts(make_case: MakeCase, tmp_path: Path) -> None:
    row = {"text": Q + A}
    for family, record in {"cpm1": row, "cpm1_t5": row, "chatglm2": row, "cpm_bee": {"<ans>": Q + A}}.items():
        case = make_case(family)
        assert opened(case, tmp_path, [row])[0] == record
        case.processor.check(record)
    with pytest.raises(DataError, match="text"):
        opened(make_case("cpm2"), tmp_path, [row])[0]


def test_tools_are_refused_where_a_family_has_no_place_for_them(make_case: MakeCase, tmp_path: Path) -> None:
    row = {**SHAPES["messages"], "tools": [{"type": "function", "function": {"name": "weather"}}]}
    for family in ("cpm1", "cpm1_t5", "cpm2", "cpm_bee"):
        with pytest.raises(DataError, match="tools and their calls have no place"):
            opened(make_case(family), tmp_path, [row])[0]


@pytest.mark.parametrize(("first", "second"), [("alpaca", "messages"), ("messages", "own"), ("own", "sharegpt")])
def test_a_file_of_several_forms_has_bad_rows(first: str, second: str, make_case: MakeCase, tmp_path: Path) -> None:
    shapes = {**SHAPES, "own": OWN["cpm1"]}
    source = opened(make_case("cpm1"), tmp_path, [shapes[first], shapes[second], shapes[first]])
    source[0], source[2]
    with pytest.raises(DataError, match="but the first rows of its file are"):
        source[1]


def test_a_format_that_is_stated_overrules_the_keys(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("cpm1")
    both = {**SHAPES["alpaca"], "text": "月"}
    assert opened(case, tmp_path, [both])[0] == both
    source = opened(case, tmp_path, [both], format="alpaca")
    assert source[0] == OWN["cpm1"]
    assert source.read_as == "alpaca (as data.format says)"
    with pytest.raises(DataError, match='no "messages"'):
        opened(case, tmp_path, [both], format="messages")[0]


def test_what_may_be_two_forms_is_not_guessed(make_case: MakeCase, tmp_path: Path) -> None:
    row = {**SHAPES["alpaca"], **SHAPES["messages"]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*messages.* or alpaca .*data\.format=alpaca"):
        opened(make_case("chatglm2"), tmp_path, [row])


def test_preferences_are_recognised_and_wait_for_their_method(make_case: MakeCase, tmp_path: Path) -> None:
    row = {"prompt": Q, "chosen": A, "rejected": "月"}
    for family in BUILT_IN:
        with pytest.raises(DataError, match=r"read as preference rows .*data\.transform"):
            opened(make_case(family), tmp_path, [row])


def test_a_row_without_an_answer_is_a_bad_row(make_case: MakeCase, tmp_path: Path) -> None:
    source = opened(make_case("chatglm2"), tmp_path, [{"messages": SHAPES["messages"]["messages"][:1]}])
    with pytest.raises(DataError, match="no answer to learn"):
        source[0]


def test_a_table_s_empty_cells_are_no_keys(make_case: MakeCase, tmp_path: Path) -> None:
    row = {**SHAPES["alpaca"], "input": None, "messages": None, "chosen": None}
    assert opened(make_case("cpm1"), tmp_path, [row])[0] == OWN["cpm1"]


def test_the_report_is_rendered_with_the_form(make_case: MakeCase, tmp_path: Path) -> None:
    from rich.console import Console

    case, path = make_case("chatglm2"), tmp_path / "rows.jsonl"
    path.write_text(json.dumps(SHAPES["sharegpt"], ensure_ascii=False) + "\n", encoding="utf-8")
    settings = DataSettings(cache=tmp_path / "cache", max_length=64)
    made = prepare([path], case.processor, settings, tokenizer=case.tokenizer, progress=False)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(render_report(made.report))
    assert "read as" in shown.get()
    assert "ShareGPT (told from conversations)" in shown.get()


def test_named_columns_are_looked_for_in_every_row(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    named = {"chatglm2": "prompt_column", "cpm1": "prompt_column", "cpm1_t5": "source_column", "cpm2": "source_column"}
    for family, option in named.items():
        case = replace(case_of(family, tmp_path_factory.mktemp(family)), options={option: "content"})
        source = opened(case, tmp_path, [SHAPES["prompt_completion"]])
        assert source.read_as == "the model's own records"
        with pytest.raises(DataError, match="content"):
            case.processor.check(source[0])
