"""Full disks, limits of size, and what is forbidden: each command ends in a sentence, and says the right cause.

The disk is a small tmpfs that the command's own process mounts; permissions are asked of a user who is not root.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import time
from pathlib import Path

from trials import Tally, Trial, copy_of, every_nth, run
from worlds import remove

NOBODY = 65534
_NEW_MOUNTS, _PRIVATE = 0x00020000, 0x4000 | 0x40000


def commands(world: Path) -> list[list[str]]:
    """What writes, to the folder `small`."""
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
        ["evaluate", "full.yaml", "run.folder=small/run", "model.base=full/best"],
        ["evaluate", "full.yaml", "--json", "small/x.json"],
    ]


def full_disk(template: Path, place: Path, sizes: list[int], share: float = 1.0) -> Tally:
    """Each command on disks of so many bytes."""
    start, tally = time.monotonic(), Tally("full disk")
    if not can_mount(place.parent):
        return Tally("full disk (not tried: nothing can be mounted here)")
    for size in sizes:
        for argv in commands(place)[:: every_nth(share)]:
            with copy_of(template, place) as world:
                (world / "small").mkdir()
                found = run(argv, world, prepare=lambda size=size: mount_small(Path("small"), size))
            tally = tally.add(_judge(found), f"{size}: {' '.join(argv)}: {found.code}: {found.output[-1000:]}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def small_files(template: Path, place: Path, sizes: list[int], share: float = 1.0) -> Tally:
    """Each command where no file may be larger, as under a quota."""
    start, tally = time.monotonic(), Tally("files that may not grow")

    def limit(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in sizes:
        for argv in commands(place)[:: every_nth(share)]:
            with copy_of(template, place) as world:
                (world / "small").mkdir()
                found = run(argv, world, prepare=lambda size=size: limit(size))
            tally = tally.add(_judge(found), f"{size}: {' '.join(argv)}: {found.code}: {found.output[-1000:]}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def forbidden(template: Path, place: Path, share: float = 1.0) -> Tally:
    """What may not be read or written, by a user who is not root."""
    start, tally = time.monotonic(), Tally("no permission")
    if os.getuid() != 0:
        return Tally("no permission (not tried: only root can become somebody else)")
    for locked, argv in _locked(place)[:: every_nth(share)]:
        with copy_of(template, place) as world:
            shutil.copytree(world / "original", world / "other")
            for path in [world, *world.rglob("*")]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
            for name in locked:
                (world / name).mkdir(exist_ok=True) if not (world / name).exists() else None
                (world / name).chmod(0)
            found = run(argv, world, prepare=become_nobody)
            for name in locked:
                (world / name).chmod(0o700)
        fault = _judge(found)
        if fault is None and found.code == 2 and "room" in found.output:
            fault = "silent"
        tally = tally.add(fault, f"{locked}: {' '.join(argv)}: {found.code}: {found.output[-1000:]}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def _locked(world: Path) -> list[tuple[list[str], list[str]]]:
    vocab = ["--vocab", f"{world}/vocab.txt"]
    ask = ["generate", "full.yaml", "--input", "asked.jsonl", "--output", "out.jsonl"]
    resume = ["train", "full.yaml", "train.steps=6"]
    return [
        (["full.yaml"], ["check", "full.yaml"]),
        (["full.yaml"], resume),
        (["rows.jsonl"], ["check", "full.yaml"]),
        (["rows.jsonl"], resume),
        (["rows.jsonl"], ["inspect", "rows.jsonl"]),
        (["vocab.txt"], ["check", "windows.yaml"]),
        (["vocab.txt"], ["prepare", "--to", "indexed", "poems.txt", "made", *vocab]),
        (["poems.txt"], ["prepare", "--to", "indexed", "poems.txt", "made", *vocab]),
        (["corpus.bin"], ["check", "windows.yaml"]),
        (["corpus.idx"], ["inspect", "corpus"]),
        (["corpus.bin"], ["train", "windows.yaml", "train.steps=6"]),
        (["base/model.safetensors"], ["check", "lora.yaml"]),
        (["base/model.safetensors"], ["inspect", "base"]),
        (["base/config.json"], ["train", "lora.yaml", "train.steps=6"]),
        (["base"], ["convert", "base", "out"]),
        (["base"], ["inspect", "base"]),
        (["base"], ["check", "lora.yaml"]),
        (["original/pytorch_model.bin"], ["convert", "original", "out"]),
        (["lora/best/adapter.safetensors"], ["generate", "lora.yaml", "--record", "{}"]),
        (["lora/best"], ["generate", "lora.yaml", "--record", "{}"]),
        (["lora"], ["generate", "lora.yaml", "--record", "{}"]),
        (["full"], resume),
        (["full"], ["report", "full"]),
        (["full"], ["inspect", "full"]),
        (["full/log.txt"], resume),
        (["full/metrics.jsonl"], resume),
        (["full/metrics.jsonl"], ["report", "full"]),
        (["full/config.yaml"], resume),
        (["full/config.yaml"], ["generate", "full", "--record", "{}"]),
        (["full/checkpoints"], resume),
        (["full/checkpoints/latest"], resume),
        (["full/best"], resume),
        (["full/best"], ["evaluate", "full.yaml"]),
        (["full/evaluation"], ["evaluate", "full.yaml"]),
        (["full/evaluation/predictions"], ["evaluate", "full.yaml"]),
        (["cache"], resume),
        (["cache"], ["train", "windows.yaml", "train.steps=6"]),
        (["asked.jsonl"], ask),
        (["out.jsonl"], ask),
        (["closed"], ["generate", "full.yaml", "--input", "asked.jsonl", "--output", "closed/out.jsonl"]),
        (["closed"], ["convert", "base", "closed/out"]),
        (["closed"], ["prepare", "--to", "indexed", "poems.txt", "closed/made", *vocab]),
        (["closed"], ["train", "full.yaml", "run.folder=closed/run"]),
        (["closed"], ["train", "full.yaml", "run.folder=r", "data.cache=closed/cache"]),
        (["closed"], ["evaluate", "full.yaml", "--json", "closed/x.json"]),
        (["closed"], ["check", "full.yaml", "run.folder=closed/run"]),
    ]


def _judge(found: Trial) -> str | None:
    if found.is_crash or found.is_late or found.code not in (0, 1, 2):
        return "traceback"
    return "silent" if found.code == 2 and not found.output.strip() else None


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def mount_small(folder: Path, size: int) -> None:
    """Mount a tmpfs of so many bytes, for this process and its children alone.

    Raises: OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        lambda: libc.unshare(_NEW_MOUNTS),
        lambda: libc.mount(b"none", b"/", None, _PRIVATE, None),
        lambda: libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()),
    ):
        if call() != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def can_mount(folder: Path) -> bool:
    """Whether `mount_small` works here, tried in a process of its own."""
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            mount_small(place, 1 << 20)
        except BaseException:
            os._exit(1)
        os._exit(0)
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    remove(place)
    return found
