"""Preparing data: bad and overlong rows, the cache, what the report says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import case_of
from letter_family import LetterProcessor, Letters, letters, write_rows
from rich.console import Console

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.data.bad_rows import lines_of
from hanlin.data.prepare import Prepared, prepare
from hanlin.data.processor import tried
from hanlin.data.report import Counts, make_report, render_report
from hanlin.data.sources.bee import write_bee
from hanlin.recipe.settings import DataSettings


def prepared(folder: Path, *paths: Path, processor: LetterProcessor | None = None, **settings) -> Prepared:
    made = DataSettings(**{"max_length": 16, "cache": folder / "cache", **settings})
    return prepare(paths, processor or LetterProcessor(), made, tokenizer=Letters(), progress=False)


def texts(data: Prepared) -> list[str]:
    return ["".join(map(chr, data.get(number).inputs["tokens"])) for number in range(len(data))]


def test_samples_come_back_as_they_were_encoded(tmp_path: Path) -> None:
    rows = [*letters(20), {"text": "", "<ans>": "x"}]
    one = write_rows(tmp_path / "a.jsonl", rows[:7])
    write_bee(tmp_path / "b", "part", rows[7:])
    data = prepared(tmp_path, one, tmp_path / "b")
    fresh = LetterProcessor()
    for number, row in enumerate(rows):
        ours, theirs = data.get(number), fresh.sample(row)
        assert ours.inputs.keys() == theirs.inputs.keys()
        for name, values in theirs.inputs.items():
            np.testing.assert_array_equal(ours.inputs[name], values)
            assert ours.inputs[name].dtype == values.dtype
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert (data.lengths[number], data.loss_tokens[number]) == (theirs.length, theirs.loss_tokens)
        assert data.record(number) == row
    assert data.where(6) == f"{one}:7"
    assert data.where(7).startswith(f"{tmp_path / 'b' / 'part'}:1 ")
    assert data.source_bounds.tolist() == [0, 7, 21]


def test_the_second_run_encodes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", letters(9))
    first, second = LetterProcessor(), LetterProcessor()
    before = prepared(tmp_path, path, processor=first)
    after = prepared(tmp_path, path, processor=second)
    assert (first.num_encoded, second.num_encoded) == (9, 0)
    assert texts(before) == texts(after)
    assert before.report == after.report


@pytest.mark.parametrize("change", ["content", "max_length", "tokenizer", "transform"])
def test_a_change_that_matters_makes_another_cache(tmp_path: Path, change: str) -> None:
    rows = letters(9)
    data = prepared(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    changed = write_rows(tmp_path / "b.jsonl", rows[:8] if change == "content" else rows)
    settings = DataSettings(
        max_length=17 if change == "max_length" else 16,
        transform={"text": "$text", "<ans>": "答"} if change == "transform" else {},
        cache=tmp_path / "cache",
    )
    tokenizer = Letters("capital" if change == "tokenizer" else "small")
    again = prepare([changed], LetterProcessor(), settings, tokenizer=tokenizer, progress=False)
    assert again.fingerprint != data.fingerprint
    assert len([*(tmp_path / "cache").iterdir()]) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_cache_is_made_again_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(tmp_path / "a.jsonl", letters(9))
    before = texts(prepared(tmp_path, path))
    (folder,) = (tmp_path / "cache").iterdir()
    file = folder / ("cache.json" if damage == "manifest" else "tokens.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-8])
    with caplog.at_level(logging.WARNING):
        assert texts(prepared(tmp_path, path)) == before
    assert "damaged" in caplog.text
    assert len([*(tmp_path / "cache").iterdir()]) == 1


def test_all_bad_rows_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "ab", "<ans>": "c"}', '{"text": "ab"}', "nonsense", '{"text": 3, "<ans>": "c"}'] * 2
    path.write_text("\n".join([*lines, '{"text": "ab", "<ans>": ""}', f'{{"text": "{"a" * 40}", "<ans>": "b"}}']))
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, path)
    message = str(caught.value)
    assert message.startswith("8 of 10 rows cannot be used.")
    for line, reason in (
        (2, "no key '<ans>'"),
        (3, "not JSON"),
        (4, "the value of 'text' must be a string, found 3"),
    ):
        assert f"{path}:{line}: {reason}" in message
    assert "(also 6)" in message
    assert f"{path}:9: no token carries loss" in message
    assert f"{path}:10: too long: 41 tokens, data.max_length is 16" in message
    assert "data.bad_rows=drop" in message
    assert "data.overlong" in message
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_long_list_of_bad_rows_is_cut(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a"}] * 100)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, path)
    line = str(caught.value).splitlines()[1]
    assert line.startswith(f"  {path}:1: no key '<ans>'")
    assert line.endswith("49, 50 and 50 more)")


def test_one_fault_of_many_rows_is_one_line() -> None:
    bad = [
        ("a:2", "no answer"),
        ("a:3", "too long"),
        ("a:4 (entry 3)", "no answer"),
        ("b:2", "no answer"),
    ]
    assert lines_of(bad) == ["a:2: no answer (also 4 (entry 3), b:2)", "a:3: too long"]
    assert lines_of(bad, 2) == ["a:2: no answer (also 4 (entry 3) and 1 more)", "a:3: too long"]


def test_reasons_that_differ_in_a_number_are_three_and_a_count() -> None:
    long = [(f"a:{line}", f"too long: {1_000 + line:,} tokens, found 'x{line}'") for line in range(1, 41)]
    told = lines_of([*long, ("a:50", "no answer"), ("a:51", "too long: 1,001 tokens, found 'x1'")])
    assert [line.partition(": ")[0] for line in told] == ["a:1", "a:2", "a:3", "and 37 more rows like these", "a:50"]
    assert told[0].endswith("(also 51)")
    assert [line.partition(": ")[0] for line in lines_of(long[:4])] == ["a:1", "a:2", "a:3", "a:4"]
    words = [(f"a:{line}", f"the row's {word} is not the model's") for line, word in enumerate("甲乙丙丁戊", 1)]
    assert len(lines_of(words)) == 5  # an apostrophe quotes nothing


def test_bad_rows_can_be_dropped_and_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ab", "<ans>": "c"}\n{"text": "ab"}\nx\ny\n{"text": "ab", "<ans>": "d"}\n')
    data = prepared(tmp_path, path, bad_rows="drop")
    assert texts(data) == ["abc", "abd"]
    assert [data.where(number) for number in range(2)] == [f"{path}:1", f"{path}:5"]
    assert data.report.counts.dropped == {"no key …": 1, "not JSON": 2}
    assert data.report.counts.examples[0] == [f"{path}:2", "no key '<ans>'"]


def test_dropping_every_row_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="No row is left") as caught:
        prepared(tmp_path, path, bad_rows="drop")
    assert str(caught.value).endswith("Correct some of them, or name other files")
    long = write_rows(tmp_path / "b.jsonl", [{"text": "a" * 40, "<ans>": "b"}])
    with pytest.raises(DataError, match=r"raise data.max_length or set data.overlong to truncate or split$"):
        prepared(tmp_path, long, overlong="drop")


def test_bad_rows_at_the_beginning_are_dropped_like_others(tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 120 + [{"text": "a", "<ans>": "b"}]
    made = prepared(tmp_path, write_rows(tmp_path / "a.jsonl", rows), bad_rows="drop")
    assert (len(made), made.report.dropped) == (1, 120)


LONG = [{"text": "abcdefghij", "<ans>": "z"}, {"text": "ab", "<ans>": "z"}]


def test_overlong_rows_are_dropped_truncated_or_split_as_asked(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", LONG)
    made = {policy: prepared(tmp_path, path, max_length=5, overlong=policy) for policy in ("drop", "truncate", "split")}
    assert texts(made["drop"]) == ["abz"]
    assert texts(made["truncate"]) == ["abcdz", "abz"]
    assert texts(made["split"]) == ["abcdz", "efghz", "ijz", "abz"]
    assert made["drop"].report.counts.dropped == {"too long": 1}
    assert (made["truncate"].report.counts.truncated, made["truncate"].report.counts.cut_tokens) == (1, 6)
    assert (made["split"].report.counts.split, made["split"].report.counts.parts) == (1, 3)
    assert [made["split"].where(number) for number in (2, 3)] == [f"{path}:1", f"{path}:2"]
    assert made["split"].record(1) == {"text": "efgh", "<ans>": "z"}


def test_a_row_that_cannot_be_shortened_is_a_bad_row(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "ab", "<ans>": "z" * 9}])
    with pytest.raises(DataError, match="the answer alone is too long"):
        prepared(tmp_path, path, max_length=5, overlong="truncate")


def test_rows_that_vary_are_encoded_anew_from_the_generator(tmp_path: Path) -> None:
    rows = [{"text": "", "<ans>": "abcdefgh", "draw": True}, {"text": "ab", "<ans>": "cd"}]
    data = prepared(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert data.num_varying == 1

    def drawn(seed: int, number: int) -> list[int]:
        return data.get(number, np.random.default_rng(seed)).inputs["tokens"].tolist()

    assert drawn(1, 0) == drawn(1, 0) != drawn(2, 0)
    assert sorted(drawn(1, 0)) == data.get(0).inputs["tokens"].tolist()
    assert drawn(1, 1) == drawn(2, 1)


def test_the_report_adds_up_and_can_be_shown(tmp_path: Path) -> None:
    rows = [{"text": "[翻译]x", "<ans>": "答案"}] * 3 + [{"text": "abcdefghij", "<ans>": "答案"}]
    report = prepared(tmp_path, write_rows(tmp_path / "a.jsonl", rows)).report
    assert (report.counts.read, report.samples, report.tokens, report.loss_tokens) == (4, 4, 33, 8)
    assert report.lengths == {"p10": 7, "p50": 7, "p90": 10, "max": 12}
    assert sum(count for _, count in report.histogram) == 4
    assert report.padding == pytest.approx(1 - 33 / 48)
    assert report.first == [(letter, False) for letter in "[翻译]x"] + [("答", True), ("案", True)]
    console = Console(width=90, record=True, file=StringIO())
    console.print(render_report(report))
    shown = console.export_text()
    for part in (
        "rows read",
        "33, of these carry loss 8 (24.2%)",
        "31.2% of them padding",
        "[翻译]x⟪答案⟫",
        "stands within ⟪ ⟫",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("lengths", "bars"),
    [
        ([32] * 9, [(32, 9)]),
        ([24, 24, 32, 56, 4000], [(24, 2), (32, 1), (56, 1), (4000, 1)]),
        ([*range(1, 101), 5000], [*((longest, 10) for longest in range(10, 101, 10)), (5000, 1)]),
        ([10] * 40 + [*range(990, 1030)] * 2, [(200, 40), (1000, 22), (1029, 58)]),
    ],
)
def test_the_bars_of_the_report_are_round_and_none_is_empty(lengths: list[int], bars: list[tuple[int, int]]) -> None:
    found = make_report(Counts(), np.array(lengths), np.ones(len(lengths)), 8192, 0.0, []).histogram
    assert found == bars


def test_a_mapping_makes_records_of_raw_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"body": "ab", "answer": "c"}, {"answer": "d"}])
    mapping = {"text": "$body", "<ans>": "$answer"}
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*no key 'body'"):
        prepared(tmp_path, path, transform=mapping)
    assert texts(prepared(tmp_path, path, transform=mapping, bad_rows="drop")) == ["abc"]


class ManyLetters(LetterProcessor):
    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        return [tried(self._checked, record) for record in records]

    def _checked(self, record: Any) -> Sample:
        self.check(record)
        return self.sample(record)


def test_encoding_in_groups_changes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*letters(5), {"text": 3}, {"text": "a" * 30, "<ans>": "b"}, *letters(2)])
    path.write_text(path.read_text() + "{broken\n")
    settings = {"bad_rows": "drop", "overlong": "split"}
    one = prepared(tmp_path / "one", path, **settings)
    many = prepared(tmp_path / "many", path, processor=ManyLetters(), **settings)
    assert texts(many) == texts(one)
    assert many.report == one.report
    assert [many.where(number) for number in range(len(many))] == [one.where(number) for number in range(len(one))]


@pytest.mark.parametrize("family", ["cpm1", "cpm1_t5", "cpm2", "cpm_bee"])
def test_the_report_says_how_much_of_a_text_the_vocabulary_lacks(family: str, tmp_path: Path) -> None:
    case = case_of(family, tmp_path)
    text = case.texts[0]
    path = write_rows(tmp_path / "a.jsonl", [{"query": f"{text}🦜", "response": text}] * 2)
    settings = DataSettings(max_length=64, cache=tmp_path / "cache")
    for _ in range(2):  # the second time from the cache
        made = prepare([path], case.processor, settings, tokenizer=case.tokenizer, progress=False)
        unknown, count = made.counts.unknown
        assert unknown == 2
        console = Console(width=120, file=StringIO())
        console.print(render_report(made.report))
        assert f"{unknown} ({unknown / count:.1%}) of the tokens" in console.file.getvalue()
