"""Tokenise a recipe's data into the cache and show what they look like, or bring files into another form.

hanlin prepare recipe.yaml                                   data report; training will start at once
hanlin prepare --from ccpm raw/train.jsonl data/train.jsonl  raw CCPM rows -> records
hanlin prepare --from ccpm-text raw.jsonl data.jsonl         the same, with the right choice's text as the answer
hanlin prepare --from cpm1:chid raw/train.json train.jsonl   a data set of CPM-1's originals -> records
hanlin prepare --from bee bee_data/train train.jsonl         the original binary form -> JSON lines
hanlin prepare --to bee train.jsonl bee_data/train           and back: a data file in the folder bee_data

Token corpora for pretraining, PREFIX.bin and PREFIX.idx in Megatron's layout:
hanlin prepare --to indexed texts/ more.jsonl.gz PREFIX --vocab V   one document a line; a stopped job goes on
hanlin prepare --to indexed-spans texts/ PREFIX --vocab V           spans taken out, in the three files of T5
hanlin prepare --from indexed --to indexed A B PREFIX --shuffle 1   merged and shuffled
hanlin prepare --from indexed PREFIX back.jsonl --vocab V           read back
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._corpus import INDEXED, add_corpus_options, corpus_options, prepare_corpus
from hanlin.cli._trust import add_trust
from hanlin.core.errors import ConfigError
from hanlin.core.files import written_alone

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe

FORMS = ("jsonl", "bee", "indexed")

HELP = "tokenise data and report on them; bring raw files into another form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="RECIPE KEY=VALUE | SOURCE TARGET")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="{" + ",".join(FORMS) + ",DATA}",
        help="the form of SOURCE; DATA: a raw data set of a family's originals (FAMILY:DATA where several have it)",
    )
    parser.add_argument("--to", choices=("jsonl", "bee", *INDEXED), help="the form of TARGET (default: jsonl)")
    add_corpus_options(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    if args.from_ == "indexed" or args.to in INDEXED:
        return prepare_corpus(args)
    if given := corpus_options(args):
        raise ConfigError(f"{', '.join(given)}: only with --to indexed, indexed-cached or indexed-spans")
    if args.from_ or args.to:
        return _convert(args.words, args.from_, args.to)
    from hanlin.check import check_file

    return _prepare(check_file(args.words[0], args.words[1:]))


def _prepare(recipe: Recipe) -> int:
    from rich.console import Console

    from hanlin.data.report import render_report
    from hanlin.run.assemble import load_data
    from hanlin.run.components import build_components

    components, console = build_components(recipe), Console()
    trained, watched = load_data(recipe, components, "train"), load_data(recipe, components, "valid")
    for name, prepared in (("train", trained), ("eval", watched)):
        if prepared is not None:
            files: Sequence[Path] = recipe.data.eval if name == "eval" and recipe.data.eval else recipe.data.trained
            console.print(render_report(prepared.report, f"data.{name}: {', '.join(map(str, files))}"))
    return 0


def _convert(words: Sequence[str], from_: str | None, to: str | None) -> int:
    if len(words) != 2:
        raise ConfigError(f"--from and --to need two paths, SOURCE and TARGET; found {len(words)}")
    source, target = map(Path, words)
    is_jsonl = target.suffix in (".jsonl", ".json")
    if is_jsonl == (to == "bee"):
        wanted = "FOLDER/NAME (no .jsonl)" if to == "bee" else "a name that ends with .jsonl"
        raise ConfigError(f"{target}: the target of --to {to or 'jsonl'} is {wanted}")
    with written_alone(target if is_jsonl else target.parent):
        print(f"{target}: {_write(source, target, from_):,} rows")
    return 0


def _write(source: Path, target: Path, from_: str | None) -> int:
    from hanlin.data.convert import convert_file, write_records

    if from_ is None or from_ in FORMS:
        return convert_file(source, target)
    return write_records(target, _raw_reader(from_)(source))


def _raw_reader(name: str) -> Callable[[Path], Iterable[Any]]:
    """What reads the raw data set FAMILY:DATA, or DATA if only one family has it.

    Raises: ConfigError.
    """
    from hanlin.models.family import family_names, load_family

    known = {f"{family}:{data}": read for family in family_names() for data, read in load_family(family).raw.items()}
    found = [read for full, read in known.items() if name in (full, full.partition(":")[2])]
    if len(found) != 1:
        problem = "several families have it" if found else "unknown"
        raise ConfigError(f"--from {name}: {problem}; expected one of {', '.join([*FORMS, *known])}")
    return found[0]
