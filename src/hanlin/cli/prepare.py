"""Tokenise a recipe's data into the cache and show what they look like, or bring files into another form.

hanlin prepare recipe.yaml                                   data report; training will start at once
hanlin prepare --from ccpm raw/train.jsonl data/train.jsonl  raw CCPM rows -> records
hanlin prepare --from ccpm-text raw.jsonl data.jsonl         the same, with the right choice's text as the answer
hanlin prepare --from cpm1:chid raw/train.json train.jsonl   a data set of CPM-1's originals -> records
hanlin prepare --from bee bee_data/train train.jsonl         the original binary form -> JSON lines
hanlin prepare --to bee train.jsonl bee_data/train           and back: the folder bee_data/train is the data set
hanlin prepare --to arrow recipe.yaml FOLDER KEY=VALUE       a recipe's rows as ids, in ChatGLM2's preprocessed form
hanlin prepare --from ccpm --to bee raw/ bee_data/           all files of a folder, each into a place of its own name

Token corpora for pretraining, PREFIX.bin and PREFIX.idx in Megatron's layout:
hanlin prepare --to indexed texts/ more.parquet PREFIX --vocab V    one document a line or row; a stopped job goes on
hanlin prepare --to indexed-spans texts/ PREFIX --vocab V           spans taken out, in the three files of T5
hanlin prepare --from indexed --to indexed A B PREFIX --shuffle 1   merged and shuffled
hanlin prepare --from indexed PREFIX back.jsonl --vocab V           read back
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hanlin.cli._corpus import INDEXED, add_corpus_options, corpus_options, prepare_corpus
from hanlin.cli._say import tell
from hanlin.cli._targets import add_overwrite, new_target
from hanlin.cli._trust import add_trust
from hanlin.core.errors import ConfigError
from hanlin.core.files import written_alone

if TYPE_CHECKING:
    from hanlin.data.convert import MadeRow
    from hanlin.data.report import DataReport
    from hanlin.recipe.settings import Recipe

FORMS = ("jsonl", "bee", "arrow", "indexed")

HELP = "tokenise data and report on them; bring raw files into another form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="RECIPE KEY=VALUE | SOURCE TARGET")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="{" + ",".join(FORMS) + ",DATA}",
        help="the form of SOURCE; DATA: a raw data set of a family's originals (FAMILY:DATA where several have it)",
    )
    parser.add_argument("--to", choices=("jsonl", "bee", "arrow", *INDEXED), help="the form of TARGET (default: jsonl)")
    parser.add_argument(
        "--bad-rows", choices=("error", "drop"), help="of SOURCE: list them and stop (default), or leave them out"
    )
    add_overwrite(parser)
    add_corpus_options(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    if "" in args.words:
        raise ConfigError("an empty name; name a file or a folder (. is the current one)")
    if args.from_ == "indexed" or args.to in INDEXED:
        return prepare_corpus(args)
    if given := corpus_options(args):
        raise ConfigError(f"{', '.join(given)}: only with --to indexed, indexed-cached or indexed-spans")
    if args.overwrite and (args.to == "arrow" or not (args.from_ or args.to)):
        raise ConfigError("--overwrite: only for files of rows, with --from or --to jsonl")
    if args.to == "arrow":
        return _store(args.words)
    if args.from_ or args.to:
        return _convert(args)
    if args.bad_rows:
        raise ConfigError("--bad-rows: only with --from or --to; a recipe says it with data.bad_rows")
    from hanlin.checking import check_file

    return _prepare(check_file(args.words[0], args.words[1:]))


def _prepare(recipe: Recipe) -> int:
    from hanlin.api.runs import prepare_recipe
    from hanlin.core.terminal import screen
    from hanlin.data.report import render_report

    console = screen()
    for name, report in prepare_recipe(recipe).items():
        files: Sequence[Path] = recipe.data.eval if name == "eval" and recipe.data.eval else recipe.data.trained
        console.print(render_report(report, f"data.{name}: {', '.join(map(str, files))}"))
    return 0


def _store(words: Sequence[str]) -> int:
    """Write the samples of data.train and data.eval as folders of rows of ids."""
    from hanlin.checking import check_file
    from hanlin.data.prepare import Prepared
    from hanlin.data.processor import StoresRows
    from hanlin.data.sources.arrow_writing import write_arrow
    from hanlin.run.assemble import load_data
    from hanlin.run.components import build_components
    from hanlin.training.objective import find_objective

    paths = [word for word in words if "=" not in word]
    if len(paths) != 2:
        raise ConfigError(f"--to arrow needs a recipe and a folder to write; found {' '.join(paths) or 'neither'}")
    recipe = check_file(paths[0], [word for word in words if "=" in word])
    components = build_components(recipe)
    processor = components.processor
    has_records = recipe.data.split is None and recipe.data.mixture is None
    has_records &= not find_objective(recipe.train.objective).answers
    if not isinstance(processor, StoresRows) or not has_records:
        raise ConfigError(
            f"--to arrow: {recipe.model.family} keeps no rows of ids of these data; train on them as they are"
        )
    parts = (
        (load_data(recipe, components, "train"), "train_datasets"),
        (load_data(recipe, components, "valid"), "validation_datasets"),
    )
    for prepared, name in parts:
        if isinstance(prepared, Prepared):
            target = Path(paths[1]) / name
            rows = (processor.stored_row(prepared.record(number)) for number in range(len(prepared)))
            tell(f"{target}: {write_arrow(target, rows):,} rows{_left_out(prepared.report)}")
    return 0


def _left_out(report: DataReport) -> str:
    return f", {report.dropped:,} left out" if report.dropped else ""


def _convert(args: argparse.Namespace) -> int:
    from hanlin.data.convert import convert_rows, is_jsonl

    words, to = args.words, args.to
    bad_rows: Literal["error", "drop"] = args.bad_rows or "error"
    if len(words) != 2:
        raise ConfigError(f"--from and --to need two paths, SOURCE and TARGET; found {len(words)}")
    source, target = map(Path, words)
    read, pairs = _reader(args.from_), _pairs(source, target, to or "jsonl")
    for _, written in pairs:
        if is_jsonl(written):
            new_target(written, overwrite=args.overwrite)
        elif args.overwrite:
            raise ConfigError(f"--overwrite: only for files of rows; remove the data set {written} yourself")
    for one, written in pairs:
        with written_alone(written.parent if to == "bee" else written):  # all files of a data set share a list of them
            tell(f"{written}: {convert_rows(read(one), written, bad_rows)}")
    return 0


def _pairs(source: Path, target: Path, to: str) -> list[tuple[Path, Path]]:
    """Which file or data set becomes which; those of a folder keep their names.

    Raises: ConfigError.
    """
    from hanlin.data.convert import is_jsonl
    from hanlin.data.sources.opening import is_data_folder
    from hanlin.data.sources.several import has_data_name, is_pattern, matches
    from hanlin.models.common.raw_rows import is_beside

    is_folder = is_pattern(source) or (source.is_dir() and not is_data_folder(source))
    if is_jsonl(target) == (is_folder or to == "bee"):
        wanted = "a folder" if is_folder or to == "bee" else "a name that ends with .jsonl"
        raise ConfigError(f"{target}: the target of --to {to} is {wanted}")
    if not is_folder:
        return [(source, target)]
    found = matches(source) if is_pattern(source) else sorted(source.iterdir())
    files = [file for file in found if has_data_name(file) and not is_beside(file)]
    names = [file.name.partition(".")[0] for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{source}: several files are named {twice[0]}; rename them, or convert them one by one")
    if not files:
        raise ConfigError(f"{source}: no data set, and no files in it that hold rows, such as .jsonl, .csv or .parquet")
    return [
        (file, target / (name if to == "bee" else f"{name}.jsonl")) for file, name in zip(files, names, strict=True)
    ]


def _reader(from_: str | None) -> Callable[[Path], Iterable[MadeRow]]:
    from hanlin.data.convert import rows_of

    return rows_of if from_ is None or from_ in FORMS else _raw_reader(from_)


def _raw_reader(name: str) -> Callable[[Path], Iterable[MadeRow]]:
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
