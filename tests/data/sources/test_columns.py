"""Parquet and Arrow: the values of a row, in any order of reading; files that are cut, damaged, or a lie."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from letter_family import LetterProcessor, Letters

from hanlin.cli.main import main
from hanlin.core.errors import DataError
from hanlin.data.prepare import prepare
from hanlin.data.processor import tried
from hanlin.data.sources import BadRowError, column_sizes, columns, open_records
from hanlin.recipe.settings import DataSettings

TEXTS = [f"第{number}行，{'翰林' * (number % 5)}" for number in range(300)]


def texts() -> pa.Table:
    return pa.table({"text": TEXTS, "n": list(range(300))})


def write(path: Path, table: pa.Table, form: str) -> Path:
    """form: parquet, or file or stream and how it is compressed."""
    if form.startswith("parquet"):
        pq.write_table(table, path, row_group_size=70, compression=form.partition(" ")[2] or "snappy")
        return path
    new = pa.ipc.new_file if form.startswith("file") else pa.ipc.new_stream
    options = pa.ipc.IpcWriteOptions(compression=form.partition(" ")[2] or None)
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=70)
    return path


FORMS = ["parquet", "parquet zstd", "file", "file lz4", "file zstd", "stream", "stream lz4"]


@pytest.fixture
def goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows before the last 64 come from the temporary file."""
    monkeypatch.setattr(columns, "_HELD_WINDOWS", 1)
    monkeypatch.setattr(columns, "_MOST_PASSES", 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("passes", [0, 1, 100])
def test_rows_are_the_same_in_any_order(
    tmp_path: Path, form: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_HELD_WINDOWS", 2)
    monkeypatch.setattr(columns, "_MOST_PASSES", passes)
    source = open_records(write(tmp_path / "rows", texts(), form))
    assert len(source) == 300
    assert [source[row] for row in range(300)] == [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
    for row in (299, 3, 150, 149, 0, 299, 298, 60):
        assert source[row] == {"text": TEXTS[row], "n": row}
    assert source.where(150) == f"{tmp_path / 'rows'}: row 151"


TEXT_TYPES = [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.string_view()]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (form, kind)
        for form in ("parquet", "file lz4", "stream")
        for kind in TEXT_TYPES[: 3 if form == "parquet" else 4]
    ],
    ids=str,
)  # pyarrow writes no string_view to Parquet
def test_texts_of_every_type_are_texts(tmp_path: Path, form: str, kind: pa.DataType) -> None:
    table = texts()
    column = table["text"].dictionary_encode() if pa.types.is_dictionary(kind) else table["text"].cast(kind)
    source = open_records(write(tmp_path / "rows", table.set_column(0, "text", column), form))
    assert [source[row]["text"] for row in range(300)] == TEXTS


VALUES = {
    "lists of objects": (
        pa.array([[{"from": "human", "value": "你好"}, {"from": "gpt", "value": "好"}], [], None]),
        [[{"from": "human", "value": "你好"}, {"from": "gpt", "value": "好"}], [], "no key"],
    ),
    "objects with gaps": (
        pa.array([{"a": 1, "b": None}, {"a": None, "b": "x"}, None]),
        [{"a": 1}, {"b": "x"}, "no key"],
    ),
    "maps": (pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())), [{"k": "v"}, {}, "no key"]),
    "lists of texts of a dictionary": (
        pa.ListArray.from_arrays(pa.array([0, 2, 2, 3]), pa.array(["x", "y", "x"]).dictionary_encode()),
        [["x", "y"], [], ["x"]],
    ),
    "dates": (pa.array([datetime.date(2024, 2, 29)] * 3), ["2024-02-29"] * 3),
    "times": (pa.array([datetime.datetime(2024, 2, 29, 1, 2)] * 3), ["2024-02-29T01:02:00"] * 3),
    "decimals": (pa.array([Decimal("1.20")] * 3), ["1.20"] * 3),
    "truth and numbers": (pa.array([True, False, None]), [True, False, "no key"]),
}  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "file zstd"])
@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_json(tmp_path: Path, name: str, form: str) -> None:
    column, wanted = VALUES[name]
    source = open_records(write(tmp_path / "rows", pa.table({"x": column}), form))
    assert [source[row].get("x", "no key") for row in range(3)] == wanted
    assert [json.loads(json.dumps(source[row])).get("x", "no key") for row in range(3)] == wanted


BAD_VALUES = {
    "a picture": (pa.array([b"text", b"\x89PNG\xff", b"text"]), '"x": holds 5 bytes that are no UTF-8'),
    "NaN": (pa.array([1.5, float("nan"), 2.0]), '"x": is NaN or without end'),
    "a text that is none": (
        pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff\xfe", b"b"]).buffers()),
        '"x": holds bytes that are no UTF-8',
    ),
    "NaN in a list": (pa.array([[1.5], [float("inf")], [2.0]]), '"x": is NaN or without end'),
}


