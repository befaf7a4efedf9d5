"""Texts to indexed data: the same bytes however many processes; what was done is not done again; bad rows are named."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slow_letters
from slow_letters import SlowLetters, index_small_pieces

from hanlin.core.errors import DataError
from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file
from hanlin.data.pretraining.indexing import Encoding, index_in_cache

TEXTS = ["abc", "de fg", "", "  h\t", "ijklmnop" * 4, "q", "rs\u00e9"]


def write_lines(path: Path, texts: list[str] = TEXTS) -> Path:
    path.write_text("\ufeff" + "\r\n".join(texts), "utf-8")
    return path


def read(prefix: Path) -> list[str]:
    data = IndexedData(prefix)
    assert data.index.documents.tolist() == list(range(len(data) + 1))
    return ["".join(map(chr, data[item])) for item in range(len(data))]


def content(prefix: Path) -> list[bytes]:
    return [indexed_file(prefix, ending).read_bytes() for ending in ("bin", "idx")]


WANTED = [text.strip() + "#" for text in TEXTS if text]


def test_lines_json_and_packed_files_become_documents(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": 1, "body": text}) + "\n" for text in TEXTS if text).encode()
    (tmp_path / "in" / "b").mkdir(parents=True)
    write_lines(tmp_path / "in" / "a.txt")
    (tmp_path / "in" / "b" / "c.jsonl.gz").write_bytes(gzip.compress(rows))
    report = index_small_pieces([tmp_path / "in"], tmp_path / "out", end=ord("#"), key="body")
    assert read(tmp_path / "out") == WANTED * 2
    assert IndexedData(tmp_path / "out").index.dtype == "<u2"
    assert (report.files, len(report.sizes), report.tokens) == (2, 12, sum(map(len, WANTED * 2)))
    assert report.characters == report.tokens - 12
    assert not (tmp_path / "out.parts").exists()


def test_a_file_may_be_one_document(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"{number}\nand more\n")
    files = [tmp_path / f"{number}.txt" for number in (2, 0, 1)]
    index_small_pieces(files, tmp_path / "out", per="file")
    assert read(tmp_path / "out") == [f"{number}\nand more" for number in (2, 0, 1)]


def test_processes_write_what_one_writes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", TEXTS * 20)
    index_small_pieces([path], tmp_path / "one", end=35)
    index_small_pieces([path], tmp_path / "two", end=35, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_part_is_encoded_again(tmp_path: Path, damage: str) -> None:
    path = write_lines(tmp_path / "a.txt", [*TEXTS * 4, "end"])
    bad = tmp_path / "b.jsonl"
    bad.write_text("no json")
    with pytest.raises(DataError, match="1 documents cannot be used"):
        index_small_pieces([path, bad], tmp_path / "out")
    part = max((tmp_path / "out.parts").glob("*.npz"), key=lambda one: one.stat().st_size)
    content_of = bytearray(part.read_bytes())
    content_of[len(content_of) // 3] ^= 16
    part.write_bytes({"flip": content_of, "cut": content_of[:-40], "empty": b""}[damage])
    bad.write_text('{"text": "z"}')
    index_small_pieces([path, bad], tmp_path / "out")
    index_small_pieces([path, bad], tmp_path / "anew")
    assert content(tmp_path / "out") == content(tmp_path / "anew")


@pytest.mark.parametrize("name", ["documents.bin", "documents.idx", "cache.json"])
def test_a_damaged_corpus_of_the_cache_is_made_again(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, encoding = write_lines(tmp_path / "a.txt"), Encoding(SlowLetters())
    prefix = index_in_cache(path, encoding, tmp_path / "cache")
    whole = content(prefix)
    file = prefix.parent / name
    damaged = bytearray(file.read_bytes())
    damaged[-2] ^= 1
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert content(index_in_cache(path, encoding, tmp_path / "cache")) == whole
    assert "damaged" in caplog.text
    caplog.clear()
    assert content(index_in_cache(path, encoding, tmp_path / "cache")) == whole
    assert not caplog.text


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", [f"text {number}" for number in range(400)])
    command = [sys.executable, slow_letters.__file__, str(path), str(tmp_path / "out"), "0.05"]
    job = subprocess.Popen(command, start_new_session=True)
    try:
        while len(list((tmp_path / "out.parts").glob("*.npz"))) < 5:
            assert job.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    assert not indexed_file(tmp_path / "out", "idx").exists()
    report = index_small_pieces([path], tmp_path / "out")
    index_small_pieces([path], tmp_path / "whole")
    assert report.reused > 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_bad_rows_are_listed_and_only_their_piece_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b'{"text": "good text number %d"}' % number for number in range(12)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*lines[:4], b'{"texts": "xxxxxxxxxxxxxxxxxxx"}', *lines[4:9], b"\xff", *lines[9:]]))
    with pytest.raises(DataError) as caught:
        index_small_pieces([path], tmp_path / "out")
    assert "2 documents cannot be used" in str(caught.value)
    assert f"{path}:5: no key 'text' (it has: texts)" in str(caught.value)
    assert f"{path}:11: not UTF-8: byte 0xff" in str(caught.value)
    dropped = index_small_pieces([path], tmp_path / "dropped", bad_rows="drop")
    assert (len(dropped.sizes), [where for where, _ in dropped.bad]) == (12, [f"{path}:5", f"{path}:11"])
    encoded = []
    monkeypatch.setattr(SlowLetters, "encode", lambda self, text: encoded.append(text) or [1])
    path.write_bytes(path.read_bytes().replace(b'"texts"', b'"text" ').replace(b"\xff", b"{}"))
    with pytest.raises(DataError, match="1 documents"):
        index_small_pieces([path], tmp_path / "out")
    assert 0 < len(encoded) < 6


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        index_small_pieces([tmp_path / "none.txt"], tmp_path / "out")
    with pytest.raises(DataError, match="hold no documents"):
        index_small_pieces([write_lines(tmp_path / "a.txt", ["", " "])], tmp_path / "out")
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(os.urandom(9000))[:4000])
    with pytest.raises(DataError, match=r"b\.txt\.gz: damaged or cut off"):
        index_small_pieces([packed], tmp_path / "out")
    (tmp_path / "d.txt.zst").write_bytes(b"\x28\xb5\x2f\xfdcut off")
    with pytest.raises(DataError, match=r"d\.txt\.zst: damaged or cut off"):
        index_small_pieces([tmp_path / "d.txt.zst"], tmp_path / "out")
    (tmp_path / "c.txt").write_bytes("字".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        index_small_pieces([tmp_path / "c.txt"], tmp_path / "out")
