"""The whole matrix on the stand-in accelerator, judged (budgets.py); code 1 for any fault, and a table at the end.

python tests/accelerator/matrix.py                            all of it, in two processes
python tests/accelerator/matrix.py --only cpm2 --only bf16    cells in whose name these words are
python tests/accelerator/matrix.py --sample 50 --seed 1       some of them
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    TESTS = Path(__file__).resolve().parents[1]
    folders = ("contract", "drills", "parallel", "models/chatglm2", "models/cpm1", "models/cpm2")
    sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in folders)]

from asking import ask
from budgets import faults, launches_of
from cells import Words, every_answer, every_step, is_answer

AT_ONCE = 40
"""Cells of a process; those behind them get a new one, so that what is wrong shows early."""


@dataclass
class Row:
    """Of the table: of all cells of a variant. launches: the most of a step, or for a token; difference: from the CPU's
    losses, as a share of them.
    """

    cells: int = 0
    faults: int = 0
    launches: int = 0
    difference: float = 0.0

    def add(self, words: Words, result: dict[str, Any], told: list[str]) -> None:
        self.cells += 1
        self.faults += bool(told)
        if "error" not in result:
            self.launches = max(self.launches, launches_of(words, result))
            self.difference = max(self.difference, result.get("difference", 0) / abs(result.get("loss", 1)))

    def as_cells(self) -> str:
        return f"{self.cells} | {self.faults} | {self.launches:,} | {self.difference:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="in the name of the cell")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of the cells, drawn anew with each --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log", type=Path, help="file for every cell's costs, a JSON object per line")
    given = parser.parse_args()
    chosen = [words for words in (*every_step(), *every_answer()) if all(one in " ".join(words) for one in given.only)]
    if given.sample and given.sample < len(chosen):
        chosen = random.Random(given.seed).sample(chosen, given.sample)
    rows: defaultdict[str, Row] = defaultdict(Row)
    for number, (words, result) in enumerate(ask_all(chosen, given.workers), 1):
        told = list(faults(words, result))
        rows[row_of(words)].add(words, result, told)
        for text in told:
            print(f"{' '.join(words)}: {text[:600]}", flush=True)
        if number % AT_ONCE == 0:
            print(f"{number} of {len(chosen)} cells", file=sys.stderr, flush=True)
        if given.log:
            with given.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"cell": " ".join(words), **result}) + "\n")
    print(table(rows))
    return int(any(row.faults for row in rows.values()))


def ask_all(chosen: list[Words], workers: int) -> Iterator[tuple[Words, dict[str, Any]]]:
    parts = [chosen[begin : begin + AT_ONCE] for begin in range(0, len(chosen), AT_ONCE)]
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(ask, parts):
            yield from found.items()


def row_of(words: Words) -> str:
    return f"{words[2].partition('.')[0]}, {'answers' if is_answer(words) else 'steps'}"


def table(rows: dict[str, Row]) -> str:
    """As Markdown."""
    total = Row(sum(row.cells for row in rows.values()), sum(row.faults for row in rows.values()))
    lines = ["| cells of | tried | wrong | most launches | off by |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {row.as_cells()} |" for name, row in sorted(rows.items())]
    return "\n".join([*lines, f"| all | {total.cells} | {total.faults} | | |"])


if __name__ == "__main__":
    sys.exit(main())