@pytest.mark.parametrize("form", ["parquet", "file"])
@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.usefixtures("goes_back")
def test_a_value_that_no_record_holds_is_a_bad_row(tmp_path: Path, name: str, form: str) -> None:
    column, reason = BAD_VALUES[name]
    many = pa.concat_arrays([column, *[column[2:]] * 100])
    source = open_records(write(tmp_path / "rows", pa.table({"x": many}), form))
    for _ in range(2):  # the second time from the temporary file
        with pytest.raises(BadRowError) as caught:
            source[1]
        assert caught.value.where == f"{tmp_path / 'rows'}: row 2"
        assert reason in caught.value.reason
        assert set(source[2]) == set(source[102]) == set(source[0]) == {"x"}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_anywhere_is_refused_or_ends_in_a_message(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "rows.arrow", texts(), form)
    whole = path.read_bytes()
    for size in [0, 1, 4, 7, 9, 200, *range(400, len(whole) - 9, 997), len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:size])
        source = tried(open_records, path)
        if isinstance(source, DataError):
            assert str(path) in str(source)
            assert "\n" not in str(source)
        else:  # a stream may be cut where a message ends, or before its mark of the end
            assert form.startswith("stream"), size
            assert [source[row]["text"] for row in range(len(source))] == TEXTS[: len(source)]


@pytest.mark.parametrize("form", FORMS)
def test_damage_never_ends_in_another_error(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "rows.arrow", texts().slice(0, 80), form)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(len(whole) // 150, 1)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(DataError):
            source = open_records(path)
            for row in (*range(min(len(source), 80)), 0):
                with suppress(BadRowError):
                    source[row]


def test_a_damaged_page_ends_the_work_though_bad_rows_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    plain = {"compression": None, "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=100, write_page_checksum=True, **plain)
    content = bytearray(path.read_bytes())
    content[content.index(TEXTS[205].encode())] ^= 1
    path.write_bytes(content)
    settings = DataSettings(bad_rows="drop", cache=tmp_path / "cache", transform={"text": "$text", "<ans>": "a"})
    source = open_records(path)
    assert source[99] == {"text": TEXTS[99]}
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows.parquet: the file was cut off or is damaged.*copy it again"):
            source[205]
    with pytest.raises(DataError, match="cut off or is damaged"):
        prepare([path], LetterProcessor(), settings, tokenizer=Letters(), progress=False)


def test_a_file_that_is_cut_while_it_is_read_ends_in_a_message(tmp_path: Path) -> None:
    """A process that maps a file dies of SIGBUS when it is cut; ours ends as Python does."""
    for form in ("parquet", "file", "stream"):
        write(tmp_path / f"{form}.arrow", pa.table({"text": [os.urandom(40).hex() for _ in range(60000)]}), form)
    code = (
        "import os, sys; from pathlib import Path; from hanlin.data.sources import open_records\n"
        "for name in sys.argv[1:]:\n"
        "    rows = open_records(Path(name)); os.truncate(name, 4000)\n"
        "    try: print([rows[row] for row in (0, 59999, 0)])\n"
        "    except Exception as error: print(type(error).__name__, 'became shorter' in str(error))"
    )
    names = [str(tmp_path / f"{form}.arrow") for form in ("parquet", "file", "stream")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "DamagedFileError True\n" * 3), done.stderr


@pytest.mark.usefixtures("goes_back")
def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tmp_path / "many.parquet"
    pq.write_table(pa.table({"x": pa.nulls(10_000_000)}), many)
    with pytest.raises(DataError, match=r"many.parquet: declares 10,000,000 rows, more than [\d,]+ bytes can hold"):
        open_records(many)
    monkeypatch.setattr(columns, "_SMALLEST_LIMIT", 1 << 20)
    packed = write(tmp_path / "packed.parquet", pa.table({"x": ["a" * (1 << 24)]}), "parquet zstd")
    with pytest.raises(DataError, match="more than 1,000 times its size"):
        open_records(packed)
    equal = tmp_path / "equal.parquet"
    pq.write_table(pa.table({"x": pa.array(["b" * 10_000] * 2000)}), equal, compression="zstd")
    source = open_records(equal)
    assert source[60]["x"] == "b" * 10_000
    with pytest.raises(DataError, match=r"equal.parquet: unpacks to more than 1,\d+,\d+ bytes"):
        source[1999]


BIG = "a" * (1 << 22)
BOMBS = {
    "one page": (pa.table({"x": [BIG]}), {"use_dictionary": False}, "column x has a page of 4,194,3"),
    "a dictionary": (pa.table({"x": [BIG, BIG]}), {}, "column x has a page of 4,194,3"),
    "in a list": (pa.table({"x": [[BIG], []]}), {}, "column x.list.element has a page of 4,194,3"),
    "pages of the second version": (pa.table({"x": [BIG]}), {"data_page_version": "2.0"}, "column x has a page of"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pages_are_looked_at_before_they_are_unpacked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, how, told = BOMBS[name]
    monkeypatch.setattr(column_sizes, "MOST_PAGE_BYTES", 1 << 20)
    path = tmp_path / "bomb.parquet"
    pq.write_table(table, path, compression="zstd", **how)
    with pytest.raises(DataError, match=rf"bomb.parquet: {told}"):
        open_records(path)
    monkeypatch.undo()
    assert open_records(path)[0]["x"] in (BIG, [BIG])


@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("packing", ["zstd", "lz4"])
def test_record_batches_are_looked_at_before_they_are_unpacked(
    form: str, packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.arrow"
    table = pa.table({"n": [1, 2], "x": [BIG, BIG], "d": pa.array(["a", "b"]).dictionary_encode()})
    options = pa.ipc.IpcWriteOptions(compression=packing)
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    assert open_records(path)[1]["x"] == BIG
    monkeypatch.setattr(column_sizes, "_SMALLEST_BATCH", 1 << 20)
    with pytest.raises(DataError, match=r"bomb.arrow: a record batch of [\d,]+ bytes unpacks to 8,"):
        open_records(path)


def test_values_of_a_dictionary_are_counted_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["b" * 10_000]))
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 500], pa.int32()), named)
    monkeypatch.setattr(columns, "_UNPACKED_BYTES", 100_000)
    made: list[int] = []
    real = columns._rows
    monkeypatch.setattr(columns, "_rows", lambda part: made.append(part.num_rows) or real(part))
    rows = open_records(write(tmp_path / "rows.arrow", pa.table({"x": named}), "file"))
    assert rows[20] == {"x": "b" * 10_000}
    assert max(made) < 16
    monkeypatch.setattr(columns, "MAX_LINE_BYTES", 1_000_000)
    lists = open_records(write(tmp_path / "lists.arrow", pa.table({"x": nested}), "file"))
    assert lists[0] == {"x": ["b" * 10_000]}
    with pytest.raises(BadRowError, match=r"row 2: a row of 4,99\d,\d+ bytes; at most"):
        lists[1]


