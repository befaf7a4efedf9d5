"""The state of a run on disk: torch DCP files and `state.json`, complete or not there at all.

    checkpoints/000100/   tensors/ (DCP; readable under any layout), state.json (plain values), manifest.json
    checkpoints/latest    the number of the newest one; `best`: of the one that must stay (for people)
    saved.checkpoints.json    which there must be (checkpoint/saved.py)

A checkpoint is written to NNNNNN.tmp, its files are synced and hashed into the manifest, then it is renamed; `latest`
moves after that and old ones go last. Only trained weights are in it; the frozen base is not.
Of several ranks each writes its own part of the tensors and hashes it on its way, the main one does all else; before
one is read, each hashes a share of the files. The folder must be one that all of them see.
DCP's own index is a pickle, which is read without running anything (checkpoint/metadata.py).
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.checkpoint.saved import SavedSteps, checkpoint_folders, lost_checkpoints, read_saved, refuse_lost
from hanlin.core.collectives import call_on_main, gather_values, has_ranks, is_main_rank, new_cpu_group, wait_for_all
from hanlin.core.device import can_pin_in_place
from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import read_json_object, remove_leftovers, replaced_file, sync
from hanlin.core.manifest import FileFacts, manifest_problems, write_manifest
from hanlin.core.os_errors import explain, reason_of
from hanlin.recipe.settings import Recipe

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.staging import DefaultStager

log = logging.getLogger(__name__)

TENSORS, STATE = "tensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: its step, its plain values, and the file that holds them."""

    step: int
    values: dict[str, Any]
    path: Path = field(default=Path(), compare=False)


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    folder: `checkpoints` of a run folder. keep: how many newest ones stay, besides the best; identity: what must be
    equal for a resume to make sense (`recipe_identity`), by dotted key; settings: what must be equal unless may_change
    says that other ones are wanted; in_background: `save` returns when the values are copied to the CPU's memory,
    the next one and `wait` wait for what is still written.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        may_change: bool = False,
        in_background: bool = False,
    ) -> None:
        self.folder, self.keep, self.in_background, self.may_change = folder, keep, in_background, may_change
        self.identity = json.loads(json.dumps(dict(identity or {})))
        self.settings = json.loads(json.dumps(dict(settings or {})))
        self._threads = ThreadPoolExecutor(1) if in_background else None
        self._pending: Future[None] | None = None
        # The ranks agree on a checkpoint in the background while they train in the foreground.
        self._group = new_cpu_group() if in_background else None
        self._stager: DefaultStager | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        values: Mapping[str, Any],
        *,
        is_best: bool = False,
    ) -> None:
        """Publish a checkpoint; remove those that are no longer kept. Every rank must call it.

        values: plain, as JSON holds them; those of the main rank count. is_best: it stays until there is a better one.
        Raises: CheckpointError when it cannot be written; the earlier ones stay.
        """
        self.wait()
        target = self.folder / f"{step:06}"
        beside = target.with_suffix(".tmp")
        finish = partial(self._finish, beside, target, step, dict(values), is_best=is_best)
        with _naming(target):
            self._begin(beside)
            if self._threads is None:
                finish(_write_tensors(beside / TENSORS, tensors))
                wait_for_all()
                return
        copies = self._staged({name: tensor.detach() for name, tensor in tensors.items()})
        self._pending = self._threads.submit(_write_later, beside / TENSORS, copies, self._group, finish)

    def wait(self) -> None:
        """Until what is written in the background is there.

        Raises: CheckpointError when it cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with _naming(self.folder):
                pending.result()

    def load_latest(
        self, tensors: Mapping[str, torch.Tensor], begun_anew: Mapping[str, str] | None = None
    ) -> Saved | None:
        """Fill `tensors` from the newest valid checkpoint; None if there never was one.

        begun_anew: setting -> how the names of tensors begin that mean nothing under another value of it: these stay as
        they are where the checkpoint was written with another one.
        Damaged and lost ones are named in the log and passed over.
        Raises: CheckpointError when all are damaged or lost, when one lacks a tensor or was written by another version,
        and for a run of another identity or other settings.
        """
        folder = self._newest_valid()
        if folder is None:
            return None
        # Of a checkpoint without settings, from before they were kept, none are compared.
        state = {"settings": {}, **read_json_object(folder / STATE)}
        check_keys(folder / STATE, state, {"step": 0, "identity": {}, "settings": {}, "values": {}})
        self._check_identity(folder, state["identity"])
        self._check_settings(folder, state["settings"])
        left = self._left_behind(state["settings"], begun_anew or {})
        _read_tensors(folder / TENSORS, tensors, left)
        return Saved(state["step"], state["values"], folder / STATE)

    def _newest_valid(self) -> Path | None:
        folders = call_on_main(self._look)
        for folder in reversed(folders):
            # Each rank reads a share of the files; what is wrong with the manifest all of them tell.
            if problems := list(dict.fromkeys(one for told in gather_values(verify(folder, _share())) for one in told)):
                self._tell("checkpoint %s is damaged and not used: %s", folder, "; ".join(problems))
                continue
            if folder is not folders[-1]:
                self._tell("going back to checkpoint %s (step %d)", folder, int(folder.name))
            return folder
        if not folders:
            return None
        raise CheckpointError(
            f"{self.folder}: all checkpoints are damaged ({', '.join(folder.name for folder in folders)}); "
            "restore one from a copy, or remove the folder to start anew"
        )

    def _look(self) -> list[Path]:
        """The checkpoints that are there; which are lost is told.

        Raises: CheckpointError.
        """
        refuse_lost(self.folder)
        try:
            lost = lost_checkpoints(self.folder)
        except CheckpointError as error:
            log.error("%s", error)
        else:
            if lost:
                log.error("%s: checkpoints are gone: %s", self.folder, ", ".join(f"{step:06}" for step in lost))
        return checkpoint_folders(self.folder)

    def _tell(self, text: str, *values: object) -> None:
        if is_main_rank():
            log.error(text, *values)

    def _staged(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies in the CPU's memory. Of what lies on an accelerator the memory is pinned, where torch can do that, and
        kept for the next time, since pinning takes long; the device is waited for once.
        """
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        devices = {tensor.device for tensor in tensors.values()}
        on_device, can_pin = any(device.type != "cpu" for device in devices), any(map(can_pin_in_place, devices))
        stager = self._stager or DefaultStager(
            StagingOptions(
                use_pinned_memory=can_pin,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=can_pin,  # else torch would wait for all streams, which not every device knows
            )
        )
        self._stager = stager if on_device else None
        return stager.stage(tensors)  # pyright: ignore[reportReturnType]  # not a future, where it is not asynchronous

    def _begin(self, beside: Path) -> None:
        if is_main_rank():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync(self.folder.parent)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
        wait_for_all()

    def _finish(
        self, beside: Path, target: Path, step: int, values: Mapping[str, Any], written: FileFacts, *, is_best: bool
    ) -> None:
        """After all ranks have written their tensors: the rest, by the main one."""
        if not is_main_rank():
            return
        state = {"step": step, "identity": self.identity, "settings": self.settings, "values": values}
        _write_json(beside / STATE, state)
        write_manifest(beside, {f"{TENSORS}/{name}": facts for name, facts in written.items()})
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
        beside.rename(target)
        sync(self.folder)
        self._announce(target, is_best=is_best)

    def _check_identity(self, folder: Path, was: Mapping[str, Any]) -> None:
        compared = {*was, *self.identity} - {*MOVABLE, *(key for key in _NOTED_LATER if key not in was)}
        changed = [key for key in sorted(compared) if was.get(key) != self.identity.get(key)]
        if changed:
            lines = [f"  {key}: was {was.get(key)!r}, is {self.identity.get(key)!r}" for key in changed]
            raise CheckpointError(
                "\n".join([f"{folder} belongs to a run with other settings:", *lines])
                + "\nset them back to resume this run, or choose another run.folder for a new one"
            )

    def _check_settings(self, folder: Path, was: Mapping[str, Any]) -> None:
        """Settings that one side does not know came into being, or went, with another version."""
        keys = sorted(was.keys() & self.settings.keys())
        changed = [f"{key}: {was[key]} -> {self.settings[key]}" for key in keys if was[key] != self.settings[key]]
        if changed and not self.may_change:
            raise CheckpointError(
                f"{folder} was written with other settings ({'; '.join(shorten(changed, 4))}); set them back, or go on "
                "with the new ones (--change)"
            )
        if changed:
            log.warning("going on from %s with other settings: %s", folder, "; ".join(changed))

    def _left_behind(self, was: Mapping[str, Any], begun_anew: Mapping[str, str]) -> tuple[str, ...]:
        """How the names of tensors begin that are not read; see `load_latest`."""
        changed = [
            key for key in begun_anew.keys() & was.keys() & self.settings.keys() if was[key] != self.settings[key]
        ]
        for key in changed:
            log.warning("%s: what %s has kept is left behind, %s begins anew", key, was[key], self.settings[key])
        return tuple(begun_anew[key] for key in changed)

    def complete(self, step: int, *, is_best: bool) -> None:
        """Do what the process that wrote the newest checkpoint, of `step`, was killed before: pointers to it, and the
        removal of older ones. is_best: as `save` was told.
        """
        if is_main_rank() and step == int(checkpoint_folders(self.folder)[-1].name):
            with _naming(self.folder):
                self._announce(self.folder / f"{step:06}", is_best=is_best)

    def _announce(self, target: Path, *, is_best: bool) -> None:
        if is_best:
            self._point("best", target)
        self._point("latest", target)
        self._prune(int(target.name), is_best=is_best)

    def _best_step(self) -> int | None:
        try:
            saved = read_saved(self.folder)
        except CheckpointError as error:
            log.error("%s; written anew", error)
            saved = None
        return _read_pointer(self.folder / "best") if saved is None else saved.best

    def _point(self, name: str, target: Path) -> None:
        with replaced_file(self.folder / name) as stream:
            stream.write(f"{target.name}\n".encode())
        sync(self.folder)

    def _prune(self, step: int, *, is_best: bool) -> None:
        """Remove old ones, unfinished ones, and later ones (damaged ones that the run went back behind)."""
        folders = {int(path.name): path for path in checkpoint_folders(self.folder)}
        best = step if is_best else self._best_step()
        kept = {*[number for number in folders if number <= step][-self.keep :], *({best} & folders.keys())}
        SavedSteps(tuple(sorted(kept)), best if best in kept else None).write(self.folder)
        self._remove_unfinished()  # one may have the name that is given next
        for number in folders.keys() - kept:  # what is half removed must not look like a checkpoint
            folders[number].rename(folders[number].with_suffix(".tmp"))
        self._remove_unfinished()
        remove_leftovers(self.folder)

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob("[0-9]*.tmp"):
            shutil.rmtree(path)


