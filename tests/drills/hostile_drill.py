"""Files made to run code, to exhaust the machine, to lead elsewhere or to confuse, and the commands that meet them.

Each command works first where nothing was planted; then it has to be refused in words that name what was planted, or to
do without it, as the attack says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import hostile_inputs
import hostile_tables
import hostile_weights
from hostile_attack import MARK, Attack
from judging import Baselines, judge
from trials import Tally, copy_of, every_nth, limit_memory, run

MEMORY_GIB, SECONDS = 6.0, 40.0


def attacks() -> Iterator[Attack]:
    yield from hostile_weights.attacks()
    yield from hostile_inputs.attacks()
    yield from hostile_tables.attacks()


def drill(template: Path, place: Path, share: float = 1.0) -> Tally:
    """Meet `share` of all attacks with their commands."""
    start, tally = time.monotonic(), Tally("hostile files")
    baselines = Baselines(template, place)
    for attack in list(attacks())[:: every_nth(share)]:
        unproven = [problem for one in attack.tries if (problem := baselines.problem(one.undamaged))]
        with copy_of(template, place) as world:
            attack.plant(world)
            for attempt in attack.tries:
                found = run(attempt.argv, world, prepare=lambda: limit_memory(MEMORY_GIB), timeout=SECONDS)
                fault = "silent" if (world / MARK).exists() else judge(found, attempt)
                shown = f"{attack.name}: {' '.join(attempt.argv)}: {found.code}, not {attempt.code} with"
                tally = tally.add(fault, f"{shown} {attempt.told!r}: {found.output[-1200:]}")
        for problem in unproven:
            tally = tally.add("unproven", f"{attack.name}: {problem}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})
