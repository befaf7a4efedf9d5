"""The same command twice at the same time: one of them goes on, and the other waits, or says who is there.

The result is that of one alone.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from kill_drill import Scenario, _make_room, results, scenarios
from trials import Tally, Trial, copy_of, run


def drill(template: Path, place: Path, count: int, seed: int) -> Tally:
    """Every scenario of one process `count` times twice at once, a moment apart; count 0: only some, once."""
    start, tally, drawn = time.monotonic(), Tally("two at once"), random.Random(seed)
    for scenario in scenarios(place):
        if scenario.ranks > 1 or (not count and (scenario.is_like_another or scenario.is_run)):
            continue
        with copy_of(template, place) as world:
            _make_room(world, scenario)
            whole = run(scenario.argv, world)
            wanted = results(world)
        for _ in range(count or 1):
            with copy_of(template, place) as world:
                _make_room(world, scenario)
                both = _at_once(scenario, world, drawn.uniform(0, whole.seconds))
                tally = tally.add(*_judge(scenario, world, both, wanted))
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def _at_once(scenario: Scenario, world: Path, later: float) -> list[Trial]:
    """How both ended."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "other"
        child = os.fork()
        if child == 0:
            time.sleep(later)
            other = run(scenario.argv, world)
            note.write_text(f"{other.code}\n{other.output}", "utf-8")
            os._exit(0)
        one = run(scenario.argv, world)
        os.waitpid(child, 0)
        code, _, output = note.read_text("utf-8").partition("\n")
    return [one, Trial(int(code), output, 0.0, 0)]


def _judge(scenario: Scenario, world: Path, both: list[Trial], wanted: dict[str, str]) -> tuple[str | None, str]:
    told = f"{scenario.name}: " + " || ".join(f"{one.code}: {one.output[-700:]}" for one in both)
    if any(one.is_crash or one.is_late or one.code not in (0, 2) for one in both):
        return "traceback", told
    if all(one.code for one in both):
        return "lost", told
    found = results(world)
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        return "differing", f"{names[:6]}: {told}"
    return None, ""
