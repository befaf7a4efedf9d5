"""Tables of an attacker: Parquet, Arrow, CSV and TSV, packed or not, and folders of them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hostile_attack import Attack
from judging import refused, works
from worlds import TABLES, remove

MIB = 1 << 20


def attacks() -> Iterator[Attack]:
    yield from _files()
    yield from _bombs()
    yield from _rows()
    yield from _folders()


def _commands(name: str) -> tuple[str, ...]:
    """That read a table of the world, or a folder of them."""
    data = f"data.train=[{name}] data.eval=[{name}]"
    ask = f"generate lora.yaml --input {name} --output answers.jsonl"
    return (f"inspect {name}", f"check fresh.yaml {data}", f"train fresh.yaml {data}", ask)


def _attack(title: str, name: str, plant: Callable[[Path], object], told: str) -> Attack:
    """plant: gets the path of the table `name`, which is there; told: of the refusal, behind that name."""
    return Attack(
        title, lambda world: plant(world / name), refused(rf"{name.partition('.')[0]}.*{told}", *_commands(name))
    )


def _text(rows: str) -> bytes:
    return f"input,<ans>\n{rows}".encode()


# --- files that are none ---


def _files() -> Iterator[Attack]:
    contents: list[tuple[str, bytes, str]] = [
        ("rows.parquet", b"", "is empty"),
        ("rows.parquet", b"PAR1", "cut off or is damaged"),
        ("rows.parquet", b"PAR1" + b"\xff" * 64 + b"\x40\0\0\0PAR1", "cut off or is damaged"),
        ("rows.parquet", b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1", "cut off or is damaged"),
        ("rows.parquet", b"PARE" + b"\0" * 64 + b"PARE", "begins with"),
        ("rows.parquet", _text("a,b\n"), "begins with"),
        ("rows.arrow", b"ARROW1\0\0" + b"\0" * 64 + b"ARROW1", "cut off or is damaged|no columns|Arrow"),
        ("rows.arrow", b"ARROW1\0\0" + b"\xff" * 64 + b"\xff\xff\xff\x7fARROW1", "cut off or is damaged"),
        ("rows.arrow", b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f" + b"\0" * 32, "cut off or is damaged"),
        ("rows.arrow", b"FEA1" + b"\0" * 32, "Feather of the first version"),
        ("rows.csv", b"", "holds no rows"),
        ("rows.csv", b"input,<ans>\n", "holds no rows"),
        ("rows.csv", b"input,input\na,b\n", "two columns are named 'input'"),
        ("rows.csv", b"input,\na,b\n", "has no name"),
        ("rows.csv", b'{"input": "a"}\n{}\n', "is JSON"),
        ("rows.csv", b'input,<ans>\n"a,b\n' + b"c,d\n" * 50, r":2: .*(quot|mark)"),
        ("rows.csv", b",".join(b"c%d" % n for n in range(70_000)) + b"\na\n", "70,000 columns"),
        ("rows.csv", b"input,<ans>\ra,b\rc,d\r", "carriage return|holds no rows"),
        ("rows.csv", _text("a,b\n").decode().encode("utf-16"), "UTF-16"),
        ("rows.tsv", bz2.compress(b"input\t<ans>\na\tb\n"), "bzip2"),
        ("rows.tsv", lzma.compress(b"input\t<ans>\na\tb\n"), "xz"),
        ("rows.csv.gz", gzip.compress(_text("a,b\n" * 99))[:-12], "damaged or cut off"),
        ("rows.csv.gz", gzip.compress(_text("a,b\n")) + b"garbage", "damaged or cut off"),
        ("rows.csv.gz", gzip.compress(bz2.compress(_text("a,b\n"))), "bzip2"),
        ("rows.jsonl.zst", zstandard.compress(b'{"input": "a"}\n' * 99)[:-5], "damaged or cut off"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 20, "damaged or cut off"),
    ]
    for name, content, told in contents:
        yield _attack(f"{name}: {content[:24]!r}", name, partial(Path.write_bytes, data=content), told)

    def packed(path: Path) -> None:
        path.write_bytes(gzip.compress(path.with_name("rows.parquet").read_bytes()))

    yield _attack("Parquet in gzip", "rows.csv.gz", packed, "holds no rows|:1: |inside a packed file|not UTF-8|NUL")
    for share in (0.3, 0.6, 0.95):
        for name in ("rows.parquet", "rows.arrow"):

            def cut(path: Path, share: float = share) -> None:
                os.truncate(path, int(path.stat().st_size * share))

            yield _attack(f"{name}: the first {share:.0%}", name, cut, "cut off or is damaged|is damaged|no columns")


# --- files that stand for too much ---


def _parquet(table: Callable[[], Any], **how: Any) -> Callable[[Path], object]:
    def plant(path: Path) -> None:
        pq.write_table(table(), path, **{"compression": "zstd", **how})
        pa.default_memory_pool().release_unused()  # trials count what this process has

    return plant


def _arrow(table: Callable[[], Any], packing: str) -> Callable[[Path], object]:
    def plant(path: Path) -> None:
        made, options = table(), pa.ipc.IpcWriteOptions(compression=packing, use_threads=False)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, made.schema, options=options) as writer:
            writer.write_table(made)
        pa.default_memory_pool().release_unused()

    return plant


def _columns(value: Any, rows: int = 1) -> Callable[[], Any]:
    return lambda: pa.table({"input": [value] * rows, "<ans>": ["好"] * rows})


def _bombs() -> Iterator[Attack]:
    page, plain = "has a page of [0-9,]+ bytes unpacked", {"use_dictionary": False}
    many = "a" * (160 * MIB)
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["a" * (20 * MIB)]))
    bombs: list[tuple[str, str, Callable[[Path], object], str]] = [
        ("a page", "rows.parquet", _parquet(_columns(many), **plain), page),
        ("a page of version 2", "rows.parquet", _parquet(_columns(many), data_page_version="2.0", **plain), page),
        ("a dictionary", "rows.parquet", _parquet(_columns(many, 2)), page),
        ("a list", "rows.parquet", _parquet(_columns(["a" * MIB] * 160), **plain), page),
        ("nothing", "rows.parquet", _parquet(lambda: pa.table({"x": pa.nulls(30_000_000)})), "more than [0-9,]+ bytes"),
        ("a batch", "rows.arrow", _arrow(_columns(many, 2), "zstd"), "unpacks to"),
        ("a batch in lz4", "rows.arrow", _arrow(_columns(many, 2), "lz4"), "unpacks to"),
        (
            "gzip",
            "rows.csv.gz",
            lambda path: path.write_bytes(gzip.compress(_text(2 * many + ",b\n"))),
            "times its size",
        ),
        (
            "zstd",
            "rows.jsonl.zst",
            lambda path: path.write_bytes(zstandard.compress(b'{"input": "' + 2 * many.encode() + b'"}\n')),
            "times its size",
        ),
    ]
    for title, name, plant, told in bombs:
        yield _attack(f"a bomb in {name}: {title}", name, plant, told)
    table = partial(pa.table, {"input": named, "<ans>": ["好"] * 200_000})
    for name, plant in (("rows.parquet", _parquet(table)), ("rows.arrow", _arrow(table, "zstd"))):
        tries = refused(rf"{name}.*(declares|unpacks to)", *_commands(name)[1:3])
        yield Attack(f"a value 200,000 times in {name}", lambda world, n=name, p=plant: p(world / n), tries)


# --- rows ---


def _rows() -> Iterator[Attack]:
    """Right rows and a bad one behind them, in a table of the right kind."""
    bad: list[tuple[str, Any, str]] = [
        ("bytes", pa.array([b"a", b"\xff\xfe"]), "no UTF-8"),
        ("NaN", pa.array([1.0, float("nan")]), "NaN|found 1.0"),
        ("lists", pa.array([["a"], ["b"]]), "found (a )?list"),
        ("numbers", pa.array([1, 2]), "found 1"),
        ("a map", pa.array([[("a", "b")], [("a", "c"), ("a", "d")]], pa.map_(pa.string(), pa.string())), "twice|found"),
        ("a mark", pa.array(["a", "</s>"]), "control mark"),
        ("a giant", pa.array(["a", "b" * (34 * MIB)]), "at most 33,554,432"),
    ]
    for title, values, reason in bad:
        for name in ("rows.parquet", "rows.arrow"):

            def plant(world: Path, name: str = name, values: Any = values) -> None:
                table = pa.table({"input": values, "<ans>": ["好"] * len(values)})
                write = _parquet(lambda: table) if name == "rows.parquet" else _arrow(lambda: table, "zstd")
                write(world / name)

            told = rf"{name}: row [12]: .*({reason})"
            yield Attack(f"{title} in {name}", plant, refused(told, *_commands(name)[1:3]))
    lines: list[tuple[bytes, str]] = [
        (b"a", "1 value, the first line names 2"),
        (b"a,b,c", "3 values, the first line names 2"),
        (b"a\0,b", "NUL"),
        (b"\xff\xff\xff,b", "not UTF-8|not GB18030"),
        (b"</s>,b", "control mark"),
        (b"a,", "<ans>"),
        (b'"a"b,c', "mark"),
        (b"x" * (34 * MIB) + b",b", "at most 33,554,432"),
    ]
    drop = "data.bad_rows=drop"
    for line, reason in lines:
        commands = _commands("rows.csv")[1:3]
        number = len(TABLES) + 2

        def append(world: Path, line: bytes = line) -> None:
            with (world / "rows.csv").open("ab") as file:
                file.write(line + b"\n")

        tries = [*refused(rf"rows\.csv:{number}: .*({reason})", *commands)]
        tries += works(*(f"{one} {drop}" for one in commands))
        yield Attack(f"a line: {line[:20]!r}", append, tries)


# --- folders ---


def _folders() -> Iterator[Attack]:
    def plant(make: Callable[[Path], object], name: str) -> Callable[[Path], object]:
        return lambda world: make(world / "tables" / name)

    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def split(path: Path) -> None:
        for name in ("train.jsonl", "test.jsonl"):
            path.with_name(name).write_bytes(b'{"input": "a", "<ans>": "b"}\n')

    def loop(path: Path) -> None:
        path.symlink_to(path)

    kinds: list[tuple[str, str, Callable[[Path], object], str]] = [
        ("a file that is cut", "b.parquet", partial(Path.write_bytes, data=b"PAR1xx"), r"b\.parquet"),
        ("an empty one", "c.parquet", partial(Path.write_bytes, data=b""), r"c\.parquet"),
        ("a pipe", "p.jsonl", pipe, r"p\.jsonl"),
        ("a link to itself", "l.jsonl", loop, r"l\.jsonl"),
        ("a link that leads nowhere", "n.csv", lambda path: path.symlink_to("gone.csv"), r"n\.csv"),
        ("a bad row", "r.csv", partial(Path.write_bytes, data=_text("a,b\nc\n")), r"r\.csv:3"),
        ("columns of another name", "o.csv", partial(Path.write_bytes, data=b"x,y\na,b\n"), r"o\.csv"),
        ("two splits", "test.jsonl", split, r"test.*train|train.*test"),
    ]
    data = "data.train=[tables] data.eval=[tables]"
    for title, name, make, told in kinds:
        yield Attack(
            f"in a folder: {title}", plant(make, name), refused(told, *(f"{one} fresh.yaml {data}" for one in RUNS))
        )

    def emptied(world: Path) -> None:
        remove(world / "tables")
        (world / "tables").mkdir()

    yield Attack("an empty folder", emptied, refused("tables: ", *(f"{one} fresh.yaml {data}" for one in RUNS)))

    def circle(world: Path) -> None:
        (world / "tables" / "deep").symlink_to(world / "tables")

    yield Attack("a folder in itself", circle, works(*(f"{one} fresh.yaml {data}" for one in RUNS)))
    nothing = "data.train=[tables/*.xyz] data.eval=[tables/*.xyz]"
    proof = "data.train=[tables/*.csv] data.eval=[tables/*.csv]"
    tries = [
        one
        for command in RUNS
        for one in refused(
            r"tables/\*\.xyz: nothing matches",
            f"{command} fresh.yaml {nothing}",
            undamaged=f"{command} fresh.yaml {proof}",
        )
    ]
    yield Attack("a pattern that nothing matches", lambda world: None, tries)


RUNS = ("check", "train")
