"""Look at this machine and its devices: what they offer, and whether they compute rightly.

hanlin doctor                        the report, on the terminal
hanlin doctor --report machine.json  and as a file
hanlin doctor --npu                  of an Ascend NPU, to be sent

Exit code 0: all is well; 1: something is wrong, as the report says; 2: the report could not be written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

HELP = "look at this machine and its devices: memory, arithmetic, kernels, copies, links"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--npu", action="store_true", help="an Ascend NPU has to be here; prints the report to send")
    parser.add_argument("--json", action="store_true", help="prints the report as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="writes the report as JSON too")


def run(args: argparse.Namespace) -> int:
    from rich.markup import escape
    from rich.styled import Styled
    from rich.table import Table

    from hanlin.core.files import check_target, replaced_file
    from hanlin.core.progress import counted
    from hanlin.core.terminal import screen
    from hanlin.diagnosis.examination import examine

    if args.report is not None:
        check_target(args.report)
    table = Table(show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")  # on a narrow terminal too every letter is there
    findings = []
    for finding in counted(examine(needs_npu=args.npu), "Looking at this machine", 0):
        findings.append(finding)
        verdict = ("ok", "green") if finding.is_well else ("wrong", "red")
        table.add_row(finding.name, escape(finding.text), Styled(*verdict))
    is_well = all(finding.is_well for finding in findings)
    report = {
        "date": datetime.date.today().isoformat(),
        "is_well": is_well,
        "findings": [finding.as_json() for finding in findings],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n"
    if args.json or args.npu:
        sys.stdout.write(text)
    else:
        screen().print(table)
    if args.report is not None:
        with replaced_file(args.report) as stream:
            stream.write(text.encode())
    return 0 if is_well else 1
