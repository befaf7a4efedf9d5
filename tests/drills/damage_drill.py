"""Every kind of file damaged in every kind of way, and then a command that reads it.

What comes out must be what comes out of the whole file, or a refusal that names the damaged one; never a traceback, and
never another result, whatever is said about it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kill_drill import results
from trials import Tally, Trial, copy_of, run
from worlds import FAMILIES, remove


@dataclass(frozen=True)
class Reader:
    """A command that reads files; makes: what of the world its result is; files: patterns of what it reads.

    is_known: whether the program knows what the files were, so that any change is to be noticed; a user's own rows or
    recipe may say anything, and another result is what they then ask for.
    """

    name: str
    argv: tuple[str, ...]
    files: tuple[str, ...]
    makes: tuple[str, ...] = ()
    is_known: bool = True


def readers(world: Path) -> list[Reader]:
    full, lora, windows = (f"{world}/{name}.yaml" for name in ("full", "lora", "windows"))
    vocab = ("--vocab", f"{world}/vocab.txt")
    question = ("--input", "asked.jsonl", "--output", "out.jsonl")
    more = ("train.steps=6",)
    base_alone = ("tuning.method=full", "--weights", "base")
    return [
        Reader(
            "resume",
            ("train", full, *more),
            ("full/checkpoints/*", "full/checkpoints/0*/**/*", "full/best/*", "full/metrics.jsonl", "cache/*/*"),
            ("full/best", "full/last"),
        ),
        Reader("resume", ("train", full, *more), ("full/config.yaml", "rows.jsonl"), ("full/best", "full/last"), False),
        Reader("resume", ("train", lora, *more), ("base/*", "lora/checkpoints/0*/**/*"), ("lora/best", "lora/last")),
        Reader(
            "resume",
            ("train", windows, *more),
            ("corpus.*", "vocab.txt", "cache/index-*/*", "cache/remembered/*"),
            ("windows/best", "windows/last"),
        ),
        Reader(
            "evaluate", ("evaluate", full), ("full/best/*", "full/evaluation/**/*"), ("full/evaluation/predictions",)
        ),
        Reader("generate", ("generate", lora, *question), ("base/*", "lora/best/*"), ("out.jsonl",)),
        *(
            Reader(
                "generate",
                ("generate", f"{name}.yaml", *base_alone, "--input", f"{name}.jsonl", "--output", "out.jsonl"),
                (f"{name}.base/*",),
                ("out.jsonl",),
            )
            for name in FAMILIES
        ),
        Reader("generate", ("generate", full, *question), ("asked.jsonl", "full.yaml"), ("out.jsonl",), False),
        Reader("convert", ("convert", "full/best", "out", "--to", "original"), ("full/best/*",), ("out",)),
        Reader("convert", ("convert", "base", "out", "--merge", "lora/best"), ("base/*", "lora/best/*"), ("out",)),
        Reader(
            "convert",
            ("convert", "original", "out", "--vocab", "original/vocab.txt"),
            ("original/pytorch_model.bin",),
            ("out",),
        ),
        Reader(
            "convert",
            ("convert", "original", "out", "--vocab", "original/vocab.txt"),
            ("original/*.json",),
            ("out",),
            False,
        ),
        Reader(
            "prepare", ("prepare", "--from", "indexed", "corpus", "out.jsonl", *vocab), ("corpus.idx",), ("out.jsonl",)
        ),
        Reader(
            "prepare",
            ("prepare", "--from", "indexed", "corpus", "out.jsonl", *vocab),
            ("corpus.bin",),
            ("out.jsonl",),
            False,
        ),
        Reader(
            "prepare",
            ("prepare", "--to", "indexed", "poems.txt", "made", *vocab),
            ("poems.txt", "vocab.txt"),
            ("made.*",),
            False,
        ),
        Reader("check", ("check", full), ("full.yaml", "rows.jsonl", "base/*", "full/config.yaml"), (), False),
        Reader("check", ("check", windows), ("corpus.*", "vocab.txt", "windows.yaml"), (), False),
        Reader(
            "inspect",
            ("inspect", "full", "full/best", "base", "corpus", "rows.jsonl", "lora/best", "original"),
            ("full/config.yaml", "full/best/*", "base/*", "corpus.*", "rows.jsonl", "lora/best/*", "original/*"),
            (),
            False,
        ),
        Reader("report", ("report", "full"), ("full/metrics.jsonl", "full/config.yaml"), (), False),
    ]


Damage = Callable[[bytearray, random.Random], bytes | None]


def _flip(content: bytearray, drawn: random.Random) -> bytes:
    content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    return bytes(content)


def _zero(content: bytearray, drawn: random.Random) -> bytes:
    start = drawn.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    return bytes(content)


def _cut(content: bytearray, drawn: random.Random) -> bytes:
    return bytes(content[: drawn.randrange(len(content))])


DAMAGES: dict[str, Damage] = {
    "flip": _flip,
    "zero": _zero,
    "cut": _cut,
    "empty": lambda content, drawn: b"",
    "grow": lambda content, drawn: bytes(content) + drawn.randbytes(40),
    "noise": lambda content, drawn: drawn.randbytes(len(content)),
    "remove": lambda content, drawn: None,
}


def drill(template: Path, place: Path, reader: Reader, share: float, seed: int) -> Tally:
    """Damage the files of a reader in all ways; share: of these trials that are done, or how often each is."""
    start, tally = time.monotonic(), Tally(f"damage: {reader.name}")
    with copy_of(template, place) as world:
        _make_room(world, reader)
        whole = run(reader.argv, world)
        wanted = _made(world, reader)
        names = sorted({str(path.relative_to(world)) for glob in reader.files for path in template_files(world, glob)})
    assert whole.code == 0, (reader, whole)
    jobs = [(name, kind) for name in names for kind in DAMAGES]
    drawn = random.Random(f"{seed} {reader.argv}")
    drawn.shuffle(jobs)
    for name, kind in (jobs * max(round(share), 1))[: max(round(len(jobs) * share), 1)]:
        with copy_of(template, place) as world:
            _make_room(world, reader)
            if not (world / name).is_file():
                continue
            _damage(world / name, kind, drawn)
            found = run(reader.argv, world, timeout=60)
            fault = _judge(found, _made(world, reader), wanted, reader, name)
        tally = tally.add(fault, f"{' '.join(reader.argv)}: {name}: {kind}: {found.code}: {found.output[-1200:]}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def template_files(world: Path, glob: str) -> Sequence[Path]:
    return [path for path in world.glob(glob) if path.is_file()]


def _damage(path: Path, kind: str, drawn: random.Random) -> None:
    content = bytearray(path.read_bytes())
    changed = DAMAGES[kind](content, drawn) if content else b"x"
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)


def _judge(found: Trial, made: dict[str, str], wanted: dict[str, str], reader: Reader, name: str) -> str | None:
    if found.is_crash or found.is_late or found.code not in (0, 1, 2):
        return "traceback"
    if found.code != 0:
        return None if re.search(_named(name), found.output) else "silent"
    return "silent" if reader.is_known and made != wanted else None


def _named(name: str) -> str:
    """A pattern of what names a file to a user: a corpus by its prefix, what a run's recipe says by its folder."""
    if name.startswith("corpus."):
        return r"corpus\b"
    also = {"vocab.txt": r"|model\.vocab|the tokenizer has \d+ tokens", "poems.txt": "|the files hold no documents"}
    also["full/config.yaml"] = r"|run\.folder: \S+/full holds a run"
    return re.escape(Path(name).name) + also.get(name, "")


def _made(world: Path, reader: Reader) -> dict[str, str]:
    every = results(world)
    patterns = [re.compile(re.escape(glob).replace(r"\*", ".*") + "(/.*)?") for glob in reader.makes]
    return {name: value for name, value in every.items() if any(one.fullmatch(name) for one in patterns)}


def _make_room(world: Path, reader: Reader) -> None:
    """Remove what an earlier command has made, if it would be refused to make it again."""
    for glob in ("out", "out.jsonl", "made.*"):
        for path in world.glob(glob):
            remove(path)
