"""Every message has a Chinese one, with the same things put in; a finished message is found by its constant parts."""

from __future__ import annotations

import ast
import io
import re
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from message_sources import SOURCE, is_sentence, messages_of

from hanlin.cli.main import main
from hanlin.core.errors import DataError
from hanlin.data.sources.opening import open_records
from hanlin.evaluation.decisions.questions import read_questions
from hanlin.models.cpm_bee.answers import OPTION_KEYS, candidates
from hanlin.reference.messages import read_labels, read_messages, said, say_in_chinese

# Rooms that tell users nothing in sentences of their own: answers to programs, pages.
OTHER_ROOMS = {"serve", "reference"}
ROOMS = sorted({path.parent.name for path in SOURCE.glob("*/__init__.py")} - OTHER_ROOMS)
# Files whose texts are no messages: written files in both languages, and a page.
LEFT_OUT = {
    "api": {"first_recipe.py", "model_card.py"},
    "training": {"report.py", "report_page.py"},
    "diagnosis": {"npu_operations.py"},
}
LIBRARIES = "libraries"
"""The catalogue of what others say within our messages."""
FOLDER = SOURCE / "reference/messages"


def _missing(room: str) -> dict[str, str]:
    """Messages that no catalogue has, and where they stand."""
    return {text: place for text, place in _said(room).items() if is_sentence(text) and text not in _known()}


def _unused(room: str) -> list[str]:
    return [text for text in read_messages(room) if text not in _said(room)]


@cache
def _said(room: str) -> dict[str, str]:
    return messages_of(room, LEFT_OUT.get(room, set()))


@cache
def _known() -> frozenset[str]:
    """What is said in Chinese too, in whatever room."""
    return frozenset(text for room in (*ROOMS, LIBRARIES) for text in read_messages(room)) | read_labels().keys()


def _told(missing: dict[str, str]) -> str:
    return "".join(f'\n- en: "{text}"   # {place}\n  zh: ...' for text, place in missing.items())


@pytest.mark.parametrize("room", ROOMS)
def test_every_message_has_a_chinese_one_and_no_other_has(room: str) -> None:
    missing, unused = _told(_missing(room)), "\n".join(_unused(room))
    assert not missing, f"add to {FOLDER}/{room}.yaml, with the Chinese one (null if no user reads it):{missing}"
    assert not unused, f"nothing in {room}/ says this any more; take it out of {FOLDER}/{room}.yaml:\n{unused}"


def test_all_catalogues_are_of_rooms() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*ROOMS, LIBRARIES}


def _fields(template: str) -> Sequence[str]:
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


@pytest.mark.parametrize("room", [*ROOMS, LIBRARIES])
def test_a_translation_puts_in_everything_once_and_is_chinese(room: str) -> None:
    for english, chinese in read_messages(room).items():
        if chinese is None:
            continue
        fields, count = _fields(chinese), len(_fields(english))
        assert fields == [""] * count or sorted(fields) == [str(number) for number in range(count)], english
        assert re.search("[\u4e00-\u9fff]", chinese) or chinese == english, f"no Chinese: {chinese}"


@pytest.mark.parametrize("room", [*ROOMS, LIBRARIES])
def test_a_translation_keeps_settings_and_commands(room: str) -> None:
    """Names with a dot, an underscore or two dashes are written as in English."""
    for english, chinese in read_messages(room).items():
        names = re.findall(r"(?<![\w{}])(?:--[a-z-]+|[a-z]+[_.][a-z_.]*[a-z])", english) if chinese else ()
        assert not (lost := [name for name in names if name not in str(chinese)]), f"{lost} of {english}"


def test_a_message_within_a_message_is_translated_too() -> None:
    text = "r.yaml:3: train.lrr: there is no such setting; did you mean 'train.lr'?"
    assert say_in_chinese(text) == "r.yaml:3: train.lrr: 没有这个设置；是否想写 'train.lr'？"
    text = "expected a valid integer, unable to parse string as an integer; found 'many'"  # the inner one is the longer
    assert say_in_chinese(text) == "应为整数，实际为 'many'"


def test_what_a_user_wrote_stays_as_it_is() -> None:
    assert say_in_chinese("train.x: expected a whole number; found 'at least 3'").endswith("'at least 3'")
    assert say_in_chinese("half of it, cat least 3") == "half of it, cat least 3"


@pytest.mark.parametrize("place", ["", "hanlin: ", "  r.yaml:2: data.train: "])
def test_a_message_that_begins_otherwise_in_chinese_leaves_its_place_in_front(place: str) -> None:
    assert say_in_chinese(f"{place}3 of the 40 rows cannot be used.") == f"{place}这 40 行中有 3 行无法使用。"


def test_a_message_that_ends_otherwise_in_chinese_leaves_the_rest_behind() -> None:
    text = """a.jsonl:5: not JSON: Expecting ',' delimiter at column 36, near '"x" "y"' (also 7)"""
    assert say_in_chinese(text) == """a.jsonl:5: 不是 JSON：应有分隔符 ','（第 36 列），附近是 '"x" "y"' （7 也是）"""
    text = "there is no such setting; did you mean 'train.lr' or 'train.clip'?"
    assert say_in_chinese(text) == "没有这个设置；是否想写 'train.lr' 或 'train.clip'？"


