"""Write the answers of records, from any file of rows to JSON lines.

hanlin generate recipe.yaml --input questions.jsonl --output answers.jsonl
hanlin generate run --input questions.jsonl --output answers.jsonl data.bad_rows=drop
my_program | hanlin generate run | another_program
hanlin generate --url http://127.0.0.1:8000 --input questions.jsonl --output answers.jsonl     (a running server)
hanlin generate --base FOLDER --record '{"input": "今天天气", "<ans>": ""}' --stream
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._answers import identity_of, in_order, is_unfinished, open_output, ready_lines, text_output
from hanlin.cli._launch import add_launch, num_to_start, on_all_ranks
from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.cli._remote import add_server, server_of
from hanlin.cli._say import say
from hanlin.cli._targets import add_overwrite, sole_target
from hanlin.core.collectives import entered_on_main
from hanlin.core.errors import DataError
from hanlin.core.files import check_target

if TYPE_CHECKING:
    from hanlin.api.dialogue import AskedRow
    from hanlin.data.expand import FileRecords
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import DataSettings, GenerateSettings, Recipe
    from hanlin.run.components import Components

BATCHES_AHEAD = 8
"""That are sorted by length together, and so the most that a killed command answers anew."""

HELP = "write answers: rows in, JSON lines out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_server(parser)
    records = parser.add_argument_group("records")
    records.add_argument("--record", action="append", default=[], metavar="JSON", help="a record; may be repeated")
    records.add_argument(
        "--input", metavar="FILE", help="rows, as data.train takes them; - (default): JSON lines from standard input"
    )
    records.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: standard output; after a kill the same command goes on with it",
    )
    records.add_argument(
        "--stream", action="store_true", help="write the answer's text while it is made (no beam search)"
    )
    add_overwrite(records)
    add_launch(parser, is_alone=True)


def run(args: argparse.Namespace) -> int:
    if (server := server_of(args)) is not None:
        from hanlin.cli._remote_rows import generate_remotely

        return generate_remotely(args, server)
    recipe = recipe_of_model(args)
    if not args.record and args.input in (None, "-") and num_to_start(args, recipe) > 1:
        raise DataError("several processes cannot read standard input; name a file with --input, or give --record")
    from hanlin.run.memory import answering_memory

    def work() -> int:
        with answering_memory(recipe):
            return _answer_alone(args, recipe)

    return on_all_ranks(args, recipe, work)


def _answer_alone(args: argparse.Namespace, recipe: Recipe) -> int:
    """`_answer`, while no other process writes to --output."""
    if args.output is None or (args.output.exists() and not args.output.is_file()):
        return _answer(args, recipe)
    may_write = args.overwrite or (args.input not in (None, "-") and not args.stream and is_unfinished(args.output))
    with entered_on_main(sole_target(args.output, overwrite=may_write)):
        return _answer(args, recipe)


def _answer(args: argparse.Namespace, recipe: Recipe) -> int:
    from hanlin.api.generation import streaming
    from hanlin.run.components import build_components
    from hanlin.run.precision import with_precision
    from hanlin.run.weights import load_engine

    if args.record and args.input:
        raise DataError("give --record or --input, not both")
    if args.output is not None:
        check_target(args.output)
    components = with_precision(build_components(recipe))
    given = _rows_of_file(args.input, components) if args.input not in (None, "-") else None
    lines = _lines(args, recipe) if given is None else ()
    name = "--record" if args.record else "standard input"
    say_remark(recipe)
    engine = load_engine(recipe, components)
    engine.prepack_weights(is_alone=args.stream)
    if args.stream:
        groups = _checked(lines, components, name)
        records = ([one.record for one in asked] for asked in groups) if given is None else (given.records,)
        options = streaming(recipe.generate, args.words)
        return _stream(engine, chain.from_iterable(records), options, args.output)
    if given is not None:
        return _answer_file(engine, components, given, args.output, overwrite=args.overwrite)
    return _answer_lines(engine, components, _checked(lines, components, name), args.output)


# --- a file: checked whole before the weights are read, gone on with after a kill ---


@dataclass(frozen=True)
class _Rows:
    """The records of a file that can be asked, and the number of each in the file."""

    source: FileRecords
    records: Sequence[Any]
    numbers: Sequence[int]

    def answered(self, place: int, record: Any) -> Any:
        """A row of the file with the answer that its record has by now."""
        return self.source.answered(self.numbers[place], record)


def _rows_of_file(path: str, components: Components) -> _Rows:
    """Raises: DataError listing the rows that cannot be asked, unless data.bad_rows drops them."""
    from hanlin.data.bad_rows import list_bad_rows, usable_records
    from hanlin.data.expand import open_part

    settings = _settings(components)
    source = open_part(Path(path), settings, components.processor, is_asked=True)
    usable = usable_records([source], lambda record: _check_record(record, components), settings.bad_rows)
    if left_out := [*source.left_out, *usable.bad]:
        say(list_bad_rows(left_out, f"{len(left_out):,} rows are left out."))
    return _Rows(source, usable.records, [number for _, number in usable.places])


def _settings(components: Components) -> DataSettings:
    """Those of the rows here; transform and format belong to the training data."""
    return components.recipe.data.model_copy(update={"transform": {}, "format": "auto"})


def _check_record(record: Any, components: Components) -> None:
    """Raises: DataError."""
    from hanlin.generate.prompts import make_prompt

    longest = getattr(components.config, "max_length", None)
    try:
        make_prompt(components.processor, record, components.recipe.generate, longest)
    except DataError as error:
        if components.recipe.data.transform:
            raise DataError(f"{error} (the rows here are records as they are, without data.transform)") from None
        raise


def _answer_file(engine: Engine, components: Components, rows: _Rows, target: Path | None, *, overwrite: bool) -> int:
    from hanlin.generate.engine import show_progress

    recipe, is_main = components.recipe, engine.mesh.is_main
    identity = identity_of(components, rows.source.fingerprint)
    with open_output(target if is_main else None, identity, overwrite=overwrite) as output:
        done = engine.mesh.from_main(output.num_done)
        if done and is_main:
            say(f"{target}: going on behind the {done:,} answers that are there")
        wanted = range(done, len(rows.records))
        numbered = ((number, rows.records[number]) for number in wanted)
        answers = engine.answers(numbered, recipe.generate, recipe.run.seed, batches_ahead=BATCHES_AHEAD)
        finished = in_order(show_progress(answers, "generate", len(wanted)), wanted)
        for number, record in zip(wanted, finished, strict=True):
            if is_main:
                output.write(rows.answered(number, record))
        if is_main:
            output.finish(len(rows.records))
    return 0


# --- lines: answered as they come ---

_Lines = Iterable[Sequence[tuple[int, bytes]]]


def _lines(args: argparse.Namespace, recipe: Recipe) -> _Lines:
    if args.record:
        return [list(enumerate((text.encode(errors="surrogateescape") for text in args.record), start=1))]
    if args.input is None and sys.stdin.isatty():
        raise DataError("no records; give --record '{...}', --input FILE, or pipe JSON lines into standard input")
    return ready_lines(sys.stdin.buffer, recipe.generate.batch_size)


def _checked(groups: _Lines, components: Components, name: str) -> Iterator[list[AskedRow]]:
    """What is asked in each group of lines, each in a form of its own; name: where they come from.

    Raises: DataError for the first bad line, after those before it, unless data.bad_rows drops them.
    """
    for lines in groups:
        records: list[AskedRow] = []
        for number, line in lines:
            try:
                found = _read_line(line, components)
                for one in found:
                    _check_record(one.record, components)
            except (ValueError, DataError) as error:
                bad = DataError(f"{name}:{number}: {error}")
                if components.recipe.data.bad_rows == "error":
                    yield records
                    raise bad from None
                say(f"left out: {bad}")
                continue
            records += found
        yield records


def _read_line(line: bytes, components: Components) -> list[AskedRow]:
    """Raises: DataError, ValueError."""
    from hanlin.api.dialogue import AskedRow
    from hanlin.data.expand import records_in
    from hanlin.data.forms.detection import tell_row
    from hanlin.data.sources.jsonl import parse_row

    row = parse_row(line)
    reading = tell_row(row, components.processor)
    return [AskedRow(record, row, reading) for record in records_in([reading.record(row)], components.processor)]


def _answer_lines(engine: Engine, components: Components, groups: Iterable[list[AskedRow]], target: Path | None) -> int:
    recipe, count = components.recipe, 0
    with open_output(target if engine.mesh.is_main else None, None) as output:
        for asked in groups:
            wanted = range(count, count + len(asked))
            numbered = zip(wanted, (one.record for one in asked), strict=True)
            answers = in_order(engine.answers(numbered, recipe.generate, recipe.run.seed), wanted)
            for one, record in zip(asked, answers, strict=True):
                if engine.mesh.is_main:
                    output.write(one.answered(record, engine.processor))
            count += len(asked)
        output.finish(count)
    return 0


def _stream(engine: Engine, records: Iterable[Any], options: GenerateSettings, target: Path | None) -> int:
    """Write each answer's text as it is made; all ranks must call it, the main one writes."""
    with text_output(target if engine.mesh.is_main else None) as output:
        for record in records:
            for piece in chain(engine.stream(record, options), ["\n"]):
                if engine.mesh.is_main:
                    print(piece, end="", flush=True, file=output)
    return 0
