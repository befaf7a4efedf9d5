"""Write the answers of records, from JSON lines to JSON lines.

hanlin generate recipe.yaml --input questions.jsonl --output answers.jsonl
hanlin generate --base FOLDER --record '{"input": "今天天气", "<ans>": ""}' --stream
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._launch import add_launch, num_to_start, on_all_ranks
from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.core.collectives import entered_on_main
from hanlin.core.errors import DataError
from hanlin.core.files import written_alone

if TYPE_CHECKING:
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import GenerateSettings, Recipe

HELP = "write answers: JSON lines in, JSON lines out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    records = parser.add_argument_group("records")
    records.add_argument("--record", action="append", default=[], metavar="JSON", help="a record; may be repeated")
    records.add_argument("--input", metavar="FILE", help="JSON lines; - (default): standard input")
    records.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    records.add_argument(
        "--stream", action="store_true", help="write the answer's text while it is made (no beam search)"
    )
    add_launch(parser, is_alone=True)


def run(args: argparse.Namespace) -> int:
    recipe = recipe_of_model(args)
    if not args.record and args.input in (None, "-") and num_to_start(args, recipe) > 1:
        raise DataError("several processes cannot read standard input; name a file with --input, or give --record")
    return on_all_ranks(args, recipe, lambda: _answer_alone(args, recipe))


def _answer_alone(args: argparse.Namespace, recipe: Recipe) -> int:
    """`_answer`, while no other process writes to --output."""
    if args.output is None:
        return _answer(args, recipe)
    with entered_on_main(written_alone(args.output)):
        return _answer(args, recipe)


def _answer(args: argparse.Namespace, recipe: Recipe) -> int:
    from hanlin.data.expand import records_in
    from hanlin.run.weights import load_engine

    given = _records(args)
    say_remark(recipe)
    engine, options = load_engine(recipe), recipe.generate
    records = records_in(given, engine.processor)
    if args.stream:
        return _stream(engine, records, _streaming(options, args.words))
    answered = engine.generate(records, options, recipe.run.seed)
    if engine.mesh.is_main:
        _write(answered, args.output)
    return 0


def _write(answered: Sequence[Any], target: Path | None) -> None:
    if target is None:
        sys.stdout.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in answered)
        return
    from hanlin.data.sources.jsonl import write_jsonl

    count = write_jsonl(target, answered)
    print(f"{target}: {count:,} records", file=sys.stderr)


def _records(args: argparse.Namespace) -> list[Any]:
    from hanlin.data.sources import open_records
    from hanlin.data.sources.jsonl import parse_row

    if args.record and args.input:
        raise DataError("give --record or --input, not both")
    if args.input and args.input != "-":
        source = open_records(Path(args.input))
        return [source[row] for row in range(len(source))]
    if not args.record and not args.input and sys.stdin.isatty():
        raise DataError("no records; give --record '{...}', --input FILE, or pipe JSON lines into standard input")
    lines = enumerate([text.encode(errors="surrogateescape") for text in args.record] or sys.stdin.buffer, start=1)
    name = "--record" if args.record else "standard input"
    return [_parsed(parse_row, line, f"{name}:{number}") for number, line in lines if line.strip()]


def _parsed(parse: Any, line: bytes, where: str) -> Any:
    try:
        return parse(line.rstrip(b"\n"))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _streaming(options: GenerateSettings, words: Sequence[str]) -> GenerateSettings:
    """Greedy in place of the default beam search, whose text is known at its end only."""
    from hanlin.cli._generate import chosen_settings
    from hanlin.recipe.settings import GENERATE_METHODS

    return GENERATE_METHODS.make({"method": "greedy", **chosen_settings(options, words)})


def _stream(engine: Engine, records: Sequence[Any], options: GenerateSettings) -> int:
    """Print each answer's text as it is made; all ranks must call it, the main one prints."""
    for record in records:
        for piece in chain(engine.stream(record, options), ["\n"]):
            if engine.mesh.is_main:
                print(piece, end="", flush=True)
    return 0