def test_a_row_that_is_no_record_is_a_bad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_LINE_BYTES", 1000)
    source = open_records(write(tmp_path / "rows", pa.table({"x": ["a", "b" * 2000, "c"]}), "parquet"))
    with pytest.raises(BadRowError, match=r"rows: row 2: a row of 2,009 bytes; at most 1,000 make a record"):
        source[1]
    assert [source[0], source[2]] == [{"x": "a"}, {"x": "c"}]


TABLES: dict[str, tuple[Any, str]] = {
    "no rows": (pa.table({"text": pa.array([], pa.string())}), "holds no rows"),
    "no columns": (pa.table({}), "has no columns"),
    "equal names": (pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["t", "t"]), "two columns are named 't'"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("form", ["parquet", "stream"])
def test_a_useless_table_is_refused(tmp_path: Path, name: str, form: str) -> None:
    table, reason = TABLES[name]
    with pytest.raises(DataError, match=reason):
        open_records(write(tmp_path / "rows.arrow", table, form))


def test_names_that_do_not_fit_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text('{"text": "a"}\n', "utf-8")
    with pytest.raises(DataError, match=r"a.parquet: is named .parquet, but begins with b.{\"text\"."):
        open_records(tmp_path / "a.parquet")
    (tmp_path / "b.arrow").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(DataError, match="Feather of the first version"):
        open_records(tmp_path / "b.arrow")
    write(tmp_path / "c.jsonl", texts(), "parquet")
    assert open_records(tmp_path / "c.jsonl")[0]["text"] == TEXTS[0]


def test_a_changed_byte_is_another_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", texts(), "parquet")
    before = open_records(path).fingerprint
    assert open_records(path).fingerprint == before
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert open_records(path).fingerprint != before


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", texts(), "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a.parquet: .*pip install 'hanlin\[arrow\]'"):
        open_records(path)


def test_inspect_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.parquet", texts(), "parquet")
    assert main(["inspect", str(path)]) == 0
    assert "data: Parquet" in (said := capsys.readouterr().out)
    assert TEXTS[0] in said


def test_samples_are_made_of_a_table_without_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ScratchFile", None)
    table = pa.table({"text": ["abc", "de"] * 900, "<ans>": ["f", "g"] * 900})
    path = write(tmp_path / "a.parquet", table, "parquet")
    settings = DataSettings(train=[path], max_length=16, cache=tmp_path / "cache")
    data = prepare([path], LetterProcessor(), settings, tokenizer=Letters(), progress=False)
    assert (len(data), data.where(1799)) == (1800, f"{path}: row 1800")
    assert data.record(0) == {"text": "abc", "<ans>": "f"}


def test_a_map_with_a_key_twice_is_a_bad_row(tmp_path: Path) -> None:
    pairs = pa.array([[("k", 1), ("k", 2)], [("k", 3)]], pa.map_(pa.string(), pa.int32()))
    pq.write_table(pa.table({"a": pairs}), tmp_path / "rows.parquet")
    source = open_records(tmp_path / "rows.parquet")
    with pytest.raises(BadRowError, match=r"row 1: .a.: a map holds a key twice"):
        source[0]
    assert source[1] == {"a": {"k": 3}}
