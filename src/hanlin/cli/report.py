"""Compare runs: one self-contained HTML page with curves, scores, texts and settings, and the curves as PNG.

hanlin report runs/mine                                   report.html in the run folder
hanlin report runs/mine --watch                           made anew while the run goes on, until Ctrl-C
hanlin report runs/lora runs/full --output compared.html  several runs beside each other
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from hanlin.cli._numbers import whole
from hanlin.cli._say import say
from hanlin.cli._targets import add_overwrite, new_target
from hanlin.core.progress import idle

HELP = "one page with the curves, scores, texts and settings of runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the first run folder")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=whole(1, 3600),
        const=10,
        metavar="SECONDS",
        help="make the page anew every so many seconds (10), until Ctrl-C; an open page follows",
    )
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.training.report import picture_of, write_report

    output = args.output or args.runs[0] / "report.html"
    for file in (output, picture_of(output)):
        new_target(file, overwrite=args.overwrite or args.output is None)  # a run folder's own is made anew
    if args.watch is not None:
        return _watch(args.runs, output, args.watch)
    page, picture = write_report(args.runs, output)
    print(f"{page}\n{picture}")
    return 0


def _watch(runs: Sequence[Path], output: Path, seconds: int) -> int:
    from hanlin.training.report import watch_report

    say(f"{output} is made anew every {seconds} s while the run goes on; open it in a browser; Ctrl-C ends this")
    with idle(), suppress(KeyboardInterrupt), closing(watch_report(runs, output, seconds)) as pages:
        for _ in pages:
            pass
    return 0
