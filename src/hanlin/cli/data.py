"""Look at data before anything is done with them: the form of a file, its first samples, how long they are.

hanlin data show train.jsonl                          the form of the rows, and what they say
hanlin data show train.jsonl --base chatglm2-6b       the same as the model sees it: template, special tokens, loss
hanlin data show train.jsonl --family cpm1 --vocab V  likewise, without weights
hanlin data show recipe.yaml data.max_length=512      all files of a recipe, by its settings
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._say import in_users_language
from hanlin.cli._trust import add_trust
from hanlin.core.errors import ConfigError, shorten

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from hanlin.data.preview import Preview, ShownRow
    from hanlin.recipe.settings import DataSettings, Recipe

HELP = "show what a file of data holds, and what a model sees of it"

MOST_ROWS, MOST_NOTES, MOST_BAD = 10_000, 10, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show",), metavar="show")
    parser.add_argument("path", metavar="FILE|RECIPE", help="a file or folder of rows, a recipe, or a run folder")
    parser.add_argument("changes", nargs="*", default=[], metavar="KEY=VALUE", help="settings: data.max_length=512")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="rows that are shown in full (default: 3)")
    parser.add_argument(
        "--rows", type=int, default=MOST_ROWS, metavar="N", help="rows that are looked at (default: 10,000)"
    )
    parser.add_argument("--json", action="store_true", help="write all of it as JSON")
    model = parser.add_argument_group("the model that would read a file")
    model.add_argument("--base", type=Path, help="a base folder, or an original checkpoint; no weights are read")
    model.add_argument("--vocab", type=Path, help="its vocabulary; default: the base folder's own")
    model.add_argument("--family", help="its family; default: told from the base")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.core.terminal import screen

    if args.n < 0 or args.rows < 1:
        raise ConfigError("-n and --rows: expected numbers of rows")
    found = list(_previews(args))
    if args.json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False, indent=2))
        return 0
    console = screen()
    if not console.is_terminal:
        console = screen(width=100_000)  # a reader in a pipe breaks lines itself
    for one in found:
        console.print(_render(one, console))
    return 0


def _previews(args: argparse.Namespace) -> Iterator[Preview]:
    """Raises: ConfigError, DataError."""
    from hanlin.data.preview import preview
    from hanlin.recipe.reading import is_recipe
    from hanlin.run.components import build_components

    recipe = _recipe(args)
    components = None if recipe is None else build_components(recipe)
    processor, tokenizer = (None, None) if components is None else (components.processor, components.tokenizer)
    if recipe is not None and is_recipe(args.path):
        files = _files(args.path, recipe)
    else:
        files = iter([(Path(args.path), _settings(args.changes, recipe, components and components.config))])
    for path, settings in files:
        yield preview(path, settings, processor, tokenizer, shown=args.n, most=args.rows)


def _recipe(args: argparse.Namespace) -> Recipe | None:
    """The recipe that is named, or that of the model that is named; None where none is."""
    from hanlin.recipe.reading import is_recipe, load_recipe, make_recipe

    model = {name: str(value) for name in ("family", "base", "vocab") if (value := getattr(args, name)) is not None}
    if is_recipe(args.path):
        if model:
            raise ConfigError(
                f"{args.path}: a recipe names its model; leave --{', --'.join(model)} out, or name a file"
            )
        return load_recipe(args.path, args.changes)
    if not model:
        return None
    if "family" not in model:
        if args.base is None:
            raise ConfigError("--vocab: say whose it is, with --family or --base")
        from hanlin.api.weights import find_family, located

        model["family"] = find_family(located(args.base)).name
    return make_recipe({"model": model, "run": {"folder": "."}}, args.changes)


def _files(name: str, recipe: Recipe) -> Iterator[tuple[Path, DataSettings]]:
    """The files of a recipe, and the settings by which each is read.

    Raises: ConfigError.
    """
    data = recipe.data
    if data.split is not None:
        raise ConfigError("data.split: the files are token corpora or texts to cut; look at them with hanlin inspect")
    if data.mixture is not None:
        from hanlin.data.mixture_file import read_mixture

        sets = [one for one in read_mixture(data.mixture) if one.is_drawn]
        yield from ((one.path, data.model_copy(update={"transform": way})) for one in sets for way in one.ways)
    files = dict.fromkeys((*data.train, *data.eval, *recipe.evaluate.data))
    if not files and data.mixture is None:
        raise ConfigError(f"{name}: names no data; name files in data.train or data.eval")
    yield from ((path, data) for path in files)


def _settings(changes: Sequence[str], recipe: Recipe | None, config: Any) -> DataSettings:
    """Of a file alone: rows as long as its model (its config) reads them, unless it is said otherwise."""
    from hanlin.recipe.reading import make_recipe

    if recipe is None:
        if other := [word for word in changes if not word.startswith("data.")]:
            raise ConfigError(f"{other[0]}: without a model only settings of data have an effect")
        return make_recipe({"model": {"family": "none"}, "run": {"folder": "."}}, changes).data
    longest = None if config is None else getattr(config, "max_length", None)
    is_said = "max_length" in recipe.data.model_fields_set or longest is None
    return recipe.data if is_said else recipe.data.model_copy(update={"max_length": longest})


# --- on the screen ---


def _render(one: Preview, console: Console) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel

    parts = [_facts(one, console), *(_sample(row, number, console) for number, row in enumerate(one.first, start=1))]
    if not console.is_terminal:
        return Group(one.path, *parts)
    return Panel(Group(*parts), title=one.path, title_align="left")


def _facts(one: Preview, console: Console) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from hanlin.core.terminal import padded, width_of

    if not console.is_terminal:
        rows = [(in_users_language(name), value) for name, value in _fact_rows(one)]
        width = max(width_of(name) for name, _ in rows) + 2
        return Text("\n".join(padded(name, width) + value for name, value in rows))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, value in _fact_rows(one):
        table.add_row(name, Text(value))
    return table


def _fact_rows(one: Preview) -> Iterator[tuple[str, str]]:
    """What is said of a file; its keys are its own."""
    return ((name, value if name == "keys" else in_users_language(value)) for name, value in _facts_of(one))


def _facts_of(one: Preview) -> Iterator[tuple[str, str]]:
    from hanlin.data.bad_rows import lines_of

    yield (
        "rows",
        f"{one.num_rows:,}" + (f", looked at the first {one.looked_at:,}" if one.looked_at < one.num_rows else ""),
    )
    yield "read as", one.read_as
    keys = [
        name if count == one.looked_at else f"{name} {in_users_language(f'(in {count:,})')}"
        for name, count in one.keys.items()
    ]
    yield "keys", ", ".join(shorten(keys, 20))
    if one.sizes:
        sizes = ", ".join(f"{in_users_language(name)} {size:,}" for name, size in one.sizes.items())
        yield "length", f"{sizes} {one.unit}"
    if one.longest is not None:
        yield "longest", f"{one.longest[0]}: {one.longest[1]:,} {one.unit}"
    yield from one.fates
    notes = [f"{count:,} rows: {note}" for note, count in sorted(one.notes.items(), key=lambda pair: -pair[1])]
    yield from (("note", text) for text in shorten(notes, MOST_NOTES))
    if one.bad:
        yield (
            "bad rows",
            f"{len(one.bad):,} of {one.looked_at:,}; training stops at them (data.bad_rows, data.overlong)",
        )
        yield from (("", text) for text in shorten(lines_of(one.bad, MOST_BAD), MOST_BAD))


def _sample(row: ShownRow, number: int, console: Console) -> RenderableType:
    """A sample, or what a row says; what carries loss is marked."""
    from rich.text import Text

    from hanlin.core.terminal import marked

    if row.learned is None:
        head = f"{number}. {row.where}: {row.size:,} characters"
    else:
        head = f"{number}. {row.where}: {row.size:,} tokens, {row.learned:,} carry loss{_legend(console)}"
    text = Text(f"\n{in_users_language(head)}\n", style="bold")
    for place, (speaker, said, is_learned) in enumerate(row.pieces):
        if speaker:
            text.append("\n" if place else "")
            text.append(f"{speaker}: ", style="cyan")
        text.append_text(marked(said, is_learned, console))
    return text


def _legend(console: Console) -> str:
    from hanlin.core.terminal import LOSS_BEGIN, LOSS_END, has_colours

    return " (it is marked)" if has_colours(console) else f" (it stands within {LOSS_BEGIN}{LOSS_END})"
