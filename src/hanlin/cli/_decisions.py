"""What `hanlin decide` and `hanlin calibrate` have in common: rows, and the questions that are asked of all of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._say import say
from hanlin.core.errors import DataError

if TYPE_CHECKING:
    from hanlin.evaluation.decisions.questions import Question
    from hanlin.evaluation.decisions.rows import AskedQuestions
    from hanlin.run.components import Components

__all__ = ["DecisionRows", "add_rows", "open_decision_rows"]


def add_rows(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("rows")
    group.add_argument("--input", type=Path, required=True, metavar="FILE", help="rows: JSON lines, CSV, Parquet, ...")
    group.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="JSON",
        help="asked of the column `input` of every row; may be repeated",
    )
    group.add_argument("--questions", type=Path, metavar="FILE.json", help="a list of such questions")
    return group


@dataclass(frozen=True)
class DecisionRows:
    """The rows of a file that can be asked. fingerprint: of the rows, and of the questions for all of them."""

    rows: Sequence[Any]
    questions: tuple[Question, ...] | None
    fingerprint: str
    components: Components

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, begin: int = 0) -> Iterator[AskedQuestions]:
        """Each row from number `begin` as it is asked."""
        return map(partial(_read, self.components, self.questions), self.rows[begin:])


def open_decision_rows(args: argparse.Namespace, components: Components, *, with_gold: bool = False) -> DecisionRows:
    """Every row is tried before the weights are read.

    Raises: DataError listing the rows that cannot be asked (with_gold: or have no right answer), unless data.bad_rows
    drops them.
    """
    from hanlin.data.bad_rows import list_bad_rows, usable_records
    from hanlin.evaluation.decisions.rows import golds_of

    questions = _questions(args)

    def check(row: Any) -> None:
        asked = _read(components, questions, row)
        if with_gold:
            golds_of(components.processor, asked)

    source = _source(args.input, components, questions is not None)
    usable = usable_records([source], check, components.recipe.data.bad_rows)
    if usable.bad:
        say(list_bad_rows(usable.bad, f"{len(usable.bad):,} rows are left out."))
    return DecisionRows(usable.records, questions, f"{source.fingerprint} {questions}", components)


def _source(path: Path, components: Components, are_inputs: bool) -> Any:
    """The rows of a file: as they lie there where they hold inputs, else as records of the family."""
    from hanlin.data.expand import open_part
    from hanlin.data.processor import tried
    from hanlin.data.transform import open_transformed
    from hanlin.evaluation.decisions.rows import QUESTIONS

    settings = components.recipe.data.model_copy(update={"transform": {}, "format": "records"})
    rows = open_transformed(path, settings)
    first = tried(rows.__getitem__, 0) if len(rows) else None
    if are_inputs or (isinstance(first, dict) and QUESTIONS in first):
        return rows
    return open_part(path, settings, components.processor, is_asked=True)


def _read(components: Components, questions: tuple[Question, ...] | None, row: Any) -> AskedQuestions:
    from hanlin.evaluation.decisions.rows import read_row

    return read_row(components.processor, row, getattr(components.config, "max_length", None), questions)


def _questions(args: argparse.Namespace) -> tuple[Question, ...] | None:
    """Those for all rows.

    Raises: DataError.
    """
    from hanlin.core.files import read_json
    from hanlin.core.json_text import parse_json
    from hanlin.evaluation.decisions.questions import read_questions

    if args.question and args.questions:
        raise DataError("give --question or --questions, not both")
    if args.questions:
        values = read_json(args.questions, DataError, holds="a list of questions")
        return read_questions(values if isinstance(values, list) else [values])
    if not args.question:
        return None
    try:
        return read_questions([parse_json(text) for text in args.question])
    except ValueError as error:
        raise DataError(f"--question: this is no JSON: {error}") from None
