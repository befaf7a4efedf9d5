"""Commands killed at random moments, and at every change of a name and every wait for the disk, then called again.

What comes out at the end must be what an undisturbed command makes, to the bit and to the last file; a run must go on
from what it had saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trials import Kill, Tally, Trial, copy_of, run
from worlds import FAMILIES, remove

_UNLIKE = (
    *("data_seconds", "cpu_seconds", "step_seconds", "tokens_per_second", "memory", "memory_gib", "peak_memory_gib"),
    *("seconds", "eta", "time"),
)
_NOT_COMPARED = ("log.txt", "starts.jsonl", "remembered/")


@dataclass(frozen=True)
class Scenario:
    """A command of a world; target: what it makes, beside the cache; is_run: whether that is a run folder; most: kills
    at calls, besides which there are a quarter as many at random moments.
    """

    name: str
    argv: tuple[str, ...]
    target: str
    ranks: int = 1
    is_run: bool = False
    is_like_another: bool = False
    most: int = 128


def scenarios(world: Path) -> list[Scenario]:
    def train(name: str, ranks: int = 1, is_like_another: bool = False) -> Scenario:
        most = 64 if ranks > 1 or name in FAMILIES else 128
        return Scenario(f"train, {name}", ("train", f"{world}/{name}.yaml"), name, ranks, True, is_like_another, most)

    vocab = ("--vocab", f"{world}/vocab.txt")
    return [
        train("full"),
        train("background", is_like_another=True),
        train("lora"),
        train("windows", is_like_another=True),
        train("chatglm2", is_like_another=True),
        train("cpm2", is_like_another=True),
        train("data", 2),
        train("tensor", 2, is_like_another=True),
        train("pipe", 2, is_like_another=True),
        Scenario("evaluate", ("evaluate", f"{world}/full.yaml"), "full/evaluation"),
        Scenario(
            "generate",
            ("generate", f"{world}/full.yaml", "--input", "asked.jsonl", "--output", "out.jsonl"),
            "out.jsonl",
        ),
        Scenario("convert", ("convert", f"{world}/full/best", "out", "--to", "original"), "out"),
        Scenario(
            "prepare, spans",
            ("prepare", "--to", "indexed-spans", "poems.txt", "made", *vocab, "--workers", "1"),
            "made*",
            is_like_another=True,
        ),
        Scenario("prepare", ("prepare", "--to", "indexed", "poems.txt", "made", *vocab, "--workers", "1"), "made.*"),
    ]


def results(folder: Path) -> dict[str, str]:
    """Of every file below a folder a hash of what must not differ."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(part in name for part in (*_NOT_COMPARED, ".trial.")):
            found[name] = _digest(path)
    return found


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        with contextlib.suppress(ValueError):
            rows = [json.loads(line) for line in content.splitlines()]
            content = json.dumps([{k: v for k, v in row.items() if not k.startswith(_UNLIKE)} for row in rows]).encode()
    elif path.name in (".metadata", "manifest.json", "metrics.json", "state.json") or path.suffix == ".distcp":
        return "there"  # they hold times, and paths of the moment; what they lead to is compared
    return hashlib.sha256(content).hexdigest()[:16]


def drill(
    template: Path, place: Path, scenario: Scenario, kills: Callable[[Trial, random.Random], Iterator[Kill]], seed: int
) -> Tally:
    """Kill a scenario in all given ways; the undisturbed run tells how long it is and how many calls it makes."""
    start, tally, drawn = time.monotonic(), Tally(f"kill: {scenario.name}"), random.Random(f"{seed} {scenario.name}")
    with copy_of(template, place) as world:
        _make_room(world, scenario)
        whole = run(scenario.argv, world, ranks=scenario.ranks)
        wanted = results(world)
    assert whole.code == 0, (scenario, whole)
    for kill in kills(whole, drawn):
        with copy_of(template, place) as world:
            _make_room(world, scenario)
            fault, told = _one(world, scenario, kill, wanted, drawn)
        tally = tally.add(fault, f"{scenario.name}: {kill}: {told}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def every_call(most: int) -> Callable[[Trial, random.Random], Iterator[Kill]]:
    """Before and after each of the calls, or before or after `most` of them, evenly; and at random moments."""

    def kills(whole: Trial, drawn: random.Random) -> Iterator[Kill]:
        every = [(number, after) for number in range(1, whole.calls + 1) for after in (False, True)]
        step = max(len(every) / most, 1.0)
        chosen = [every[int(place * step)] for place in range(min(most, len(every)))]
        for number, after in chosen:
            yield Kill(number=number, after=after)
        for _ in range(most // 4 + 1):
            yield Kill(seconds=drawn.uniform(0, whole.seconds * 1.1))

    return kills


def _make_room(world: Path, scenario: Scenario) -> None:
    """Remove what an earlier command has made of the same."""
    for path in world.glob(scenario.target):
        remove(path)
    if scenario.is_run:
        remove(world / "cache")


def _one(
    world: Path, scenario: Scenario, kill: Kill, wanted: dict[str, str], drawn: random.Random
) -> tuple[str | None, str]:
    had_best = False
    told = []
    killed = run(scenario.argv, world, ranks=scenario.ranks, kill=kill)
    told.append(killed.output)
    if killed.is_crash:
        return "traceback", killed.output[-1500:]
    saved = _saved(world / scenario.target) if scenario.is_run else 0
    had_best = scenario.is_run and "wrote" in _log(world, scenario) and "/best" in _log(world, scenario)
    if had_best and not (world / scenario.target / "best").is_dir():
        return "lost", f"best/ is gone after the kill: {killed.output[-600:]}"
    if drawn.random() < 0.3:  # once more, at some other moment
        again = run(
            scenario.argv, world, ranks=scenario.ranks, kill=Kill(seconds=drawn.uniform(0, 1.5 * killed.seconds))
        )
        if again.is_crash:
            return "traceback", again.output[-1500:]
    last = run(scenario.argv, world, ranks=scenario.ranks)
    if last.is_crash or last.is_late:
        return "traceback", last.output[-1500:]
    found = results(world)
    if last.code != 0 and found != wanted:
        return "lost", f"called again: {last.code}: {last.output[-900:]}: {_differences(found, wanted)}"
    if (
        saved
        and f"resumed at step={saved} " not in _log(world, scenario)
        and not _resumed_later(_log(world, scenario), saved)
    ):
        return (
            "lost",
            f"had saved step {saved}, but went on as: {re.findall('resumed at step=[0-9]+', _log(world, scenario))}",
        )
    if found != wanted:
        return "differing", f"{_differences(found, wanted)}: {last.output[-300:]}"
    return None, ""


def _differences(found: dict[str, str], wanted: dict[str, str]) -> list[tuple[str, str | None, str | None]]:
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return [(name, wanted.get(name), found.get(name)) for name in names[:8]]


def _saved(run_folder: Path) -> int:
    """The step that the run says it has saved last."""
    latest = run_folder / "checkpoints" / "latest"
    text = latest.read_text().strip() if latest.is_file() else ""
    return int(text) if text.isdigit() else 0


def _log(world: Path, scenario: Scenario) -> str:
    path = world / scenario.target / "log.txt"
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _resumed_later(log: str, saved: int) -> bool:
    return any(int(step) >= saved for step in re.findall(r"resumed at step=(\d+)", log))
