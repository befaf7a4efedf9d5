"""Patterns, folders of files and saved data sets: which files they stand for, and where each row lies."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from hanlin.core.errors import DataError
from hanlin.data.sources import open_records
from hanlin.data.sources.jsonl import write_jsonl
from hanlin.data.sources.several import is_there


def write_stream(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_saved(folder: Path, shards: list[list[str]], **state) -> Path:
    """As `save_to_disk` of the library `datasets` writes it."""
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        write_stream(folder / name, texts)
    listed = {"_data_files": [{"filename": name} for name in names], **state}
    (folder / "state.json").write_text(json.dumps(listed), "utf-8")
    (folder / "dataset_info.json").write_text("{}", "utf-8")
    return folder


def read(path: Path) -> list[str]:
    source = open_records(path)
    return [source[row]["text"] for row in range(len(source))]


def make_files(folder: Path) -> None:
    """Six kinds, whose names are in the order of their texts."""
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "1"}\n\n{"text": "2"}\n', "utf-8")
    (folder / "b.json").write_text('[{"text": "3"}]', "utf-8")
    (folder / "c.csv.gz").write_bytes(gzip.compress(b"text\n4\n"))
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "5"}'))
    write_stream(folder / "deep" / "e.arrow", ["6", "7"])
    (folder / "f.tsv").write_text("text\tn\n8\t1\n", "utf-8")
    (folder / "README.md").write_text("no rows")
    (folder / ".hidden.jsonl").write_text("no rows")


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_files(tmp_path / "data")
    with caplog.at_level("INFO"):
        assert read(tmp_path / "data") == list("12345678")
    assert "not read, by their names: README.md" in caplog.text
    source = open_records(tmp_path / "data")
    assert source.where(1) == f"{tmp_path / 'data' / 'a.jsonl'}:3"
    assert source.where(6) == f"{tmp_path / 'data' / 'deep' / 'e.arrow'}: row 2"
    assert (
        source.kind == "6 files: JSON lines, JSON list, table with commas, UTF-8, Arrow stream, table with tabs, UTF-8"
    )


def test_patterns_match_files_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "d.txt").write_text("no rows")
    assert read(tmp_path / "*.jsonl") == ["a", "b", "c"]
    assert read(tmp_path / "[ac].jsonl") == ["a", "c"]
    assert read(tmp_path / "**" / "?.jsonl") == ["a", "b", "c"]
    write_jsonl(tmp_path / "[x].jsonl", [{"text": "its own name"}])
    assert read(tmp_path / "[x].jsonl") == ["its own name"]
    assert is_there(tmp_path / "*.jsonl")
    assert not is_there(tmp_path / "*.csv")
    with pytest.raises(DataError, match=r"\*.csv: nothing matches this pattern; .* has \[x\].jsonl, a.jsonl"):
        open_records(tmp_path / "*.csv")
    with pytest.raises(DataError, match=r"nothing matches this pattern; there is no .*none"):
        open_records(tmp_path / "none" / "*.csv")


def test_the_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    before = open_records(tmp_path).fingerprint
    assert open_records(tmp_path / "*.jsonl").fingerprint == before
    write_jsonl(tmp_path / "b.jsonl", [{"text": "c"}])
    assert open_records(tmp_path).fingerprint != before


def test_a_folder_without_data_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"a folder without data files \(.jsonl, .* it has notes.md"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("train.jsonl", "test.jsonl"), "train*"),
        (("train/0.jsonl", "dev/0.jsonl"), "train"),
        (("data/a-train-0.jsonl", "data/a-validation-0.jsonl"), "data/a-train*"),
    ],
)
def test_files_of_several_splits_are_not_mixed(tmp_path: Path, names: tuple[str, str], named: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, [{"text": name}])
    with pytest.raises(DataError, match=r"files of several splits lie in it; name those of one: ") as caught:
        open_records(tmp_path)
    assert f"train ('{tmp_path / named}')" in str(caught.value)
    assert read(tmp_path / named) == [names[0]]


def test_saved_data_sets_are_read_shard_after_shard(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "set", [["1", "2"], ["3"], ["4"]])
    assert read(folder) == list("1234")
    assert open_records(folder).where(2) == f"{folder / 'data-00001-of-00003.arrow'}: row 1"
    expected = open_records(folder).fingerprint
    for file in folder.glob("*.json"):
        file.unlink()
    assert open_records(folder).fingerprint == expected


def test_what_a_saved_data_set_lacks_is_named(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "set", [["1", "2"], ["3"]])
    (folder / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"lists data-00000-of-00002.arrow, missing here"):
        open_records(folder)
    (folder / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state.json: no list of data files"):
        open_records(folder)
    chosen = write_saved(tmp_path / "chosen", [["1"]], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match=r"flatten_indices\(\)"):
        open_records(chosen)


def test_of_saved_splits_one_has_to_be_named(tmp_path: Path) -> None:
    for split in ("validation", "train"):
        write_saved(tmp_path / "sets" / split, [[split]])
    (tmp_path / "sets" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    with pytest.raises(DataError, match=r"holds the splits train, validation; name one of them: .*sets/train"):
        open_records(tmp_path / "sets")
    assert read(tmp_path / "sets" / "validation") == ["validation"]


def test_no_row_is_read_twice_whatever_a_pattern_goes_through(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "1"), ("deep/b.jsonl", "2")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / "data" / name, [{"text": text}])
    (tmp_path / "data" / "again").symlink_to(".")
    (tmp_path / "else").mkdir()
    write_jsonl(tmp_path / "else" / "c.jsonl", [{"text": "3"}])
    (tmp_path / "data" / "linked").symlink_to("../else")
    for pattern in ("data", "data/**", "data/*", "data/**/*.jsonl", "d*"):
        assert sorted(read(tmp_path / pattern)) == ["1", "2", "3"], pattern


def test_unfinished_files_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("a.jsonl", "a.jsonl.part", "b.jsonl~", "c.jsonl.lock", "d.jsonl.CRDOWNLOAD")
    for name in names:
        write_jsonl(tmp_path / name, [{"text": name}])
    for path in (tmp_path / "*", tmp_path / "*.jsonl*", tmp_path):
        caplog.clear()
        assert read(path) == ["a.jsonl"]
        assert all(name in caplog.text for name in names[1:])
    assert read(tmp_path / "*.part") == ["a.jsonl.part"]
    assert read(tmp_path / "a.jsonl.part") == ["a.jsonl.part"]


def test_a_pipe_in_a_folder_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "1"}])
    os.mkfifo(tmp_path / "b.jsonl")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(DataError, match=r"b\.jsonl: is a pipe or a device"):
            open_records(path)


def test_a_link_that_leads_nowhere_is_no_missing_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "1"}])
    for name, target in (("b.jsonl", "gone.jsonl"), ("c.jsonl", "c.jsonl")):
        (tmp_path / name).symlink_to(target)
        for path in (tmp_path, tmp_path / "*.jsonl"):
            with pytest.raises(DataError, match=f"{name}: (a link that leads nowhere|there is no such file)"):
                open_records(path)
        (tmp_path / name).unlink()
