"""Compare runs: one self-contained HTML page with curves, scores, texts and settings, and the curves as PNG.

hanlin report runs/mine                                   report.html in the run folder
hanlin report runs/lora runs/full --output compared.html  several runs beside each other
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hanlin.cli._targets import add_overwrite, new_target

HELP = "one page with the curves, scores, texts and settings of runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the first run folder")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.training.report import picture_of, write_report

    output = args.output or args.runs[0] / "report.html"
    for file in (output, picture_of(output)):
        new_target(file, overwrite=args.overwrite or args.output is None)  # a run folder's own is made anew
    page, picture = write_report(args.runs, output)
    print(f"{page}\n{picture}")
    return 0
