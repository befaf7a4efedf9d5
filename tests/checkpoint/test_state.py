import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from hanlin.checkpoint.state import Checkpointer, Saved, recipe_identity, verify
from hanlin.core.errors import CheckpointError
from hanlin.recipe.settings import Recipe


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((3, 4), value), "optimizer.steps.a": torch.tensor(value)}


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpointer:
    checkpointer = Checkpointer(folder, keep)
    for step in steps:
        checkpointer.save(step, tensors(float(step)), {"position": [1, step]})
    return checkpointer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    target = tensors(0.0)
    assert saved(tmp_path, 1, 2).load_latest(target) == Saved(2, {"position": [1, 2]})
    assert all(tensor.equal(tensors(2.0)[name]) for name, tensor in target.items())


def test_a_fresh_run_has_nothing_to_load(tmp_path):
    assert Checkpointer(tmp_path / "none").load_latest(tensors(0.0)) is None


def test_newest_and_best_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in range(1, 6):
        checkpointer.save(step, tensors(0.0), {}, is_best=step in (1, 2))
    assert names(tmp_path) == ["000002", "000004", "000005", "best", "latest"]
    assert (tmp_path / "latest").read_text() == "000005\n"
    assert (tmp_path / "best").read_text() == "000002\n"


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [delete, truncate, flip])
@pytest.mark.parametrize("file", ["tensors/.metadata", "tensors/__0_0.distcp", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, damage, file):
    checkpointer = saved(tmp_path, 1, 2)
    damage(tmp_path / "000002" / file)
    target = tensors(0.0)
    with caplog.at_level(logging.ERROR, "hanlin"):
        assert checkpointer.load_latest(target) == Saved(1, {"position": [1, 1]})
    assert target["model.a"].equal(tensors(1.0)["model.a"])
    assert "000002 is damaged" in caplog.text
    # A flipped letter of the manifest may be in the name or hash of any file.
    assert (damage is flip and file == "manifest.json") or Path(file).name in caplog.text
    assert "going back to checkpoint" in caplog.text


def test_every_flipped_byte_of_the_manifest_is_noticed(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "000001" / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert verify(tmp_path / "000001"), f"byte {place}"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path):
    checkpointer = saved(tmp_path, 1, 2)
    for step in (1, 2):
        delete(tmp_path / f"{step:06}" / "state.json")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(000001, 000002\)"):
        checkpointer.load_latest(tensors(0.0))


@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_the_pointer_to_the_latest_may_be_lost(tmp_path, damage):
    checkpointer = saved(tmp_path, 1, 2)
    damage(tmp_path / "latest")
    loaded = checkpointer.load_latest(tensors(0.0))
    assert loaded is not None
    assert loaded.step == 2


def test_an_unfinished_checkpoint_is_no_checkpoint_and_goes_away(tmp_path):
    checkpointer = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "000001", tmp_path / "000002.tmp")
    loaded = checkpointer.load_latest(tensors(0.0))
    assert loaded is not None
    assert loaded.step == 1
    checkpointer.save(3, tensors(3.0), {})
    assert names(tmp_path) == ["000001", "000003", "latest"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    checkpointer = saved(tmp_path, 1)

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="no space is left on its disk; make room"):
        checkpointer.save(2, tensors(2.0), {})
    monkeypatch.undo()
    assert checkpointer.load_latest(tensors(0.0)) == Saved(1, {"position": [1, 1]})


def test_saving_replaces_a_damaged_checkpoint_and_drops_the_ones_after_it(tmp_path):
    checkpointer = saved(tmp_path, 1, 2, 3, keep=3)
    for step in (2, 3):
        truncate(tmp_path / f"{step:06}" / "state.json")
    checkpointer.save(2, tensors(2.0), {})
    assert names(tmp_path) == ["000001", "000002", "latest"]
    assert verify(tmp_path / "000002") == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"model.a": torch.zeros(3, 4)}, "unknown optimizer.steps.a"),
        ({**tensors(0.0), "model.b": torch.zeros(1)}, "missing model.b"),
        ({**tensors(0.0), "model.a": torch.zeros(3, 5)}, "model.a"),
    ],
)
def test_a_missing_part_is_an_error_and_not_a_silence(tmp_path, wanted, message):
    with pytest.raises(CheckpointError, match=message):
        saved(tmp_path, 1).load_latest(wanted)


def test_a_run_of_another_recipe_is_refused_with_what_differs(tmp_path):
    Checkpointer(tmp_path, identity={"model.size": "tiny", "data.pack": True, "data.in_context": (1.0,)}).save(
        1, tensors(0.0), {}
    )
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(tmp_path, identity={"model.size": "small", "data.in_context": (1.0,)}).load_latest(tensors(0.0))
    assert "model.size: was 'tiny', is 'small'" in str(caught.value)
    assert "data.pack: was True, is None" in str(caught.value)
    assert "in_context" not in str(caught.value)


def test_identity_is_model_data_tuning_and_seed(tmp_path):
    recipe = Recipe.model_validate(
        {"model": {"family": "cpm_bee"}, "run": {"folder": tmp_path}, "data": {"train": ["a.jsonl"], "eval": ["b"]}}
    )
    identity = recipe_identity(recipe)
    assert json.loads(json.dumps(identity))["data.train"] == ["a.jsonl"]
    assert {"model.family", "tuning.method", "run.seed"} <= set(identity)
    assert not {"data.cache", "data.eval", "run.folder", "train.lr"} & set(identity)