def newest_settings(folder: Path) -> dict[str, Any]:
    """The settings that the newest checkpoint of which they can be read was written with; empty where there is none.

    folder: of the checkpoints.
    """
    for checkpoint in reversed(checkpoint_folders(folder)):
        with suppress(CheckpointError):
            settings = read_json_object(checkpoint / STATE).get("settings")
            return settings if isinstance(settings, dict) else {}
    return {}


MOVABLE = (
    *("model.base", "model.vocab", "data.train", "data.mixture"),
    *("train.objective.teacher", "train.objective.teacher_adapter"),
)
"""Paths that may be others when a run is resumed: what lies there is compared instead."""
_NOTED_LATER = ("model.base weights",)
"""What checkpoints of earlier versions do not say of every run."""


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """What must stay as it was when a run is resumed: model, data, tuning and seed, by dotted key.

    Without the paths of `MOVABLE`, and without defaults, so that a setting that came into being later does not part a
    run from its checkpoints; of tuning the method stands there, since other defaults are those of another method.
    """
    parts = recipe.model_dump(
        mode="json",
        include={"model", "data", "tuning"},
        exclude={"data": {"cache", "eval"}},
        exclude_defaults=True,
    )
    flat = {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}
    flat = {key: value for key, value in flat.items() if key not in MOVABLE}
    return {**flat, "tuning.method": recipe.tuning.method, "run.seed": recipe.run.seed}


