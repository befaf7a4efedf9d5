"""The original's binary data sets: every row in its order, its resume state, its bytes, its errors."""

from __future__ import annotations

import gzip
import hashlib
import random
import tempfile
from itertools import islice
from pathlib import Path

import pytest
from golden_case import Case

from hanlin.core.errors import DataError
from hanlin.data.sources import open_records
from hanlin.data.sources.bee import BeeReader, read_meta, write_bee


def check(case: Case, vocab: Path) -> None:
    del vocab
    rows, protocol = case.data("rows.json"), case.facts.get("pickle_protocol", 4)
    for name, expected in case.facts["sets"].items():
        if not case.holds(name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = _unpacked(case / name, Path(scratch) / "original")
            _check_rows(folder, rows)
            _check_orders(folder, expected, rows)
            _check_resume(folder, expected.get("resume"), rows)
            _check_bytes(folder, expected, rows, protocol, Path(scratch) / "ours")
    _check_errors(rows)


def _unpacked(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        data = path.read_bytes()
        (target / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    return target


def _check_rows(folder: Path, rows: list) -> None:
    source = open_records(folder)
    assert [source[row] for row in range(len(source))] == rows[: len(source)]
    assert len(source) == sum(file.nlines for file in read_meta(folder))


def _check_orders(folder: Path, expected: dict, rows: list) -> None:
    order = _numbers(BeeReader(folder), rows)
    assert order == expected.get("reading_order_no_shuffle", order)
    for key, order in expected.items():
        if key.startswith("reading_order_shuffle_random_seed_"):
            reader = BeeReader(folder, shuffle=random.Random(int(key.rpartition("_")[2])))
            assert _numbers(reader, rows) == order
        if key.startswith("reading_order_world"):
            world = int(key.removeprefix("reading_order_world"))
            for rank, part in order.items():
                assert _numbers(BeeReader(folder, rank=int(rank), world=world), rows) == part


def _check_resume(folder: Path, expected: dict | None, rows: list) -> None:
    if not expected:
        return
    reader = BeeReader(folder)
    passing = iter(reader)
    assert _numbers(islice(passing, len(expected["read_first"])), rows) == expected["read_first"]
    state = reader.state_dict()
    assert [state["states"]] == expected["state"]["states"]
    assert [state["block"]] == expected["state"]["block"]
    assert _numbers(islice(passing, len(expected["then"])), rows) == expected["then"]
    again = BeeReader(folder)
    again.load_state_dict({"states": expected["state"]["states"][0], "block": expected["state"]["block"][0]})
    assert _numbers(islice(again, len(expected["then_after_reload"])), rows) == expected["then_after_reload"]


def _check_bytes(folder: Path, expected: dict, rows: list, protocol: int, ours: Path) -> None:
    first = 0
    for file in read_meta(folder):
        data = (folder / file.file_name).read_bytes()
        form = "json" if data[5:6] == b"{" else "pickle"
        part = rows[first : first + file.nlines]
        write_bee(ours, file.file_name, part, block_bytes=file.block_size, form=form, protocol=protocol)
        written = (ours / file.file_name).read_bytes()
        assert written == data
        if "file" in expected:
            assert hashlib.sha256(written).hexdigest() == expected["file"]["sha256"]
        first += file.nlines
    assert (ours / "meta.bin").read_bytes() == (folder / "meta.bin").read_bytes()


def _check_errors(rows: list) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with pytest.raises(DataError, match="larger than a block"):
            write_bee(folder, "large", rows, block_bytes=64)
        assert not list(folder.iterdir())
        write_bee(folder, "name", rows)
        with pytest.raises(DataError, match="has a file 'name' already"):
            write_bee(folder, "name", rows)
        (folder / "orphan").write_bytes(b"")
        with pytest.raises(DataError, match="the file exists"):
            write_bee(folder, "orphan", rows)


def _numbers(records, rows: list) -> list[int]:
    return [rows.index(record) for record in records]
