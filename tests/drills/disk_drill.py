"""Full disks, limits of size, and what is forbidden: each command ends in a sentence, and says the right cause.

The disk is a small tmpfs of this process; permissions are asked of a user who is not root. Every command works first
where there is room and permission.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostile_attack import QUESTION
from judging import Baselines, Try, judge, refused, works
from kill_drill import results
from trials import Tally, Trial, copy_of, every_nth, run
from worlds import remove

NOBODY = 65534
SMALL = "small"
"""The folder on the full disk."""
_NEW_MOUNTS, _PRIVATE, _REMOUNT, _DETACH = 0x00020000, 0x4000 | 0x40000, 32, 2


def commands(world: Path) -> list[list[str]]:
    """What writes, to the folder `SMALL`."""
    vocab = ["--vocab", f"{world}/vocab.txt"]
    return [
        ["train", "full.yaml", "run.folder=small/run"],
        ["train", "full.yaml", "run.folder=small/run", "train.save_in_background=true"],
        ["train", "full.yaml", "run.folder=r", "data.cache=small/cache"],
        ["train", "windows.yaml", "run.folder=r", "data.cache=small/cache"],
        ["convert", "base", "small/out"],
        ["convert", "base", "small/out", "--to", "original"],
        ["convert", "base", "small/out", "--merge", "lora/best"],
        ["prepare", "--to", "indexed", "poems.txt", "small/made", *vocab, "--workers", "1"],
        ["prepare", "--from", "indexed", "corpus", "small/back.jsonl", *vocab],
        ["generate", "full.yaml", "--input", "asked.jsonl", "--output", "small/out.jsonl"],
        ["evaluate", "full.yaml", "--weights", "base", "run.folder=small/run"],
        ["evaluate", "full.yaml", "--json", "small/x.json"],
    ]


def full_disk(template: Path, place: Path, sizes: list[int], share: float = 1.0) -> Tally:
    """Each command on disks of so many bytes; the smallest has no room at all."""
    if not can_mount(place.parent):
        return Tally("full disk (not tried: nothing can be mounted here)")
    _own_mounts()

    def tight(world: Path, argv: list[str], size: int) -> Trial:
        _call("mount", b"tmpfs", os.fsencode(world / SMALL), b"tmpfs", 0, f"size={size}".encode())
        if size == min(sizes):
            (world / SMALL / ".trial.filler").write_bytes(bytes(size))
        return run(argv, world, prepare=_look_free)

    def widen(world: Path) -> None:
        _call("mount", b"tmpfs", os.fsencode(world / SMALL), b"tmpfs", _REMOUNT, f"size={1 << 28}".encode())

    def leave(world: Path) -> None:
        _call("umount2", os.fsencode(world / SMALL), _DETACH)

    told = rf"{SMALL}.*no space is left on its disk"
    return _drill("full disk", _Squeeze(tight, widen, leave, told), template, place, sizes, share)


def _look_free() -> None:
    """Pass what is looked at before training: the disk had room then, and others fill it."""
    roomy = shutil.disk_usage("/")._replace(free=1 << 40)
    shutil.disk_usage = lambda path: roomy


def small_files(template: Path, place: Path, sizes: list[int], share: float = 1.0) -> Tally:
    """Each command where no file may be larger, as under a quota."""

    def limit(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def tight(world: Path, argv: list[str], size: int) -> Trial:
        return run(argv, world, prepare=lambda: limit(size))

    told = r"(: |^)\S+: (cannot be written: )?the file is larger than its file system"
    squeeze = _Squeeze(tight, lambda world: None, lambda world: None, told)
    return _drill("files that may not grow", squeeze, template, place, sizes, share)


@dataclass(frozen=True)
class _Squeeze:
    """tight: runs a command where there are so many bytes; widen: makes room; leave: clears up; told: of a refusal."""

    tight: Callable[[Path, list[str], int], Trial]
    widen: Callable[[Path], None]
    leave: Callable[[Path], None]
    told: str


def _drill(name: str, squeeze: _Squeeze, template: Path, place: Path, sizes: list[int], share: float) -> Tally:
    """Whatever became of a command, with room it makes what it makes where there always was some."""
    start, tally = time.monotonic(), Tally(name)
    for argv in commands(place)[:: every_nth(share)]:
        with copy_of(template, place) as world:
            before = results(world)
            (world / SMALL).mkdir()
            whole, wanted = run(argv, world), results(world)
        if whole.code != 0 or wanted == before:
            tally = tally.add("unproven", f"with room: {' '.join(argv)}: {whole.code}: {whole.output[-1000:]}")
            continue
        codes = []
        for size in sizes:
            with copy_of(template, place) as world:
                (world / SMALL).mkdir()
                found = squeeze.tight(world, argv, size)
                try:
                    fault, told = _judge(found, squeeze, world, argv, (before, wanted))
                finally:
                    squeeze.leave(world)
            codes.append(found.code)
            tally = tally.add(fault, f"{name}: {size}: {' '.join(argv)}: {found.code}: {found.output[-900:]}: {told}")
        if 2 not in codes:
            tally = tally.add("unproven", f"{name}: {' '.join(argv)}: had room everywhere: {codes}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def _judge(
    found: Trial, squeeze: _Squeeze, world: Path, argv: list[str], known: tuple[dict[str, str], dict[str, str]]
) -> tuple[str | None, str]:
    before, wanted = known
    if found.is_crash or found.is_late or found.code not in (0, 2):
        return "traceback", ""
    if found.code == 2 and not re.search(squeeze.told, found.output, re.MULTILINE):
        return "silent", "another cause is told"
    now = results(world)
    if found.code == 0 and now != wanted:
        return "differing", str(sorted(name for name in wanted if now.get(name) != wanted[name])[:6])
    if gone := [name for name in before if now.get(name) not in (before[name], wanted.get(name))]:
        return "lost", f"not as it was: {gone[:6]}"
    if found.code == 2:
        squeeze.widen(world)
        again = run(argv, world)
        if again.code != 0:
            return "lost", f"with room again: {again.code}: {again.output[-900:]}"
        now = results(world)
        if now != wanted:
            names = sorted(name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name))
            return "differing", f"with room again: {names[:6]}: {again.output[-600:]}"
    return None, ""


def forbidden(template: Path, place: Path, share: float = 1.0) -> Tally:
    """What may not be read or written, by a user who is not root."""
    start, tally = time.monotonic(), Tally("no permission")
    if os.getuid() != 0:
        return Tally("no permission (not tried: only root can become somebody else)")
    baselines = Baselines(template, place, _give_away, become_nobody)
    for locked, attempt in _locked(place)[:: every_nth(share)]:
        if problem := baselines.problem(attempt.undamaged):
            tally = tally.add("unproven", problem)
        with copy_of(template, place) as world:
            _give_away(world)
            path = world / locked
            if not path.exists():
                path.touch()
                os.chown(path, NOBODY, NOBODY)
            path.chmod(0)
            found = run(attempt.argv, world, prepare=become_nobody)
            path.chmod(0o700)
        shown = f"{locked}: {' '.join(attempt.argv)}: {found.code}, not {attempt.code} with {attempt.told!r}"
        tally = tally.add(judge(found, attempt), f"{shown}: {found.output[-1000:]}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def _give_away(world: Path) -> None:
    """Let all be nobody's, and a folder `closed` be there."""
    (world / "closed").mkdir()
    for path in [world, *world.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def _locked(world: Path) -> list[tuple[str, Try]]:
    """What is locked, and the command that has to name it."""
    vocab = ["--vocab", f"{world}/vocab.txt"]
    ask = ["generate", "full.yaml", "--input", "asked.jsonl", "--output", "out.jsonl"]
    resume = ["train", "full.yaml", "train.steps=6"]
    tried = [
        ("full.yaml", ["check", "full.yaml"]),
        ("full.yaml", resume),
        ("rows.jsonl", ["check", "full.yaml"]),
        ("rows.jsonl", resume),
        ("rows.jsonl", ["inspect", "rows.jsonl"]),
        ("vocab.txt", ["check", "windows.yaml"]),
        ("vocab.txt", ["prepare", "--to", "indexed", "poems.txt", "made", *vocab]),
        ("poems.txt", ["prepare", "--to", "indexed", "poems.txt", "made", *vocab]),
        ("corpus.bin", ["check", "windows.yaml"]),
        ("corpus.idx", ["inspect", "corpus"]),
        ("corpus.bin", ["train", "windows.yaml", "train.steps=6"]),
        ("base/model.safetensors", ["check", "lora.yaml"]),
        ("base/model.safetensors", ["inspect", "base"]),
        ("base/config.json", ["train", "lora.yaml", "train.steps=6"]),
        ("base", ["convert", "base", "out"]),
        ("base", ["inspect", "base"]),
        ("base", ["check", "lora.yaml"]),
        ("original/pytorch_model.bin", ["convert", "original", "out"]),
        ("lora/best/adapter.safetensors", ["generate", "lora.yaml", "--record", QUESTION]),
        ("lora/best", ["generate", "lora.yaml", "--record", QUESTION]),
        ("lora", ["generate", "lora.yaml", "--record", QUESTION]),
        ("full", resume),
        ("full", ["report", "full"]),
        ("full", ["inspect", "full"]),
        ("full/log.txt", resume),
        ("full/metrics.jsonl", resume),
        ("full/metrics.jsonl", ["report", "full"]),
        ("full/config.yaml", resume),
        ("full/config.yaml", ["generate", "full", "--record", QUESTION]),
        ("full/checkpoints", resume),
        ("full/best", resume),
        ("full/best", ["evaluate", "full.yaml"]),
        ("full/evaluation", ["evaluate", "full.yaml"]),
        ("full/evaluation/predictions", ["evaluate", "full.yaml"]),
        ("cache", resume),
        ("cache", ["train", "windows.yaml", "train.steps=6"]),
        ("asked.jsonl", ask),
        ("out.jsonl", ask),
        ("closed", ["generate", "full.yaml", "--input", "asked.jsonl", "--output", "closed/out.jsonl"]),
        ("closed", ["convert", "base", "closed/out"]),
        ("closed", ["prepare", "--to", "indexed", "poems.txt", "closed/made", *vocab]),
        ("closed", ["train", "full.yaml", "run.folder=closed/run"]),
        ("closed", ["train", "full.yaml", "run.folder=r", "data.cache=closed/cache"]),
        ("closed", ["evaluate", "full.yaml", "--json", "closed/x.json"]),
        ("closed", ["check", "full.yaml", "run.folder=closed/run"]),
    ]
    found = []
    for name, argv in tried:
        told = "/(.*/)?".join(map(re.escape, name.split("/")))  # a link may lead deeper
        found.append((name, refused(rf"{told}.*no permission", argv)[0]))
    return [*found, ("full/checkpoints/latest", works(resume)[0])]  # the folders say the same


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _own_mounts() -> None:
    """Let what this process and its children mount be seen by nobody else.

    Raises: OSError.
    """
    _call("unshare", _NEW_MOUNTS)
    _call("mount", b"none", b"/", None, _PRIVATE, None)


def _call(name: str, *args: object) -> None:
    """Raises: OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def can_mount(folder: Path) -> bool:
    """Whether small disks can be made here, tried in a process of its own."""
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _own_mounts()
            _call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=1048576")
        except BaseException:
            os._exit(1)
        os._exit(0)
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    remove(place)
    return found
