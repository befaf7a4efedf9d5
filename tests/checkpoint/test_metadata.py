"""The metadata of a checkpoint is data: what it asks to be called is refused by name."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from hanlin.checkpoint.metadata import MetadataReader
from hanlin.core.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TENSORS = {
    str(dtype): torch.ones(2, 3).to(dtype)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(dict(TENSORS), storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    return tmp_path


def test_what_torch_writes_is_read_as_torch_reads_it(folder: Path) -> None:
    ours, theirs = MetadataReader(folder).read_metadata(), FileSystemReader(folder).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


class _Runs:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_it_is_refused_and_does_not_run(folder: Path, nested: bool) -> None:
    proof = folder / "it_ran"
    metadata = FileSystemReader(folder).read_metadata()
    metadata.planner_data = _Runs(proof)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata if nested else _Runs(proof)))
    with pytest.raises(CheckpointError, match=r"\.metadata: .*posix\.mkdir"):
        MetadataReader(folder).read_metadata()
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage", pickle.dumps({"a": 1}), b"\x80\x04Nr\xff\xff\xff\x7f."])
def test_damage_is_said(folder: Path, content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match="not the metadata of a checkpoint"):
        MetadataReader(folder).read_metadata()


def test_tensors_lie_in_the_folder_itself(folder: Path) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = f"../{info.relative_path}"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="not in its own folder"):
        MetadataReader(folder).read_metadata()


@pytest.mark.parametrize("odd", [[1], 3, {"a": object}, {"a": 1}])
def test_odd_tables_are_damage(folder: Path, odd: object) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    metadata.storage_data = odd
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError):
        MetadataReader(folder).read_metadata()
