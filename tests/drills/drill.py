"""All drills, in two processes: `make drill` (ARGS="--seed 1", ARGS="--only kill --scale 0.2"); code 1 for any fault.

Prints the table of docs/reliability.md; while it works, what was tried and shown wherever something went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / room)
    for room in ("drills", "contract", "models/chatglm2", "models/cpm1", "models/cpm2")
)

import damage_drill
import disk_drill
import fuzz_drill
import hostile_drill
import kill_drill
import pair_drill
from trials import Tally, table, warm
from worlds import make_world, train_all

SHORT = 0.1
"""Below this scale a drill is only to see that it works, and that nothing is grossly wrong."""
Job = tuple[str, Callable[[Path, Path], Tally]]
"""What it is called, and what does it with a template and the place where its copies have to lie."""


def jobs(scale: float, seed: int) -> list[Job]:
    """All of them; at scale 1 more than 1,000 kills and more than 1,000 damaged or hostile inputs; far below it without
    the layouts that differ little from another.
    """
    is_short, share = scale < SHORT, min(scale, 1.0)
    made: list[Job] = []
    for number, scenario in enumerate(kill_drill.scenarios(Path("/"))):
        if not (is_short and scenario.is_like_another):
            most = max(round(scenario.most * scale), 1)
            made.append((f"kill: {scenario.name}", _killer(number, most, seed)))
    for number, reader in enumerate(damage_drill.readers(Path("/"))):
        made.append((f"damage: {reader.name}", _damager(number, scale, seed)))
    made_up = [max(round(count * scale), least) for count, least in ((200, 3), (100, 3))]
    sizes = [1 << power for power in (12, 15, 16, 17, 18, 19, 20)][:: 6 if is_short else 1]
    return [
        *made,
        ("hostile", lambda template, place: hostile_drill.drill(template, place, share)),
        ("disk: full", lambda template, place: disk_drill.full_disk(template, place, sizes, max(share, 0.25))),
        ("disk: quota", lambda template, place: disk_drill.small_files(template, place, [64, *sizes], max(share, 0.2))),
        ("permission", lambda template, place: disk_drill.forbidden(template, place, max(share, 0.2))),
        (
            "fuzz: recipes",
            lambda template, place: fuzz_drill.drill_recipes(template, place, made_up[0], seed),
        ),
        ("fuzz: rows", lambda template, place: fuzz_drill.drill_rows(template, place, made_up[1], seed)),
        ("pairs", lambda template, place: pair_drill.drill(template, place, round(6 * scale), seed)),
    ]


def _killer(number: int, most: int, seed: int) -> Callable[[Path, Path], Tally]:
    def work(template: Path, place: Path) -> Tally:
        scenario = kill_drill.scenarios(place)[number]
        return kill_drill.drill(template, place, scenario, kill_drill.every_call(most), seed)

    return work


def _damager(number: int, scale: float, seed: int) -> Callable[[Path, Path], Tally]:
    return lambda template, place: damage_drill.drill(template, place, damage_drill.readers(place)[number], scale, seed)


def make_template(root: Path) -> tuple[Path, Path]:
    """A world with all results, and the place where its copies have to lie."""
    place, template = root / "world", root / "template"
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            make_world(place)
            train_all(place)
    except BaseException:
        print(shown.getvalue()[-3000:], file=sys.stderr)
        raise
    place.rename(template)
    return template, place


def run_all(chosen: Sequence[Job], workers: int) -> list[Tally]:
    """Each worker has a world of its own; the jobs go out in turns, the tables come back in their order."""
    with tempfile.TemporaryDirectory(prefix="drill-", dir=_fast_folder()) as folder:
        os.chmod(folder, 0o755)
        children = []
        for worker in range(workers):
            if (child := os.fork()) == 0:
                _be_worker(chosen, worker, workers, Path(folder))
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        tallies = []
        for number, (name, _) in enumerate(chosen):
            path = Path(folder) / f"{number}.tally"
            if path.is_file():
                tallies.append(pickle.loads(path.read_bytes()))
            else:
                tallies.append(Tally(name).add("traceback", "the drill itself died"))
        return tallies


def _be_worker(chosen: Sequence[Job], worker: int, workers: int, folder: Path) -> None:
    try:
        root = folder / str(worker)
        root.mkdir()
        template, place = make_template(root)
        for number, (name, work) in enumerate(chosen):
            taken = folder / f"{number}.taken"
            try:
                taken.touch(exist_ok=False)  # by whoever comes first
            except FileExistsError:
                continue
            try:
                tally = work(template, place)
            except BaseException:
                tally = Tally(name).add("traceback", f"the drill itself: {traceback.format_exc()[-3000:]}")
            shown = f"{tally.name}: tried {tally.tried}, faults {tally.faults}, {tally.seconds:.0f} s"
            print(shown, file=sys.stderr, flush=True)
            (folder / f"{number}.tally").write_bytes(pickle.dumps(tally))
            shutil.rmtree(place, ignore_errors=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _fast_folder() -> str | None:
    """Where fsync costs nothing; a kill of a process loses nothing there either."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def joined(tallies: Sequence[Tally]) -> list[Tally]:
    """Those of one name as one."""
    found: dict[str, Tally] = {}
    for one in tallies:
        if one.name not in found:
            found[one.name] = one
            continue
        before = found[one.name]
        sums = {
            name: getattr(before, name) + getattr(one, name)
            for name in ("tried", "lost", "differing", "silent", "traceback", "unproven", "seconds")
        }
        found[one.name] = replace(before, **sums)
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="of the jobs those whose names begin so")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    chosen = [
        job for job in jobs(args.scale, args.seed) if not args.only or any(job[0].startswith(one) for one in args.only)
    ]
    warm()
    tallies = joined(run_all(chosen, args.workers))
    print(table(tallies))
    return 1 if any(tally.faults for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
