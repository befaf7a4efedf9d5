"""The recipes and examples that come with hanlin.

hanlin recipes                                   all of them, with family, method and what they need
hanlin recipes show cpm2_ccpm_full               one of them, as it is
hanlin recipes copy cpm2_ccpm_full .             into a folder, to be changed there
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from hanlin.cli._say import tell
from hanlin.cli._schema import new_recipe, write_recipe
from hanlin.cli._targets import add_overwrite, new_target
from hanlin.core.files import replaced_file
from hanlin.core.language import language
from hanlin.core.terminal import screen

HELP = "list, show and copy the recipes that come with hanlin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("list", help="all of them (default)")
    show = actions.add_parser("show", help="write one to standard output")
    show.add_argument("name", help="of a recipe or an example, with its ending or without")
    copy = actions.add_parser("copy", help="copy one to where it can be changed")
    copy.add_argument("name", help="of a recipe or an example, with its ending or without")
    copy.add_argument(
        "target", type=Path, nargs="?", default=Path(), help="a folder, or a file with the same ending (default: here)"
    )
    add_overwrite(copy)


def run(args: argparse.Namespace) -> int:
    from hanlin.recipe.shipped import shipped_file

    if args.action in (None, "list"):
        _list()
    elif args.action == "show":
        sys.stdout.write(shipped_file(args.name).read_text("utf-8"))
    else:
        source = shipped_file(args.name)
        is_file = args.target.suffix == source.suffix and not args.target.is_dir()
        target = args.target if is_file else args.target / source.name
        _copy(source, target, overwrite=args.overwrite)
    return 0


def _copy(source: Path, path: Path, *, overwrite: bool) -> None:
    content = source.read_bytes()
    if source.suffix == ".yaml" and re.search(rb"^model:", content, re.MULTILINE):
        target = new_recipe(path, overwrite=overwrite)
        write_recipe(path, content.decode())
        tell(f"{target}: change its paths, then `hanlin check {target}`")
        return
    with replaced_file(target := new_target(path, overwrite=overwrite)) as stream:
        stream.write(content)
    tell(f"{target}: change its paths, then `hanlin compare {target}`" if source.suffix == ".yaml" else str(target))


def _list() -> None:
    import yaml
    from rich.table import Table
    from rich.text import Text

    from hanlin.recipe.shipped import shipped_files
    from hanlin.reference.chinese import recipe_titles

    chinese = recipe_titles() if language() == "zh" else {}
    table = Table("recipe", "family", "method", "needs", "what it is")
    for file in shipped_files("recipes"):
        text = file.read_text("utf-8")
        values = yaml.safe_load(text)
        is_trained = "train" in values.get("data", {})
        method = values.get("tuning", {}).get("method", "full") if is_trained else "none"
        facts = (file.stem, values["model"]["family"], method, "\n".join(_needs(values)))
        table.add_row(*map(Text, (*facts, chinese.get(file.stem, _title(text)))))
    for file in shipped_files("examples"):
        table.add_row(Text(file.name), "", "", "", "an example")
    console = screen()
    if not console.is_terminal:
        console = screen(width=240)
    console.print(table)


def _needs(values: dict[str, Any]) -> list[str]:
    """The files that a recipe names, which a user has to bring."""
    model, data = values["model"], values.get("data", {})
    paths = [model.get(key) for key in ("base", "adapter", "vocab")] + [data.get("train"), data.get("mixture")]
    return [name for path in paths if path for name in ([path] if isinstance(path, str) else path)]


def _title(text: str) -> str:
    """The first sentence of the comment at the top."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).partition(". ")[0].removesuffix(".")
