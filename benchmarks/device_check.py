"""One GPU in one call: is it right, is it fast, what does it hold? Results as JSON, written after every one of them.

python benchmarks/device_check.py FOLDER [--prior FOLDER/results.json] [--budget 480] [--only PART,PART]
python benchmarks/device_check.py FOLDER --device cpu --tiny        (a dry run, in a minute or two)

Each part (device_parts.py, device_details.py) has an estimate in seconds and starts only if that fits into what is left
of the budget. `--prior` goes on where a former call stopped: parts that never ran come first, then those that failed or
were cut off; what is done is not done again, unless `--only` names it. A part that fails leaves its error behind and
the others go on; if it hangs, or the device no longer answers, they do so in a new process. What does not fit into the
device is measured with fewer layers. At the end stands a table to be sent to whoever asked. The exit code is 1 if the
results hold a failed part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from device_details import (
    check_answers,
    check_dtypes,
    check_failure,
    check_repeatable,
    measure_flex,
    measure_memory,
    measure_pieces,
)
from device_parts import (
    Bench,
    Part,
    check_group,
    check_numbers,
    compare_attention,
    measure_adapters,
    measure_compiled,
    measure_decoding,
    measure_families,
    measure_full,
    measure_kernels,
    measure_machine,
    measure_optimizers,
    measure_packed,
)
from script import read_arguments

PARTS = {
    "machine": Part(measure_machine, 8),
    "kernels": Part(measure_kernels, 25),
    "attention": Part(compare_attention, 15),
    "numbers": Part(check_numbers, 40),
    "dtypes": Part(check_dtypes, 15),
    "answers": Part(check_answers, 15),
    "decoding": Part(measure_decoding, 30),
    "adapters": Part(measure_adapters, 35),
    "full": Part(measure_full, 30),
    "memory": Part(measure_memory, 30),
    "failure": Part(check_failure, 15),
    "repeats": Part(check_repeatable, 27),
    "pieces": Part(measure_pieces, 35),
    "group": Part(check_group, 20),
    "packed": Part(measure_packed, 35),
    "families": Part(measure_families, 25),
    "flex": Part(measure_flex, 25),
    "optimizers": Part(measure_optimizers, 20),
    "compiled": Part(measure_compiled, 35),
}
"""In the order of their worth; together no more than the budget."""

START = "HANLIN_DEVICE_CHECK_START"
"""Environment variable: when the call began, for the process that goes on after another one."""
TRACE_LINES = 12
PATIENCE, LEAST_PATIENCE, DRY_PATIENCE = 3, 120, 15
"""A part that takes so many times its estimate, and so many seconds, hangs; so many times as long in a dry run, on a
processor that may be busy.
"""


class Results:
    """What is known of each part: its state (running, done, failed, no_time), seconds, results, error.

    A file that is there after every change, and whole at any time.
    """

    def __init__(self, file: Path, prior: dict[str, Any]) -> None:
        self.file, self.values = file, prior
        self.parts: dict[str, dict[str, Any]] = self.values.setdefault("parts", {})

    def state(self, part: str) -> str | None:
        return self.parts.get(part, {}).get("state")

    def set(self, part: str, **facts: Any) -> None:
        self.parts.setdefault(part, {}).update(facts)
        self.write()

    def keep(self, part: str, name: str, value: Any) -> None:
        self.parts[part].setdefault("results", {})[name] = value
        self.write()
        print(f"{part}/{name}: {json.dumps(value)[:300]}", flush=True)

    def write(self) -> None:
        beside = self.file.with_suffix(".tmp")
        beside.write_text(json.dumps(self.values, indent=1) + "\n", "utf-8")
        beside.replace(self.file)


def main() -> None:
    args = parse()
    folder: Path = args.out or args.folder
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder / "results.json", json.loads(args.prior.read_text("utf-8")) if args.prior else {})
    results.values |= {"torch": torch.__version__, "python": platform.python_version(), "device": args.device}
    # The wall clock, since another process may go on.
    begin = float(os.environ.pop(START, time.time()))
    waiting = choose_parts(results, args.only)
    while waiting:
        name = waiting.pop(0)
        left = args.budget - (time.time() - begin)
        if left < PARTS[name].seconds:
            if results.state(name) is None:
                results.set(name, state="no_time", error=f"{left:.0f} s were left, {PARTS[name].seconds} s are needed")
            continue
        limit = max(LEAST_PATIENCE * (DRY_PATIENCE if args.tiny else 1), PATIENCE * PARTS[name].seconds)
        with watched(limit, partial(leave_behind, name, limit, args, results, waiting, begin)):
            run_part(name, results, torch.device(args.device), args.tiny)
        if waiting and results.state(name) == "failed" and not answers(torch.device(args.device)):
            print("the device no longer answers", flush=True)
            go_on_in_new_process(args, results, waiting, begin)
    print(summary(results))
    sys.exit(int(any(results.state(name) == "failed" for name in PARTS)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where results.json is written")
    parser.add_argument("--out", type=Path, help="the same")
    parser.add_argument("--prior", type=Path, help="results.json of a former call")
    parser.add_argument("--budget", type=float, default=480, help="seconds (default: %(default)s)")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that every line runs")
    args = read_arguments(parser, "--device cpu --tiny")
    if (args.folder is None) == (args.out is None):
        parser.error("a folder for the results is needed: FOLDER or --out FOLDER")
    if unknown := set(args.only or ()) - PARTS.keys():
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; --device cpu --tiny is a dry run")
    if args.prior and not args.prior.is_file():
        parser.error(f"--prior {args.prior}: there is no such file")
    return args


def choose_parts(results: Results, only: Iterable[str] | None) -> list[str]:
    """Components that never ran, then those that did not come to their end; each in the order of worth."""
    wanted = [name for name in PARTS if (name in only if only else results.state(name) != "done")]
    return sorted(wanted, key=lambda name: results.state(name) not in (None, "no_time"))


def run_part(name: str, results: Results, device: torch.device, is_tiny: bool) -> None:
    results.parts[name] = {}
    results.set(name, state="running", estimate=PARTS[name].seconds)
    bench = Bench(device, is_tiny, lambda key, value: results.keep(name, key, value))
    start = time.perf_counter()
    try:
        PARTS[name].run(bench)
        results.set(name, state="done")
    except Exception as error:  # whatever it is, the device is lent for minutes: the other parts must run
        lines = "".join(traceback.format_exception(error)).splitlines()[-TRACE_LINES:]
        results.set(name, state="failed", error="\n".join(lines))
        print(f"{name} failed:", *lines, sep="\n  ", flush=True)
    results.set(name, seconds=round(time.perf_counter() - start, 1))
    if answers(device):
        bench.free()


def answers(device: torch.device) -> bool:
    """Whether the device still computes; after a fault in a kernel a process can use it no more."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False


