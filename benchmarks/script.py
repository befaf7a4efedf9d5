"""What all scripts share: the option --smoke, files that are not distributed, and the report.

No script itself. It imports nothing heavy, so that a script can measure its own imports.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hanlin.core.machine import cpu_name

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared"
"""Vocabularies and data that may not be distributed with the project."""
LACKS = 77
"""Exit code of a run that lacks a file or a package (what automake's tests say when they are skipped)."""


def read_arguments(
    parser: argparse.ArgumentParser, smallest: str = "", shared: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """The command line of a script; `--smoke` stands for the options `smallest`, which others on the line override.

    shared: options whose files a smoke run, and one with --shared, takes from ../shared, by their paths there.
    """
    parser.add_argument("--smoke", action="store_true", help="smallest sizes, to see that every line runs")
    parser.add_argument("--shared", action="store_true", help="take vocabularies and data from ../shared")
    given = sys.argv[1:]
    words = smallest.split() if "--smoke" in given else []
    words += _shared_words(shared or {}) if {"--smoke", "--shared"} & {*given} else []
    args = parser.parse_args([*words, *given])
    out: Path | None = args.out
    if args.smoke and out is not None and out.resolve().is_relative_to(RESULTS):
        parser.error("--smoke measures nothing: its figures do not belong into benchmarks/results")
    return args


def _shared_words(shared: Mapping[str, str]) -> list[str]:
    for name in shared.values():
        if not (SHARED / name).is_file():
            _lacks(f"needs {name} of ../shared, which is not distributed with the project")
    return [word for option, name in shared.items() for word in (option, str(SHARED / name))]


def require(*packages: str) -> None:
    """End the script when a package that it compares with is not installed."""
    if missing := [name for name in packages if not is_installed(name)]:
        _lacks(f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _lacks(what: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {what}", file=sys.stderr)
    sys.exit(LACKS)


def report(figures: Mapping[str, Any], out: Path | None, packages: Sequence[str] = (), threads: int = 1) -> None:
    """Print the figures with the machine, the date and the load; write them to a file as well.

    packages: whose versions matter, besides Python and torch.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    facts = {
        "machine": ", ".join([cpu_name(), f"Python {platform.python_version()}", *versions, f"{threads} thread"]),
        "date": datetime.date.today().isoformat(),
        # Of the last 1, 5 and 15 minutes, this process included: above the number of cores others took time away.
        "load_at_end": [round(load, 1) for load in os.getloadavg()],
        "cores": os.cpu_count(),
    }
    text = json.dumps({**facts, **figures}, indent=1, ensure_ascii=False)
    print(text)
    if out:
        out.write_text(text + "\n", "utf-8")


def memory_bytes(field: str) -> int:
    """From Linux's own account of the process: VmRSS is now, VmHWM the highest so far, RssAnon what is of no file."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
