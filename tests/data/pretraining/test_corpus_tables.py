"""Corpora from tables: the bytes of JSON lines with the same texts; bad documents by their place; work goes on."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from slow_letters import SlowLetters, index_small_pieces

from hanlin.core.errors import DataError
from hanlin.data.pretraining.indexed_data import indexed_file
from hanlin.data.pretraining.indexing import Encoding, index_in_cache, try_texts

TEXTS = ["abc", "de fg", "x\ny", "  h\t", "ijklmnop" * 4, "q", 'a "quoted", one', "rs\u00e9"] * 3
LINES = "".join(json.dumps({"n": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(TEXTS))


def table() -> pa.Table:
    return pa.table({"n": list(range(len(TEXTS))), "text": TEXTS, "vector": [[0.5] * 9] * len(TEXTS)})


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(TEXTS)])


def write_saved(folder: Path) -> None:
    folder.mkdir()
    for number, part in enumerate((table().slice(0, 10), table().slice(10))):
        with pa.ipc.new_stream(str(folder / f"data-0000{number}-of-00002.arrow"), part.schema) as writer:
            writer.write_table(part)
    for name in ("state.json", "dataset_info.json"):
        listed = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
        (folder / name).write_text(json.dumps({"_data_files": listed}))


FORMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "csv": ("a.csv", write_csv),
    "list": ("a.json", lambda path: path.write_text(f"[{','.join(LINES.splitlines())}]", "utf-8")),
    "parquet": ("a.parquet", lambda path: pq.write_table(table(), path, row_group_size=5)),
    "saved": ("a", write_saved),
    "zstd": ("a.jsonl.zst", lambda path: path.write_bytes(zstandard.compress(LINES.encode()))),
    "gzip": ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(LINES.encode()))),
}


def content(prefix: Path) -> list[bytes]:
    return [indexed_file(prefix, ending).read_bytes() for ending in ("bin", "idx")]


@pytest.fixture
def expected(tmp_path: Path) -> list[bytes]:
    (tmp_path / "lines.jsonl").write_text(LINES, "utf-8")
    index_small_pieces([tmp_path / "lines.jsonl"], tmp_path / "lines", end=35)
    return content(tmp_path / "lines")


@pytest.mark.parametrize("form", FORMS)
def test_a_table_gives_the_bytes_of_json_lines(tmp_path: Path, expected: list[bytes], form: str) -> None:
    name, write = FORMS[form]
    write(tmp_path / name)
    report = index_small_pieces([tmp_path / name], tmp_path / "out", end=35)
    assert content(tmp_path / "out") == expected
    assert report.files == (2 if form == "saved" else 1)
    assert try_texts(tmp_path / name, "text", 10) == (10, False)


def test_folders_and_patterns_hold_every_kind(tmp_path: Path, expected: list[bytes]) -> None:
    (tmp_path / "in").mkdir()
    for form in ("csv", "parquet", "saved"):
        name, write = FORMS[form]
        write(tmp_path / "in" / name)
    index_small_pieces([tmp_path / "in"], tmp_path / "all", workers=2, end=35)
    index_small_pieces([tmp_path / "in" / "*"], tmp_path / "matched", end=35)
    assert content(tmp_path / "all") == content(tmp_path / "matched")
    assert content(tmp_path / "all")[0] == expected[0] * 3
    with pytest.raises(DataError, match=r"\*.txt: nothing matches this pattern"):
        index_small_pieces([tmp_path / "in" / "*.txt"], tmp_path / "none")


def test_bad_documents_are_named_and_only_their_pieces_are_done_again(tmp_path: Path) -> None:
    rows = [{"text": "first"}, {"text": None}, {"text": "third"}, *({"text": f"more {n}"} for n in range(20))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("text,n\nok,1\nragged\nalso ok,2\n" + "fine,3\n" * 20, "utf-8")
    (tmp_path / "c.json").write_text('[{"text": "a"},\n {"text": 5}]', "utf-8")
    files = [tmp_path / name for name in ("a.parquet", "b.csv", "c.json")]
    with pytest.raises(DataError) as caught:
        index_small_pieces(files, tmp_path / "out")
    for wanted in (
        "3 documents cannot be used",
        f"{files[0]}: row 2: no key 'text' (it has: nothing)",
        f"{files[1]}:3: 1 value, the first line names 2 columns",
        f"{files[2]}:2 (entry 2): the value of 'text' must be a text, found 5",
    ):
        assert wanted in str(caught.value)
    files[1].write_text(files[1].read_text("utf-8").replace("ragged", "ragged,7"), "utf-8")
    report = index_small_pieces(files, tmp_path / "out", bad_rows="drop")
    assert report.reused > 0.5
    assert (len(report.sizes), len(report.bad)) == (46, 2)


def test_a_job_on_a_table_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, encoded, encode = tmp_path / "a.parquet", [], SlowLetters.encode
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(100)]}), path, row_group_size=30)

    def encode_some(self: SlowLetters, text: str) -> list[int]:
        if len(encoded) == 50:
            raise KeyboardInterrupt
        encoded.append(text)
        return encode(self, text)

    monkeypatch.setattr(SlowLetters, "encode", encode_some)
    with pytest.raises(KeyboardInterrupt):
        index_small_pieces([path], tmp_path / "out")
    monkeypatch.undo()
    assert index_small_pieces([path], tmp_path / "out").reused > 0.4
    index_small_pieces([path], tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_cannot_be_read_as_asked_is_told(tmp_path: Path) -> None:
    for form in ("csv", "parquet"):
        name, write = FORMS[form]
        write(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}: there is no column 'body' \(it has: n, text"):
            index_small_pieces([tmp_path / name], tmp_path / "out", key="body")
    with pytest.raises(DataError, match=r"a.parquet: has a document in each row; that a file is one is for texts"):
        index_small_pieces([tmp_path / "a.parquet"], tmp_path / "out", per="file")
    (tmp_path / "a.txt").write_bytes("翰林".encode("gbk"))
    with pytest.raises(DataError, match=r"a.txt:1: not UTF-8: .*it reads as GB18030; save the file as UTF-8"):
        index_small_pieces([tmp_path / "a.txt"], tmp_path / "out")


def test_the_cache_knows_a_changed_table_and_another_key(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,other\na,b\nc,d\n", "utf-8")
    made = {
        index_in_cache(path, Encoding(SlowLetters(), key=key), tmp_path / "cache")
        for key in ("text", "other", "text")
    }  # fmt: skip
    assert len(made) == 2
    path.write_text("text,other\na,b\nc,e\n", "utf-8")
    assert index_in_cache(path, Encoding(SlowLetters()), tmp_path / "cache") not in made
