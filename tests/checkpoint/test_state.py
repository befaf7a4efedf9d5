import itertools
import json
import logging
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch
from kills import killed_at
from ranks import run_ranks
from torch import distributed

from hanlin.checkpoint import state
from hanlin.checkpoint.metadata import _HashingFileSystem
from hanlin.checkpoint.state import Checkpointer, Saved, recipe_identity, verify
from hanlin.core import manifest
from hanlin.core.errors import CheckpointError
from hanlin.core.manifest import write_manifest
from hanlin.core.remembered import sha256_of
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


def test_a_later_damaged_checkpoint_goes_though_a_killed_one_of_its_step_is_there(tmp_path):
    checkpointer = saved(tmp_path, 1, 3)
    truncate(tmp_path / "000003" / "state.json")
    shutil.copytree(tmp_path / "000001", tmp_path / "000003.tmp")
    checkpointer.save(2, tensors(2.0), {})
    assert names(tmp_path) == ["000001", "000002", "latest"]


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
    assert "data.train" not in identity, "what lies there is compared, not where"
    assert {"model.family", "tuning.method", "run.seed"} <= set(identity)
    assert not {"data.cache", "data.eval", "run.folder", "train.lr"} & set(identity)


def test_the_best_one_stays_although_its_pointer_is_damaged(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=1)
    checkpointer.save(1, tensors(1.0), {}, is_best=True)
    (tmp_path / "best").write_bytes(b"\xff\xfe\n")
    for step in (2, 3):
        checkpointer.save(step, tensors(0.0), {})
    assert names(tmp_path) == ["000001", "000003", "best", "latest"]
    tmp_path.with_name(f"saved.{tmp_path.name}.json").write_text("[")
    (tmp_path / "best").write_text("000001\n")
    checkpointer.save(4, tensors(0.0), {})
    assert names(tmp_path) == ["000001", "000004", "best", "latest"]


def test_lost_checkpoints_are_told_and_a_run_without_any_does_not_begin_again(tmp_path, caplog):
    checkpointer = saved(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "000002")
    with caplog.at_level(logging.ERROR, "hanlin"):
        assert checkpointer.load_latest(tensors(0.0)) == Saved(1, {"position": [1, 1]})
    assert "checkpoints are gone: 000002" in caplog.text
    shutil.rmtree(tmp_path / "000001")
    with pytest.raises(CheckpointError, match=r"has saved checkpoints .* begin anew with --restart"):
        checkpointer.load_latest(tensors(0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(newer=1), "has newer, which is not known here"),
        (lambda state: state.pop("identity"), "lacks identity"),
        (lambda state: state.update(step="1"), "step. is a str"),
        (lambda state: [state.pop(name) for name in list(state)], "lacks step"),
    ],
)
def test_the_state_of_another_version_is_refused_by_what_differs(tmp_path, change, message):
    checkpointer = saved(tmp_path, 1)
    path = tmp_path / "000001" / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    write_manifest(tmp_path / "000001")
    with pytest.raises(CheckpointError, match=rf"state\.json: .*{message}.*another version"):
        checkpointer.load_latest(tensors(0.0))


def test_a_checkpoint_from_before_settings_were_kept_is_gone_on_with(tmp_path):
    checkpointer = saved(tmp_path, 1)
    path = tmp_path / "000001" / "state.json"
    state = json.loads(path.read_text())
    del state["settings"]
    path.write_text(json.dumps(state))
    write_manifest(tmp_path / "000001")
    assert checkpointer.load_latest(tensors(0.0)) == Saved(1, {"position": [1, 1]})


def test_other_settings_are_told_and_taken_on_request(tmp_path, caplog):
    Checkpointer(tmp_path, settings={"train.lr": 0.1, "train.old": 1}).save(1, tensors(0.0), {})
    settings = {"train.lr": 0.2, "train.new": 1}
    with pytest.raises(CheckpointError, match=r"other settings \(train.lr: 0.1 -> 0.2\).*--change"):
        Checkpointer(tmp_path, settings=settings).load_latest(tensors(0.0))
    with caplog.at_level(logging.WARNING, "hanlin"):
        assert Checkpointer(tmp_path, settings=settings, may_change=True).load_latest(tensors(0.0)) is not None
    assert "with other settings: train.lr: 0.1 -> 0.2" in caplog.text


def test_what_means_nothing_under_another_setting_is_left_behind(tmp_path, caplog):
    weight, anew = torch.ones(3), {"train.optimizer.name": "optimizer."}
    written = {"model.weight": weight, "optimizer.mean.weight": weight}
    Checkpointer(tmp_path, settings={"train.optimizer.name": "one"}).save(1, written, {})
    target = {"model.weight": torch.zeros(3), "optimizer.rows.weight": torch.zeros(1)}
    other = Checkpointer(tmp_path, settings={"train.optimizer.name": "other"}, may_change=True)
    assert other.load_latest(target, anew) == Saved(1, {})
    assert target["model.weight"].equal(weight)
    assert target["optimizer.rows.weight"].equal(torch.zeros(1))
    assert "what one has kept is left behind" in caplog.text
    with pytest.raises(CheckpointError, match=r"missing optimizer\.rows\.weight"):
        Checkpointer(tmp_path, settings={"train.optimizer.name": "one"}).load_latest(target, anew)