def _read_pointer(path: Path) -> int | None:
    name = path.read_bytes().decode("ascii", "replace").strip() if path.is_file() else ""
    return int(name) if name.isdecimal() else None


def check_keys(path: Path, found: Any, like: Any, inside: str = "") -> None:
    """See that plain values of a checkpoint are of the kind, and have the keys, that this version writes.

    like: such values; an empty dict stands for any, None for anything.
    Raises: CheckpointError naming what is missing, unknown, or of another kind.
    """
    if like is None:
        return
    kind = (int, float) if type(like) in (int, float) else type(like)
    problems = []
    if not isinstance(found, kind):
        problems = [f"{inside or 'it'} is a {type(found).__name__}"]
    elif isinstance(like, Mapping) and like:
        problems = [f"lacks {inside}{key}" for key in like if key not in found]
        problems += [f"has {inside}{key}, which is not known here" for key in found if key not in like]
    if problems:
        raise CheckpointError(
            f"{path}: {'; '.join(shorten(problems))}; another version has written it: go on with that one, or restore "
            "the checkpoint from a copy"
        )
    if isinstance(like, Mapping):
        for key, value in like.items():
            check_keys(path, found[key], value, f"{inside}{key}.")


def verify(folder: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with a checkpoint's files; nothing if it is valid. share: as in `manifest_problems`."""
    return manifest_problems(
        folder, lambda listed: STATE in listed and any(name.startswith(f"{TENSORS}/") for name in listed), share
    )


def _share() -> tuple[int, int]:
    """Which of the ranks this is, and of how many."""
    from torch import distributed

    return (distributed.get_rank(), distributed.get_world_size()) if has_ranks() else (0, 1)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    sync(path)


def _write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], group: Any = None) -> FileFacts:
    """Returns, when all ranks have written theirs, the facts of all files by name."""
    from torch.distributed.checkpoint.state_dict_saver import save

    from hanlin.checkpoint.metadata import TensorWriter

    writer = TensorWriter(folder)
    with _as_one_process():
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=not has_ranks())
    return {name: facts for written in gather_values(writer.written, group) for name, facts in written.items()}


