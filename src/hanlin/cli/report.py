"""Compare runs: one self-contained HTML page with curves and the settings that differ, and the curves as PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from hanlin.core.files import check_target

HELP = "one page with the curves of runs and the settings that differ"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the first run folder")


def run(args: argparse.Namespace) -> int:
    from hanlin.training.report import write_report

    output = args.output or args.runs[0] / "report.html"
    check_target(output)
    page, picture = write_report(args.runs, output)
    print(f"{page}\n{picture}")
    return 0