def test_a_kill_leaves_a_valid_checkpoint(tmp_path, monkeypatch):
    for call in itertools.count(1, 2):
        folder = tmp_path / str(call)
        checkpointer = saved(folder, 2, keep=1)
        is_killed = killed_at(call, lambda to=checkpointer: to.save(3, tensors(3.0), {"position": [1, 3]}), monkeypatch)
        loaded = checkpointer.load_latest(tensors(0.0))
        assert loaded is not None
        assert loaded.step in (2, 3)
        assert not is_killed or loaded.values == {"position": [1, loaded.step]}
        checkpointer.save(4, tensors(4.0), {})
        assert names(folder)[-2:] == ["000004", "latest"]
        assert not list(folder.glob("*.tmp"))
        if not is_killed:
            break
    assert call > 10


def test_what_a_kill_after_a_checkpoint_left_undone_is_done_when_the_run_goes_on(tmp_path):
    whole, killed = tmp_path / "whole" / "checkpoints", tmp_path / "killed" / "checkpoints"
    saved(whole, 1, 2).save(3, tensors(3.0), {}, is_best=True)
    saved(killed, 1, 2)
    before = tmp_path / "before"
    shutil.copytree(killed.parent, before)
    Checkpointer(killed, keep=2).save(3, tensors(3.0), {}, is_best=True)
    shutil.copytree(before, killed.parent, dirs_exist_ok=True)  # the pointers and what is removed, as before it
    again = Checkpointer(killed, keep=2)
    loaded = again.load_latest(tensors(0.0))
    assert loaded is not None
    again.complete(loaded.step, is_best=True)
    assert names(killed) == names(whole) == ["000002", "000003", "best", "latest"]
    for name in ("checkpoints/best", "checkpoints/latest", "saved.checkpoints.json"):
        assert (killed.parent / name).read_bytes() == (whole.parent / name).read_bytes()


def test_a_checkpoint_that_cannot_grow_is_told_with_the_systems_reason(tmp_path):
    """As on a full disk; torch's container alone would say "unexpected pos"."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"000001: cannot be written: the file is larger than"):
            Checkpointer(tmp_path).save(1, {f"model.{n}": torch.zeros(1000) for n in range(8)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved(tmp_path, 1, 2).load_latest(tensors(0.0)) == Saved(2, {"position": [1, 2]})


def _saved_and_checked(folder: Path, monkeypatch) -> tuple[list[str], list[str], int]:
    """The files that this rank reads to hash them, when it saves two checkpoints and when the newest is loaded."""
    rank, read = distributed.get_rank(), []
    monkeypatch.setattr(manifest, "sha256_of", lambda path: (read.append(path.name), sha256_of(path))[1])
    checkpointer = Checkpointer(folder, in_background=True)
    for step in (1, 2):
        checkpointer.save(step, {f"model.{rank}": torch.full((500,), float(rank))}, {})
    checkpointer.wait()
    distributed.barrier()
    saved, read[:] = list(read), []
    target = torch.zeros(500)
    found = Checkpointer(folder).load_latest({f"model.{rank}": target})
    assert found is not None
    assert target.eq(rank).all()
    return saved, read, found.step


def test_ranks_hash_what_they_write_and_check_a_share_each(tmp_path, monkeypatch):
    (saved, checked, step), (saved_too, checked_too, step_too) = run_ranks(2, _saved_and_checked, tmp_path, monkeypatch)
    assert (step, step_too) == (2, 2)
    assert (saved, saved_too) == (["state.json"] * 2, []), "tensors are hashed while they are written"
    assert sorted(checked + checked_too) == [".metadata", "__0_0.distcp", "__1_0.distcp", "state.json"]
    assert len(checked) == len(checked_too) == 2
    assert verify(tmp_path / "000002") == []
    flip(tmp_path / "000002" / "tensors" / "__1_0.distcp")

    def load() -> int:
        found = Checkpointer(tmp_path).load_latest({f"model.{distributed.get_rank()}": torch.zeros(500)})
        assert found is not None
        return found.step

    assert run_ranks(2, load) == [1, 1], "also the rank that has not read the damaged file goes back"


def test_what_is_saved_in_the_background_is_what_it_was(tmp_path, monkeypatch):
    writing, write = threading.Event(), state._write_later
    monkeypatch.setattr(state, "_write_later", lambda *given: (writing.wait(10), write(*given)))
    checkpointer, given, target = Checkpointer(tmp_path, in_background=True), tensors(1.0), tensors(0.0)
    checkpointer.save(1, given, {})
    for tensor in given.values():
        tensor.add_(1)
    writing.set()
    checkpointer.wait()
    assert checkpointer.load_latest(target) == Saved(1, {})
    assert all(tensor.equal(tensors(1.0)[name]) for name, tensor in target.items())


def test_copies_without_pinned_memory_ask_for_no_streams(tmp_path, monkeypatch):
    """torch would wait for all streams of the device, which torch_npu does not know."""
    asked = []

    class Stager:
        def __init__(self, options):
            asked.append(options)

        def stage(self, tensors):
            return tensors

    monkeypatch.setattr("torch.distributed.checkpoint.staging.DefaultStager", Stager)
    Checkpointer(tmp_path, in_background=True)._staged({"weight": torch.empty(2, device="meta")})
    assert [(options.use_pinned_memory, options.use_non_blocking_copy) for options in asked] == [(False, False)]


def test_a_stream_that_is_written_to_and_fro_is_read_for_its_hash(tmp_path):
    files = _HashingFileSystem()
    for name, turns_back in (("straight", False), ("back", True)):
        with files.create_stream(tmp_path / name, "wb") as stream:
            stream.write(memoryview(b"first"))
            if turns_back:
                stream.seek(0)
            stream.write(bytearray(b"then"))
        assert files.written[name] == ((tmp_path / name).stat().st_size, sha256_of(tmp_path / name))
