"""Raw rows -> records, by a mapping or by a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from letter_family import write_rows

from hanlin.core.errors import DataError
from hanlin.data.transform import check_mapping, open_transformed, transform
from hanlin.recipe.settings import DataSettings

ROW = {"title": "静夜思", "text": {"first": "床前", "rest": {"second": "明月光"}}, "choices": {"A": "好", "B": "坏"}}


@pytest.mark.parametrize(
    ("mapping", "record"),
    [
        ({"标题": "$title", "任务": "写诗"}, {"标题": "静夜思", "任务": "写诗"}),
        ({"<ans>": {"一": "$text.first"}}, {"<ans>": {"一": "床前"}}),
        ({"<ans>.一": "$text.first", "<ans>.二": "$text.rest.second"}, {"<ans>": {"一": "床前", "二": "明月光"}}),
        ({"*": "$*"}, ROW),
        ({"options.*": "$choices.*", "*": "$text.*"}, {"options": {"A": "好", "B": "坏"}, **ROW["text"]}),
        ({"a.*.b.*": "$*.*.*"}, None),
        ({"a.*.b": "$choices.*"}, {"a": {"A": {"b": "好"}, "B": {"b": "坏"}}}),
        ({"*": "$*", "text.first": "疑是"}, {**ROW, "text": {**ROW["text"], "first": "疑是"}}),
    ],
)
def test_a_mapping_makes_a_record(mapping: dict[str, Any], record: dict[str, Any] | None) -> None:
    before = repr(ROW)
    if record is None:
        with pytest.raises(DataError, match=r"as many \* on both sides; found 2 in the key and 3 in the value"):
            check_mapping(mapping)
    else:
        check_mapping(mapping)
        assert transform(mapping, ROW) == record
    assert repr(ROW) == before


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": "$text.third"}, r"'\$text.third', but the row has no key 'third' \(it has: first, rest\)"),
        ({"a": "$title.x"}, r"no key 'x' \(it has: str\)"),
        ({"a.*": "$title.*"}, r"no key '\*'"),
        ({"a": "$title", "a.b": "x"}, "'a.b', but 'a' has a value already"),
    ],
)
def test_what_a_row_cannot_give_is_named(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        transform(mapping, ROW)


def test_a_script_is_called_with_random_numbers_of_the_row(tmp_path: Path) -> None:
    rows, script = write_rows(tmp_path / "rows.jsonl", [{"a": "b"}] * 3), tmp_path / "make.py"
    script.write_text(
        "def transform(data, num_sample, r):\n    return {**data, 'n': str(num_sample), 'r': r.random()}\n"
    )
    source = open_transformed(rows, DataSettings(transform=script))
    made = [source[number] for number in range(3)]
    assert made == [source[number] for number in range(3)]
    assert len({record["r"] for record in made}) == 3
    assert (made[0]["a"], made[0]["n"], source.where(1)) == ("b", "0", f"{rows}:2")
    before = source.fingerprint
    script.write_text(script.read_text() + "# changed\n")
    assert open_transformed(rows, DataSettings(transform=script)).fingerprint != before


def test_a_script_that_fails_names_its_row(tmp_path: Path) -> None:
    rows, script = write_rows(tmp_path / "rows.jsonl", [{"a": "b"}]), tmp_path / "fails.py"
    script.write_text("def transform(data, num_sample, r):\n    return data['x']\n")
    with pytest.raises(KeyError) as caught:
        open_transformed(rows, DataSettings(transform=script))[0]
    assert caught.value.__notes__ == [f"{script} on {rows}:1"]
    (tmp_path / "empty.py").write_text("")
    for name, message in (("empty.py", "has no function transform"), ("no.py", "there is no")):
        with pytest.raises(DataError, match=message):
            open_transformed(rows, DataSettings(transform=tmp_path / name))[0]


def test_several_keys_make_one_text() -> None:
    mapping = {"input": {"$join": ["$title", "：", "$lines.first", "$more?"]}, "<ans>": "$text"}
    check_mapping(mapping)
    row = {"title": "静夜思", "lines": {"first": "床前"}, "text": "明月", "more": None}
    assert transform(mapping, row) == {"input": "静夜思：床前", "<ans>": "明月"}
    assert transform(mapping, {**row, "more": 7})["input"] == "静夜思：床前7"
    with pytest.raises(DataError, match="no key 'lines'"):
        transform(mapping, {"title": "静夜思", "text": "明月"})
    with pytest.raises(DataError, match=r"joins '\$lines.first', which is no text but \[1\]"):
        transform(mapping, {**row, "lines": {"first": [1]}})


@pytest.mark.parametrize("join", [[], "$a", ["$a.*"], ["$a", 5], None])
def test_a_join_of_what_is_no_text_is_refused(join: object) -> None:
    with pytest.raises(DataError, match=r"\$join"):
        check_mapping({"input": {"$join": join}})
