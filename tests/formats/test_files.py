"""Weight files in and out, and every kind of damage that a file can have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hanlin.core.errors import CheckpointError
from hanlin.core.files import published
from hanlin.formats.files import open_weights, write_pickle, write_safetensors, write_shards


def make_tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=draw),
        "b": torch.randn(7, generator=draw).half(),
        "c": torch.arange(2),
        "d": torch.randn(4, 4, generator=draw).bfloat16().t(),
        "e": torch.ones((), dtype=torch.bool),
    }


def same(weights, tensors: dict[str, torch.Tensor]) -> bool:
    return set(weights) == set(tensors) and all(weights[name].equal(tensors[name]) for name in tensors)


def test_our_safetensors_are_read_by_the_library_too(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", make_tensors())
    assert same(load_file(tmp_path / "x.safetensors"), make_tensors())
    assert same(open_weights(tmp_path), make_tensors())


def test_pickled_weights_come_back_and_shared_storages_are_not_written_whole(tmp_path: Path) -> None:
    large = torch.randn(100_000)
    write_pickle(tmp_path / "x.bin", {**make_tensors(), "part": large[:10]})
    assert same(open_weights(tmp_path / "x.bin"), {**make_tensors(), "part": large[:10]})
    assert (tmp_path / "x.bin").stat().st_size < 20_000


def test_files_of_torch_before_1_6_are_read(tmp_path: Path) -> None:
    torch.save(make_tensors(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(open_weights(tmp_path / "old.pt"), make_tensors())


def test_shards_with_their_index(tmp_path: Path) -> None:
    write_shards(tmp_path, make_tensors(), shard_bytes=70)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert same(open_weights(tmp_path), make_tensors())


def test_forgetting_a_tensor_does_not_lose_it(tmp_path: Path) -> None:
    tensors = {"large": torch.randn(300, 300), "other": torch.randn(300, 300)}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    write_pickle(tmp_path / "x.bin", tensors)
    for name in ("x.safetensors", "x.bin"):
        weights = open_weights(tmp_path / name)
        weights.forget("large")
        assert same(weights, tensors)


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch /tmp/hanlin_was_run",))


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def without_shard(folder: Path) -> Path:
    next(folder.glob("model-00002*")).unlink()
    return folder


def index_with(folder: Path, **changes: object) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    return folder


DAMAGE = {
    "cut_safetensors": lambda f: cut(f / "x.safetensors", 0.7) or f / "x.safetensors",
    "cut_header": lambda f: cut(f / "x.safetensors", 0.05) or f / "x.safetensors",
    "empty_safetensors": lambda f: cut(f / "x.safetensors", 0) or f / "x.safetensors",
    "cut_bin": lambda f: cut(f / "x.bin", 0.7) or f / "x.bin",
    "empty_bin": lambda f: cut(f / "x.bin", 0) or f / "x.bin",
    "text_bin": lambda f: (f / "x.bin").write_text("<html>404</html>") and f / "x.bin",
    "lfs_pointer": lambda f: (f / "x.bin").write_text("version https://git-lfs.github.com/spec/v1\n") and f / "x.bin",
    "hostile_bin": lambda f: torch.save({"a": Hostile()}, f / "x.bin") or f / "x.bin",
    "hostile_old_bin": lambda f: (
        torch.save({"a": Hostile()}, f / "x.bin", _use_new_zipfile_serialization=False) or f / "x.bin"
    ),
    "not_a_dict": lambda f: torch.save([1], f / "x.bin") or f / "x.bin",
    "not_only_tensors": lambda f: torch.save({"model": {}, "step": 3}, f / "x.bin") or f / "x.bin",
    "missing_shard": lambda f: without_shard(f / "shards"),
    "index_without_map": lambda f: index_with(f / "shards", weight_map=None),
    "index_names_lost_tensor": lambda f: index_with(f / "shards", weight_map={"z": "model-00001-of-00003.safetensors"}),
    "index_cut": lambda f: cut(f / "shards" / "model.safetensors.index.json", 0.5) or f / "shards",
    "nothing_there": lambda f: f / "nowhere.bin",
    "folder_without_weights": lambda f: f,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_error_that_names_the_file(kind: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", make_tensors())
    write_pickle(tmp_path / "x.bin", make_tensors())
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", make_tensors(), shard_bytes=70)
    path = DAMAGE[kind](tmp_path)
    with pytest.raises(CheckpointError) as raised:
        open_weights(path)
    assert str(path) in str(raised.value)
    assert not Path("/tmp/hanlin_was_run").exists()
    assert ("system beside tensors and is refused" in str(raised.value)) == kind.startswith("hostile")
    assert "Re-running" not in str(raised.value)


def test_what_fails_half_way_leaves_the_old_target(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(CheckpointError, match="exists already"), published(target):
        pass
    with pytest.raises(FileNotFoundError), published(target, "replace") as beside:
        (beside / "in a folder that is not there").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]
    with published(target, "replace") as beside:
        beside.mkdir()
        (beside / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


@pytest.mark.parametrize("named", ["run/checkpoints", "run/checkpoints/000010"])
def test_a_checkpoint_in_the_place_of_weights_is_told_with_what_to_name(named: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/000010"
    (checkpoint / "tensors").mkdir(parents=True)
    (checkpoint / "state.json").touch()
    (tmp_path / "run/checkpoints/latest").write_text("000010")
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(CheckpointError, match="go on from, which writes last/"):
        open_weights(tmp_path / named)
    (tmp_path / "run/last").mkdir()
    with pytest.raises(CheckpointError, match=r"weights for use lie in .*run/last"):
        open_weights(tmp_path / named)