def test_what_a_message_quotes_stays_as_it_is() -> None:
    """Also where it is a word of its own elsewhere, as the heading of argparse's options is."""
    assert say_in_chinese('"options" is empty').startswith('"options"')


def test_keys_that_rows_may_have_stay_as_they_are() -> None:
    with pytest.raises(DataError) as refused:
        candidates({"input": "床前", "<ans>": ""})
    told = say_in_chinese(f"rows.jsonl:1: {refused.value}")
    assert told.startswith("rows.jsonl:1: 它没有可选的选项；以下各键之一应为 dict：")
    for key in OPTION_KEYS:
        assert f'"{key}"' in told


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({"choices": "ab"}, "questions.0.choices：应为列表，实际为 'ab'"),
        ({"choices": [{"value": "a"}]}, "questions.0.choices：应为至少 2，实际为 [{'value': 'a'}]"),
        (
            {"choices": [{"value": 3}, {"value": "b"}]},
            "questions.0.choices.0.value：应为文本或 true 或 false，实际为 3",
        ),
        ({"name": 3}, "questions.0.name：应为文本，实际为 3"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_in_chinese(question: dict[str, Any], told: str) -> None:
    good = {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "b"}]}
    with pytest.raises(DataError) as refused:
        read_questions([{**good, **question}])
    assert say_in_chinese(str(refused.value)) == told


def test_what_was_found_is_said_in_chinese_whatever_was_expected() -> None:
    told = say_in_chinese("a.jsonl:1: input: expected a text, or a list of messages and calls of tools, found 3")
    assert told == "a.jsonl:1: input: 应为文本，或由消息和工具调用组成的列表，实际为 3"


def test_a_message_that_nobody_knows_stays_english() -> None:
    assert say_in_chinese("something quite new\nin two lines") == "something quite new\nin two lines"


@pytest.mark.parametrize(
    "text",
    [
        "g.yaml: there is no such cell; docs/comparing.md shows one",  # "there is no {}"
        "there is no route /v1/x",
        "300 answers are more than this server holds at once (64); ask for less",  # "more than {}"
        "a.json: b.bin lists this file, but it is missing; restore it",  # "{} is missing"
        "no config.json beside the weights at all; copy it",
    ],
)
def test_no_clause_is_half_chinese(text: str) -> None:
    assert say_in_chinese(text) == text


def test_a_clause_that_nobody_knows_leaves_the_others_chinese() -> None:
    assert say_in_chinese("unable to open it; did you mean 'b'?") == "unable to open it；是否想写 'b'？"
    assert say_in_chinese("a.txt cannot be read: broken pipe here") == "a.txt 无法读取：broken pipe here"


def test_the_command_line_says_it_in_the_language_of_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in (("zh", "没有这个配置"), ("en", "there is no such recipe")):
        monkeypatch.setenv("HANLIN_LANG", name)
        assert main(["check", "nowhere.yaml"]) == 2
        assert expected in capsys.readouterr().err


def test_a_terminal_without_chinese_characters_gets_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANLIN_LANG", "zh")
    text = "is empty; name the training files"
    assert said(text, io.TextIOWrapper(io.BytesIO(), encoding="latin-1")) == text
    assert said(text, io.TextIOWrapper(io.BytesIO(), encoding="gb18030")) == "为空；请写出训练文件"


def test_a_program_reads_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised can be searched for, and compared, whatever the locale."""
    monkeypatch.setenv("HANLIN_LANG", "zh")
    with pytest.raises(DataError, match="there is no such file"):
        open_records(Path("nowhere.jsonl"))


def test_a_message_of_many_clauses_takes_no_time_by_their_square() -> None:
    text = "; ".join(f"train.x{number}: there is no such setting" for number in range(800))
    begin = time.process_time()
    told = say_in_chinese(text)
    assert told.count("没有这个设置") == 800
    assert time.process_time() - begin < 20  # minutes, and too deep a recursion, if it were


def _headings() -> dict[str, str]:
    """Constants that are headings, titles and cells of tables, and where they stand."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name("Table") | ast.Attribute(attr="add_column" | "add_row")):
                    values = [*node.args, *(one.value for one in node.keywords if one.arg in ("title", "caption"))]
                    for value in values:
                        if isinstance(value, ast.Constant) and isinstance(value.value, str):
                            found[value.value] = f"{path.relative_to(SOURCE)}:{node.lineno}"
    return found


def test_headings_of_tables_are_known_in_chinese() -> None:
    headings = _headings()
    missing = {text: place for text, place in headings.items() if re.search("[A-Za-z]{2}", text)}
    missing = {text: place for text, place in missing.items() if text not in _known()}
    assert len(headings) > 20
    assert not missing, f"add to {FOLDER.parent}/labels.yaml:{_told(missing)}"
