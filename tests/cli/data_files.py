"""The same rows in every kind of file that users have."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Rows = Sequence[Mapping[str, Any]]


def lines_of(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table_of(rows: Rows, mark: str = ",") -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text(lines_of(rows), "utf-8")
    return path


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def _write_arrow(path: Path, rows: Rows) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)


def _write_saved(folder: Path, rows: Rows) -> None:
    """As `datasets.save_to_disk` leaves it: two shards, listed in state.json."""
    folder.mkdir()
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, some in zip(names, (rows[: len(rows) // 2], rows[len(rows) // 2 :]), strict=True):
        _write_arrow(folder / name, some)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def _write_pieces(folder: Path, rows: Rows) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, len(rows), 4)):
        write_rows(folder / f"part-{number}.jsonl", rows[start : start + 4])


KINDS: Mapping[str, tuple[str, Callable[[Path, Rows], object]]] = {
    "JSON lines": ("rows.jsonl", write_rows),
    "JSON list": ("rows.json", lambda path, rows: path.write_text(json.dumps(list(rows)), "utf-8")),
    "CSV": ("rows.csv", lambda path, rows: path.write_text(table_of(rows), "utf-8-sig")),
    "CSV of Excel in China": ("rows.csv", lambda path, rows: path.write_text(table_of(rows), "gbk")),
    "TSV": ("rows.tsv", lambda path, rows: path.write_text(table_of(rows, "\t"), "utf-8")),
    "packed CSV": ("rows.csv.gz", lambda path, rows: path.write_bytes(gzip.compress(table_of(rows).encode()))),
    "gzip": ("rows.jsonl.gz", lambda path, rows: path.write_bytes(gzip.compress(lines_of(rows).encode()))),
    "zstd": ("rows.jsonl.zst", lambda path, rows: path.write_bytes(zstandard.compress(lines_of(rows).encode()))),
    "Parquet": ("rows.parquet", lambda path, rows: pq.write_table(pa.Table.from_pylist(list(rows)), path)),
    "Arrow": ("rows.arrow", _write_arrow),
    "save_to_disk": ("saved", _write_saved),
    "folder": ("pieces", _write_pieces),
    "pattern": ("pieces/part-*.jsonl", lambda path, rows: _write_pieces(path.parent, rows)),
}
"""The name of the file or folder, or a pattern that finds it, and what writes it."""


def write_kind(folder: Path, kind: str, rows: Rows) -> Path:
    """The path, folder or pattern by which the rows are named."""
    name, write = KINDS[kind]
    write(folder / name, rows)
    return folder / name