def _write_later(
    folder: Path, tensors: Mapping[str, torch.Tensor], group: Any, finish: Callable[[FileFacts], None]
) -> None:
    finish(_write_tensors(folder, tensors, group))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing as one that says where."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{explain(error, path, 'write')}; then resume the run") from error
    except CheckpointException as error:  # a BaseException
        raise CheckpointError(f"{path}: cannot be written: {_reasons(error)}; then resume the run") from error


def _reasons(error: CheckpointException) -> str:
    """What went wrong on each rank, without torch's tracebacks."""
    found = {rank: failure for rank, (failure, _) in error.failures.items()}
    told = {rank: reason_of(one, "write") if isinstance(one, OSError) else f"{one}" for rank, one in found.items()}
    return "; ".join(f"rank {rank}: {text}" if len(told) > 1 else text for rank, text in told.items())


def _read_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], dropped: tuple[str, ...] = ()) -> None:
    """dropped: beginnings of names that are of no concern, on either side."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from hanlin.checkpoint.metadata import MetadataReader

    reader = MetadataReader(folder)
    found = [name for name in reader.read_metadata().state_dict_metadata if not name.startswith(dropped)]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    expected = {name for names in gather_values(list(tensors)) for name in names}
    lacking, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
    if lacking or unknown:
        raise CheckpointError(
            f"{folder}: it does not hold the tensors of this run: missing {_some(lacking)}; unknown {_some(unknown)}; "
            "resume with the recipe that wrote it"
        )
    try:
        with _as_one_process():
            load(tensors, storage_reader=reader, no_dist=not has_ranks())
    except (CheckpointException, ValueError) as error:  # the first is a BaseException; the second tells of shapes
        raise CheckpointError(f"{folder}: cannot be loaded: {error}") from error


@contextmanager
def _as_one_process() -> Iterator[None]:
    """torch warns that it takes this for a single process, though it was told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _some(names: list[str]) -> str:
    return ", ".join(shorten(names)) or "none"
