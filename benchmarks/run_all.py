"""All benchmarks that need no device, one after another, and what they say beside the results that are kept.

    python benchmarks/run_all.py                      run all; a table of what was and what is
    python benchmarks/run_all.py --only serve,step_cpm2
    python benchmarks/run_all.py --keep               the new results take the places of the kept ones
    python benchmarks/run_all.py --table              run nothing; write docs/benchmarks.md's table from what is kept

A ratio that fell by more than a tenth on the same processor is a regression, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from script import LACKS, RESULTS, is_installed

HERE = Path(__file__).parent
FIGURES = HERE / "figures.yaml"
PAGES: dict[str, Path] = {
    "en": HERE.parent / "docs/benchmarks.md",
    "zh": HERE.parent / "docs/benchmarks.zh-CN.md",
}
HEADS = {
    "en": "| what | against | ratio (spread) | target | script | date |",
    "zh": "| 什么 | 与谁比 | 比值（范围） | 目标 | 脚本 | 日期 |",
}
BEGIN, END = "<!-- written by benchmarks/run_all.py from benchmarks/results -->", "<!-- end -->"
FALL = 0.1
"""The share by which a ratio may fall: as much as other work on the machine makes of the same program."""
MOST_SECONDS = 900
"""Of one script."""

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Ratio:
    """median, least, most: over the rounds; these are one where a script tells no spread."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, results: Mapping[str, Any], path: str) -> Ratio:
        """Raises: SystemExit where the results do not have it."""
        found: Any = results
        for name in path.split("/"):
            if not isinstance(found, Mapping) or name not in found:
                sys.exit(f"run_all.py: the results have no {path}, which {FIGURES.name} names")
            found = found[name]
        if isinstance(found, Mapping):
            return cls(found["median"], found["least"], found["most"])
        return cls(found, found, found)

    def __str__(self) -> str:
        spread = f" ({_number(self.least)} - {_number(self.most)})" if self.least != self.most else ""
        return f"{_number(self.median)}{spread}"


@dataclass(frozen=True)
class Change:
    """A figure of a row as it is kept and as it is now; `before` None: it is new."""

    what: str
    before: Ratio | None
    now: Ratio
    is_comparable: bool
    has_target: bool

    @property
    def fell(self) -> bool:
        """Whether it is a regression: figures without a target may be better the smaller they are."""
        if self.before is None or not self.is_comparable or not self.has_target:
            return False
        return self.now.median < (1 - FALL) * self.before.median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), help="scripts, by name")
    parser.add_argument("--keep", action="store_true", help="the new results take the places of the kept ones")
    parser.add_argument("--table", action="store_true", help="run nothing; write the tables of the pages")
    args = parser.parse_args()
    figures = yaml.safe_load(FIGURES.read_text("utf-8"))
    if args.table:
        write_tables(figures["rows"])
        return
    if unknown := set(args.only or ()) - figures["arguments"].keys():
        parser.error(f"--only: unknown are {', '.join(sorted(unknown))}; known: {', '.join(figures['arguments'])}")
    names = args.only or list(figures["arguments"])
    with tempfile.TemporaryDirectory(prefix="hanlin-bench-") as folder:
        done, failed = _run(names, figures["arguments"], Path(folder))
        missing = {row["script"]: row["needs"] for row in figures["rows"] if _lacks_peer(row)}
        changes = list(compare([row for row in figures["rows"] if row["script"] in done], Path(folder)))
        print("\n".join(_lines(changes)))
        for name in done:
            if package := missing.get(name):
                print(f"{name}: not beside {package}, which is not installed; what is kept stays", file=sys.stderr)
            elif args.keep:
                shutil.copy(Path(folder) / f"{name}.json", RESULTS)
        if args.keep:
            write_tables(figures["rows"])
    fallen = [change.what for change in changes if change.fell]
    if fallen:
        print(f"fell by more than {FALL:.0%}: {'; '.join(fallen)}", file=sys.stderr)
    sys.exit(1 if fallen or failed else 0)


