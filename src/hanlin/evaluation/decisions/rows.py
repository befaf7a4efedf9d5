"""Rows of a file that are decided: an input with questions, or a record of the family's own with options or labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hanlin.core.errors import DataError
from hanlin.evaluation.scorable import only_answer
from hanlin.models.family import PredictsLabels, Processor

from .answers import answer_of, choice_among
from .asking import Poll, poll_of_question, poll_of_record
from .inputs import read_input
from .questions import ChoiceQuestion, PredicateQuestion, Question, read_questions

__all__ = ["DECISIONS", "GOLD", "INPUT", "QUESTIONS", "AskedQuestions", "golds_of", "read_row"]

INPUT, QUESTIONS, DECISIONS, GOLD = "input", "questions", "decisions", "gold"
"""Keys of a row: what is asked about, what is asked, what is answered, and the right answers."""


@dataclass(frozen=True)
class AskedQuestions:
    """What a row asks. questions: None: its own record is the one question."""

    row: Mapping[str, Any]
    questions: tuple[Question, ...] | None
    polls: tuple[Poll, ...]

    def answers(self, probabilities: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """In the order of the questions; probabilities: of the options of each poll."""
        if self.questions is None:
            [chances], [poll] = probabilities, self.polls
            return [{"type": "choice", "name": None, **choice_among(poll.names, chances)}]
        return [answer_of(one, own) for one, own in zip(self.questions, probabilities, strict=True)]


def read_row(
    processor: Processor, row: Any, max_length: int | None, questions: Sequence[Question] | None = None
) -> AskedQuestions:
    """What a row asks; questions: of all rows, which then hold inputs.

    Raises: DataError.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"expected an object, found {row!r:.40}")
    if questions is None and QUESTIONS not in row:
        return AskedQuestions(row, None, (poll_of_record(processor, row, max_length),))
    if questions is not None and row.get(QUESTIONS) is not None:
        raise DataError(f'"{QUESTIONS}": the row has its own, beside those that are given for all; keep one of them')
    if INPUT not in row:
        raise DataError(f'no "{INPUT}" (the row has: {", ".join(map(str, row)) or "none"})')
    asked = tuple(questions) if questions is not None else read_questions(row[QUESTIONS])
    text, polls = read_input(row[INPUT]), []
    for number, question in enumerate(asked):
        try:
            polls.append(poll_of_question(processor, question, text, max_length))
        except DataError as error:
            raise DataError(f"{QUESTIONS}.{number}: {error}") from None
    return AskedQuestions(row, asked, tuple(polls))


def golds_of(processor: Processor, asked: AskedQuestions) -> list[int]:
    """The number of the right option of each poll, as the row says it: under "gold", or as the record's own answer.

    Raises: DataError.
    """
    if asked.questions is None:
        names = asked.polls[0].names
        if isinstance(processor, PredictsLabels):
            return [processor.targets(asked.row).index(1)]
        if (answer := only_answer(processor, asked.row)) not in names:
            raise DataError(f"its answer {answer!r:.40} is none of its options {', '.join(names):.80}")
        return [names.index(answer)]
    given = asked.row.get(GOLD)
    values = given if isinstance(given, list) else [given]
    if GOLD not in asked.row or len(values) != len(asked.questions):
        raise DataError(f'"{GOLD}": expected the right answer to each of the {len(asked.questions)} questions')
    return [_gold(*one) for one in zip(asked.questions, values, asked.polls, strict=True)]


def _gold(question: Question, value: Any, poll: Poll) -> int:
    """Raises: DataError for what is no answer to the question."""
    if isinstance(question, PredicateQuestion) and len(poll.names) > 2:
        raise DataError("a predicate about one of several labels has no single other answer; calibrate by a choice")
    if isinstance(question, PredicateQuestion):
        options: list[Any] = [True, False]
    elif isinstance(question, ChoiceQuestion):
        options = [one.value for one in question.choices]
    else:
        options = [level.label for level in question.levels]
    found = [place for place, one in enumerate(options) if one == value and type(one) is type(value)]
    # A table has texts alone.
    found = found or [place for place, one in enumerate(options) if isinstance(one, bool) and value == _named(one)]
    if not found:
        raise DataError(f'"{GOLD}": {value!r:.40} is none of {", ".join(map(_named, options)):.80}')
    return found[0]


def _named(option: Any) -> str:
    """As a row has it."""
    return str(option).lower() if isinstance(option, bool) else str(option)
