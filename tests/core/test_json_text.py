"""One set of rules for JSON, whichever file or argument it comes from."""

from __future__ import annotations

import gzip
import json
import pickle
import time
from pathlib import Path

import pytest

from hanlin.core.errors import ConfigError, DataError
from hanlin.core.files import read_json
from hanlin.core.json_text import MOST_LEVELS, parse_json, skip_value
from hanlin.data.mixture_file import read_mixture
from hanlin.data.sources import BadRowError, open_records
from hanlin.data.sources.bee import read_payload

BROKEN_RULES = {
    '{"a": 1, "a": 2}': "duplicate key 'a'",
    '{"b": {"a": 1, "a": 2}}': "duplicate key 'a'",
    '{"a": NaN}': "NaN is no JSON number",
    '{"a": -Infinity}': "-Infinity is no JSON number",
    '{"a": 1e400}': "1e400 is larger than any number",
    '{"a": 1' + "0" * 50 + "}": "has 51 digits",
    '{"a": "\\ud83d"}': "half a character: \\ud83d",
    '{"\\udc00": "a"}': "half a character: \\udc00",
    '{"a": ' + "[" * 200 + "]" * 200 + "}": "nested too deeply",
    '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}": "nested too deeply",
}
GOOD = '{"text": "{[", "n": [1, -2.5e3, true, null], "\\ud83d\\ude00": {"b": "\\\\\\""}}'


@pytest.mark.parametrize("text", BROKEN_RULES, ids=[text[:30] for text in BROKEN_RULES])
@pytest.mark.parametrize("form", ["lines", "packed lines", "list", "packed list"])
def test_rows_of_all_forms_break_the_same_rules(tmp_path: Path, text: str, form: str) -> None:
    whole = f"[{GOOD},\n{text},\n{GOOD}]" if "list" in form else "\n".join([GOOD, text, GOOD])
    path = tmp_path / "rows.json"
    path.write_bytes(gzip.compress(whole.encode()) if "packed" in form else whole.encode())
    source = open_records(path)
    assert source[0] == source[2] == json.loads(GOOD)
    with pytest.raises(BadRowError) as caught:
        source[1]
    assert caught.value.where.startswith(f"{path}:2")
    assert BROKEN_RULES[text] in caught.value.reason


@pytest.mark.parametrize("text", BROKEN_RULES, ids=[text[:30] for text in BROKEN_RULES])
def test_configurations_break_the_same_rules(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_json(path, ConfigError)
    assert str(caught.value).startswith(f"{path}: ")
    assert BROKEN_RULES[text] in str(caught.value)


@pytest.mark.parametrize(
    "value", [{"a": float("nan")}, {"a": float("inf")}, {"a": "\ud83d"}], ids=["nan", "inf", "half"]
)
def test_pickled_rows_hold_only_what_json_can_hold(value: object) -> None:
    with pytest.raises(ValueError, match=r"half a character|NaN or without end"):
        read_payload(pickle.dumps(value, 4))


def test_what_is_right_is_read_as_it_is() -> None:
    assert parse_json(f" {GOOD}\n") == json.loads(GOOD)
    deepest = "[" * MOST_LEVELS + "]" * MOST_LEVELS
    assert json.dumps(parse_json(deepest)) == deepest
    assert skip_value(f"x{GOOD}, 7", 1) == 1 + len(GOOD)
    with pytest.raises(json.JSONDecodeError, match="Extra data"):
        parse_json("{} 7")


def test_a_text_without_end_is_looked_through_once() -> None:
    start = time.process_time()
    with pytest.raises(json.JSONDecodeError, match="has no end"):
        skip_value('{"a": "' + '\\"' * 100_000, 0)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1, ]", "rows.json:1: not a JSON list: a comma stands before the list's end"),
        (b'[1,\n"\xff"]', "rows.json:2: not UTF-8: byte 0xff at byte 2 of the line"),
        ('["翰林"]'.encode("gb18030"), "it reads as GB18030"),
        ("[1]".encode("utf-16"), "the file is UTF-16"),
        (gzip.compress(b"[1, 2, 3]")[:-6], "damaged or cut off"),
        (b"[1, NaN]", "rows.json:1: not a JSON list: not JSON: NaN is no JSON number"),
    ],
    ids=["comma", "utf-8", "gb18030", "utf-16", "gzip", "nan"],
)
def test_a_list_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_records(path)


def test_a_list_of_data_sets_breaks_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    path.write_text('[{"task_name": "a", "task_name": "b", "dataset_name": "c", "path": "d"}]')
    with pytest.raises(ConfigError, match=r"sets.json:1 \(entry 1\): duplicate key 'task_name'"):
        read_mixture(path)