@contextmanager
def watched(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Call `give_up`, from a thread, if the block takes longer."""
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leave_behind(
    name: str, limit: float, args: argparse.Namespace, results: Results, waiting: list[str], begin: float
) -> None:
    """End a part that hangs, with the process that waits for it."""
    results.set(name, state="failed", seconds=limit, error=f"not done after {limit:.0f} s, and left behind")
    print(f"{name} hangs", flush=True)
    go_on_in_new_process(args, results, waiting, begin)


def go_on_in_new_process(args: argparse.Namespace, results: Results, waiting: list[str], begin: float) -> None:
    if not waiting:
        print(summary(results), flush=True)
        os._exit(1)
    os.environ[START] = str(begin)
    words = ["--out", str(results.file.parent), "--prior", str(results.file), "--only", ",".join(waiting)]
    tiny = ["--tiny"] if args.tiny else []
    options = [*words, "--budget", str(args.budget), "--device", args.device, *tiny]
    print("a new process goes on", flush=True)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # those of the device's driver too, which holds the memory till then
    os.execv(sys.executable, [sys.executable, __file__, *options])


def summary(results: Results) -> str:
    """What a user can send: the card, what became of each part and what went wrong, and the figures of steps."""
    card = results.parts.get("machine", {}).get("results", {}).get("device", {})
    known = ", ".join(f"{name} {value}" for name, value in card.items() if name != "name")
    facts = f"torch {results.values.get('torch')}, Python {results.values.get('python')}, {date.today()}"
    head = f"{card.get('name', results.values.get('device'))}: {known + ', ' if known else ''}{facts}"
    return "\n".join([head, "", *part_lines(results), "", *figure_lines(results)])


def part_lines(results: Results) -> Iterator[str]:
    yield from ("| part | state | seconds | estimate | note |", "|---|---|---|---|---|")
    for name, part in PARTS.items():
        facts = results.parts.get(name, {})
        skipped = [
            key for key, value in facts.get("results", {}).items() if isinstance(value, dict) and "skipped" in value
        ]
        note = facts.get("error", "").rpartition("\n")[2] or (f"skipped: {', '.join(skipped)}" if skipped else "")
        yield f"| {name} | {facts.get('state', '-')} | {facts.get('seconds', '-')} | {part.seconds} | {note} |"


def figure_lines(results: Results) -> Iterator[str]:
    """Of every step and answer that was measured; planned: the peak that `hanlin plan` says, and the measured one as a
    multiple of it.
    """
    yield from ("| what | layers | " + " | ".join(FIGURES.values()) + " | peak / planned |", "|---|" + "---|" * 7)
    for part, facts in results.parts.items():
        for name, value in facts.get("results", {}).items():
            if isinstance(value, dict) and "tokens_per_second" in value:
                planned, peak = value.get("planned_gib"), value.get("peak_gib")
                ratio = f"{peak / planned:.2f}" if planned and peak else "-"
                figures = " | ".join(str(shown(value.get(key))) for key in FIGURES)
                yield f"| {part}/{name} | {shown(value.get('layers'))} | {figures} | {ratio} |"


def shown(value: Any) -> Any:
    return "-" if value is None else value


FIGURES = {
    "tokens_per_second": "tokens/s",
    "column_ms": "ms a token",
    "reserved_gib": "GiB taken",
    "peak_gib": "peak GiB",
    "planned_gib": "planned GiB",
}


if __name__ == "__main__":
    main()
