"""Files that become shorter while they are read: a message at the row that is gone, never the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from letter_family import LetterProcessor, Letters

from hanlin.core.errors import DamagedFileError, DataError
from hanlin.data.bad_rows import try_records
from hanlin.data.file_array import FileArray, FileBytes
from hanlin.data.loader import Loader
from hanlin.data.prepare import prepare
from hanlin.data.sources import open_records
from hanlin.data.sources.bee import write_bee
from hanlin.data.sources.jsonl import write_jsonl
from hanlin.recipe.settings import DataSettings

ROWS = [{"text": "abc", "<ans>": "d"}] * 2000


def write_bee_set(folder: Path) -> tuple[Path, Path]:
    write_bee(folder / "set", "part", ROWS, block_bytes=1 << 16)
    return folder / "set", folder / "set" / "part"


def write_lines(folder: Path) -> tuple[Path, Path]:
    write_jsonl(folder / "rows.jsonl", ROWS)
    return folder / "rows.jsonl", folder / "rows.jsonl"


@pytest.mark.parametrize("write", [write_lines, write_bee_set])
def test_records_whose_file_is_cut_are_told(tmp_path: Path, write: Callable) -> None:
    path, file = write(tmp_path)
    source = open_records(path)
    os.truncate(file, 4096)
    for row in (0, len(source) - 1):
        with pytest.raises(DataError, match=rf"{file.name}: became shorter while it was in use: 4,096 bytes, there"):
            source[row]


def write_parquet(folder: Path) -> tuple[Path, Path]:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "n": number} for number, row in enumerate(ROWS)]), path)
    return path, path


def write_table(folder: Path) -> tuple[Path, Path]:
    path = folder / "rows.csv"
    path.write_text("text,<ans>\n" + "abc,d\n" * 2000)
    return path, path


@pytest.mark.parametrize("write", [write_lines, write_bee_set, write_parquet, write_table])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_file_that_is_written_to_in_place_is_told(tmp_path: Path, write: Callable, is_known: bool) -> None:
    path, file = write(tmp_path)
    source = open_records(path)
    assert source[0]
    if is_known:
        assert source.fingerprint
    content = file.read_bytes()
    with file.open("r+b") as stream:  # the same inode and size
        stream.write(content[:-20] + b"x" * 10 + content[-10:])
    os.utime(file, (0, 0))
    for row in (1999, 0, 1999):
        with pytest.raises(DamagedFileError, match=rf"{file.name}: was written to while it was in use"):
            source[row]


def test_a_file_whose_bytes_are_known_may_grow_and_be_touched(tmp_path: Path) -> None:
    path, _ = write_lines(tmp_path)
    source = open_records(path)
    assert source.fingerprint
    os.utime(path, (0, 0))
    assert source[3] == ROWS[3]
    with path.open("ab") as stream:
        stream.write(b'{"text": "more"}\n')
    assert [source[row] for row in (0, 1999)] == [ROWS[0], ROWS[1999]]
    assert len(source) == 2000


def test_a_cut_file_ends_the_work_though_bad_rows_are_dropped(tmp_path: Path) -> None:
    path, _ = write_lines(tmp_path)
    source = open_records(path)
    os.truncate(path, 4096)
    with pytest.raises(DamagedFileError, match="became shorter"):
        try_records([source], lambda record: None)


def test_a_file_that_is_removed_or_replaced_is_read_to_its_end(tmp_path: Path) -> None:
    path, _ = write_lines(tmp_path)
    source = open_records(path)
    write_jsonl(path, [{"text": "other"}])  # a new file under the name
    path.unlink()
    assert source[len(source) - 1] == ROWS[-1]


def test_a_cache_that_is_cut_while_a_run_reads_it_ends_in_a_message(tmp_path: Path) -> None:
    path, _ = write_lines(tmp_path)
    settings = DataSettings(train=[path], max_length=16, cache=tmp_path / "cache")
    data = prepare([path], LetterProcessor(), settings, tokenizer=Letters(), progress=False)
    loader = Loader(data, LetterProcessor(), max_length=16, batch_size=4)
    next(iter(loader))
    os.truncate(next((tmp_path / "cache").glob("*/tokens.npy")), 4096)
    with pytest.raises(DataError, match=r"tokens\.npy: became shorter while it was in use"):
        list(loader)


def test_nothing_is_mapped(tmp_path: Path) -> None:
    """A process that maps a file dies of SIGBUS when it is cut; ours ends as Python does."""
    path, _ = write_lines(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from hanlin.data.sources import open_records\n"
        "rows = open_records(Path(sys.argv[1])); os.truncate(sys.argv[1], 0)\n"
        "try: rows[1999]\n"
        "except Exception as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "DamagedFileError\n"), done.stderr


def test_arrays_in_files_are_sliced_like_arrays(tmp_path: Path) -> None:
    table = np.arange(24, dtype=np.int32).reshape(8, 3)
    np.save(tmp_path / "a.npy", table)
    array = FileArray.of_npy(tmp_path / "a.npy")
    assert (len(array), array.shape, array.dtype) == (8, (8, 3), np.int32)
    for part in (slice(None), slice(2, 5), slice(-2, None), slice(5, 2), slice(6, 99)):
        assert np.array_equal(array[part], table[part])
    assert array[7].tolist() == table[7].tolist()
    assert np.array_equal(np.array(array), table)
    assert b"".join(FileBytes(tmp_path / "a.npy").chunks(7)) == (tmp_path / "a.npy").read_bytes()


@pytest.mark.parametrize("cut", [0, 5, 9, 60, 127, 130, -1])
def test_an_array_file_that_is_cut_is_refused(tmp_path: Path, cut: int) -> None:
    np.save(tmp_path / "a.npy", np.arange(24))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.npy: no (whole )?\.npy file"):
        FileArray.of_npy(tmp_path / "a.npy")
