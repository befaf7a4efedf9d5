"""Show what a DeepSpeed configuration (JSON) means as settings of a recipe.

The settings are printed as YAML, to be put into a recipe; with --one-line as KEY=VALUE for a command line. What has no
meaning here, or needs a look, is told beside.

hanlin deepspeed ds_config.json                        as YAML
hanlin deepspeed ds_config.json --data 8 --one-line    as words for a command line of 8 data ranks
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from hanlin.cli._numbers import whole
from hanlin.cli._say import say

HELP = "read a DeepSpeed configuration as settings of a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="DeepSpeed's JSON file")
    parser.add_argument(
        "--data", type=whole(), metavar="N", help="ranks that divide the rows of a batch among themselves"
    )
    parser.add_argument("--one-line", action="store_true", help="print KEY=VALUE words for a command line")


def run(args: argparse.Namespace) -> int:
    from hanlin.recipe.deepspeed import read_deepspeed

    translation = read_deepspeed(args.file, args.data)
    for note in translation.notes:
        say(f"# {note}")
    if args.one_line:
        print(" ".join(shlex.quote(f"{key}={json.dumps(value)}") for key, value in translation.settings.items()))
        return 0
    import yaml

    sections: dict[str, Any] = {}
    for key, value in translation.settings.items():
        *inside, name = key.split(".")
        section = sections
        for part in inside:
            section = section.setdefault(part, {})
        section[name] = value
    print(yaml.safe_dump(sections, sort_keys=False, default_flow_style=False), end="")
    return 0
