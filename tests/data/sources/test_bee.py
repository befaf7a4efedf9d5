"""The binary form: nothing in it runs code, damage is named, whole data sets can be changed."""

from __future__ import annotations

import json
import pickle
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.data.sources import BadRowError, open_records
from hanlin.data.sources.bee import (
    BeeReader,
    compact_bee,
    mask_bee,
    merge_bee,
    read_meta,
    read_payload,
    shuffle_bee,
    write_bee,
)

ROWS = [{"text": f"第{number}行" * (number % 5 + 1), "<ans>": {"甲": str(number)}} for number in range(20)]


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def rows_of(folder: Path) -> list:
    source = open_records(folder)
    return [source[row] for row in range(len(source))]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_recognised(protocol: int) -> None:
    assert read_payload(pickle.dumps(ROWS[3], protocol)) == ROWS[3]


def test_json_and_raw_payloads_are_recognised() -> None:
    assert read_payload(json.dumps(ROWS[3]).encode()) == ROWS[3]
    assert read_payload(b"neither of them.") == b"neither of them."


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_wants_code_is_refused_by_name(protocol: int, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"refused: the pickle asks for (__builtin__|builtins)\.print"):
        read_payload(pickle.dumps({"text": Evil()}, protocol))
    assert capsys.readouterr().out == ""


def circle() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": (1, 2)}, "a value of type tuple"),
        ({"a": b"x"}, "a value of type bytes"),
        ({"a": [{1, 2}]}, "refused"),
        ({1: "a"}, "the key 1 is no string"),
        ({"a": circle()}, "contains itself"),
    ],
)
def test_values_that_json_does_not_know_are_refused(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_payload(pickle.dumps(value, 4))


def test_damaged_pickles_never_crash() -> None:
    whole = pickle.dumps(ROWS[3], 4)
    for at in range(2, len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            with suppress(ValueError):
                read_payload(damaged)


def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    write_bee(tmp_path / "set", "part", [ROWS[0], {"x": (1, 2)}, ROWS[1]], form="pickle")
    source = open_records(tmp_path / "set")
    with pytest.raises(BadRowError, match="type tuple") as caught:
        source[1]
    assert caught.value.where.startswith(f"{tmp_path / 'set' / 'part'}:2 (block 0, offset ")
    assert [source[0], source[2]] == ROWS[:2]


def test_the_block_of_a_small_set_is_small(tmp_path: Path) -> None:
    file = write_bee(tmp_path, "part", ROWS)
    assert (tmp_path / "part").stat().st_size == file.block_size < 4096
    assert rows_of(tmp_path) == ROWS
    assert list(BeeReader(tmp_path)) == ROWS


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: overwrite(f / "part", 512, b"\x07"), "part: block 1, offset 0: found 0x07"),
        (lambda f: overwrite(f / "part", 513, struct.pack("<I", 9999)), "block 1, offset 0: a record of 9,999 bytes"),
        (lambda f: overwrite(f / "part", 0, b"\x00"), "rows, meta.bin says 20"),
        (lambda f: (f / "part").write_bytes((f / "part").read_bytes()[:700]), "cut off in block 1 at offset 188"),
        (lambda f: (f / "part").unlink(), "it is missing"),
        (lambda f: (f / "meta.bin").write_bytes(b'{"file_name": "pa'), "meta.bin:1: not JSON"),
        (lambda f: (f / "meta.bin").write_bytes(b'{"file_name": "part"}'), "meta.bin:1: expected the keys"),
        (lambda f: overwrite(f / "meta.bin", 0, b'{"file_name": "/art"'), "meta.bin:1: impossible"),
        (lambda f: (f / "meta.bin").write_bytes(b""), "holds no rows"),
    ],
    ids=["marker", "size", "missing rows", "cut", "missing file", "broken meta", "keys", "name", "empty meta"],
)
def test_damage_is_named_with_its_place(tmp_path: Path, damage, reason: str) -> None:
    write_bee(tmp_path, "part", ROWS, block_bytes=512)
    damage(tmp_path)
    with pytest.raises(DataError, match=reason):
        open_records(tmp_path)


def test_sets_can_be_masked_merged_compacted_and_shuffled(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_bee(one, "a", ROWS[:5])
    write_bee(one, "b", ROWS[5:9])
    write_bee(two, "a", ROWS[9:])
    assert merge_bee(one, two) == ["a_0"]
    assert rows_of(one) == ROWS
    mask_bee(one, "b")
    assert rows_of(one) == ROWS[:5] + ROWS[9:]
    (one / "a").unlink()
    assert compact_bee(one) == ["a"]
    assert rows_of(one) == ROWS[9:]
    shuffle_bee(two, tmp_path / "three", "mixed", seed=1)
    mixed = rows_of(tmp_path / "three")
    assert mixed != ROWS[9:]
    assert sorted(mixed, key=str) == sorted(ROWS[9:], key=str)


def test_a_failed_write_leaves_the_set_as_it_was(tmp_path: Path) -> None:
    write_bee(tmp_path, "a", ROWS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match="there are no rows"):
        write_bee(tmp_path, "b", [])
    with pytest.raises(DataError, match="row 1 has"):
        write_bee(tmp_path, "b", ROWS, block_bytes=16)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert [file.file_name for file in read_meta(tmp_path)] == ["a"]