def _run(names: Sequence[str], arguments: Mapping[str, str], folder: Path) -> tuple[list[str], list[str]]:
    """Those that have written results, and those that failed; one that lacks a package or a file is only told."""
    done, failed = [], []
    for number, name in enumerate(names, start=1):
        began = time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments[name].split()]
        print(f"{number}/{len(names)} {name} {arguments[name]}", file=sys.stderr, flush=True)
        try:
            ran = subprocess.run(
                [*command, "--out", str(folder / f"{name}.json")],
                cwd=HERE.parent, capture_output=True, text=True, timeout=MOST_SECONDS, check=False,
            )  # fmt: skip
            code, last = ran.returncode, (ran.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            code, last = -1, f"took longer than {MOST_SECONDS} seconds"
        if code == 0:
            done.append(name)
        elif code != LACKS:
            failed.append(name)
        said = "" if code == 0 else f"{'not run' if code == LACKS else 'failed'}: {last}; "
        print(f"    {said}{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return done, failed


# --- what was and what is ---


def compare(rows: Sequence[Mapping[str, Any]], new: Path, kept: Path = RESULTS) -> Iterator[Change]:
    """The figures of rows, in the results of `new` and in those that are kept; not beside what is not installed."""
    for row in rows:
        if _lacks_peer(row):
            continue
        now, before = (_results(folder, row["script"]) for folder in (new, kept))
        for place, path in enumerate(row["figures"]):
            yield Change(
                f"{row['script']} {path}",
                None if before is None else Ratio.of(before, path),
                Ratio.of(now or {}, path),
                is_comparable=before is not None and now is not None and _processor(before) == _processor(now),
                has_target=place < len(row.get("targets", ())),
            )


def _lacks_peer(row: Mapping[str, Any]) -> bool:
    return "needs" in row and not is_installed(row["needs"])


def _results(folder: Path, script: str) -> dict[str, Any] | None:
    path = folder / f"{script}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _processor(results: Mapping[str, Any]) -> str:
    return str(results["machine"]).partition(",")[0]


def _lines(changes: Sequence[Change]) -> Iterator[str]:
    width = max((len(change.what) for change in changes), default=0)
    for change in changes:
        before = "-" if change.before is None else str(change.before)
        note = "FELL" if change.fell else "" if change.is_comparable else "kept on another processor"
        yield f"{change.what:<{width}}  {before:>20}  {change.now!s:>20}  {note}".rstrip()


# --- the pages ---


def write_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    for language in ("en", "zh"):
        page = PAGES[language]
        page.write_text(with_table(page.read_text("utf-8"), table(rows, language)), "utf-8")


def table(rows: Sequence[Mapping[str, Any]], language: Language, kept: Path = RESULTS) -> str:
    """The rows as a table of Markdown, from the results that are kept."""
    lines = [HEADS[language], "|---|---|---|---|---|---|"]
    for row in rows:
        results = _results(kept, row["script"])
        if results is None:
            sys.exit(f"run_all.py: {kept} has no {row['script']}.json; run benchmarks/{row['script']}.py --out there")
        ratios = " / ".join(str(Ratio.of(results, path)) for path in row["figures"])
        wanted = [f"{target:g}" for target in row.get("targets", ())]
        targets = " / ".join(wanted if len(set(wanted)) > 1 else wanted[:1])
        date = results.get("date", "")  # older results have none
        cells = (row["what"][language], row["against"][language], ratios, targets, row["script"], date)
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def with_table(page: str, lines: str) -> str:
    """A page with other lines between its two marks."""
    head, found, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not found or not end:
        sys.exit(f"run_all.py: a page lacks the lines {BEGIN} and {END}, between which the table stands")
    return f"{head}{BEGIN}\n{lines}\n{END}{tail}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
