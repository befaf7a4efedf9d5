"""A model answers a suite: of each question the option that it finds likeliest, on average over its tokens.

Folder: about.json (which weights and questions, asked how), predictions/SUBJECT.jsonl (a line for each question),
metrics.json, and submission.json where the authors keep the answers. A subject that is done is not asked again.
On several ranks the data ranks share the work; the main one alone reads and writes the folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hanlin.core.errors import ConfigError, DataError
from hanlin.core.files import read_json_object, replace_json
from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.data.processor import ContinuesTexts
from hanlin.data.sources.jsonl import JsonlSource, write_jsonl
from hanlin.evaluation.continuations import Context, score_continuations
from hanlin.evaluation.continued_texts import OpenText, continue_texts
from hanlin.evaluation.metrics.text import mean, share
from hanlin.evaluation.results import METRICS, PREDICTIONS
from hanlin.evaluation.run import identity_of_weights
from hanlin.generate.engine import Engine, show_progress
from hanlin.generate.methods.greedy import GreedySettings

from .clue import CLUES, ClueSuite
from .exams import EXAMS, Exam
from .prompts import CONCLUDES, PromptStyle, prompt_of, told_options
from .questions import Subject, SuiteQuestion

__all__ = ["SUITES", "AskedHow", "SuiteScores", "read_suite", "run_suite"]

SUITES: dict[str, Exam | ClueSuite] = {**EXAMS, **CLUES}
ABOUT, SUBMISSION = "about.json", "submission.json"
_THOUGHT_TOKENS = 512
"""Of what the model writes before it answers, as in ChatGLM2's program."""

Predicted = dict[str, Any]
"""A line of predictions."""


@dataclass(frozen=True)
class AskedHow:
    """shots: examples before each question; style: of the prompt; batch_size: rows that are read at once."""

    shots: int
    style: PromptStyle
    batch_size: int


@dataclass(frozen=True)
class SuiteScores:
    """accuracies: of each subject, None where no answer is known; groups: of each category, the mean over its subjects
    or the share of its questions, as the suite has it; overall: the mean over all subjects; by_question: the share of
    all questions.
    """

    subjects: Sequence[Subject]
    accuracies: Mapping[str, float | None]
    groups: Mapping[str, float]
    overall: float | None
    by_question: float | None


def read_suite(name: str, folder: Path, part: str | None, names: Sequence[str], limit: int | None) -> list[Subject]:
    """The subjects of a suite, all or the named ones; limit: of each only so many questions.

    Raises: ConfigError for names that the suite does not have; DataError for its files.
    """
    suite = SUITES[name]
    part = suite.parts[0] if part is None else part
    if part not in suite.parts:
        raise ConfigError(f"--split: {name} has no {part}; known: {', '.join(suite.parts)}")
    if unknown := [one for one in names if one not in suite.subjects]:
        raise ConfigError(f"--subjects: {name} has no {', '.join(unknown)}; known: {', '.join(suite.subjects)}")
    subjects = suite.read(folder, part, list(dict.fromkeys(names)) or list(suite.subjects))
    return [replace(one, questions=one.questions[:limit]) for one in subjects]


def run_suite(
    engine: Engine,
    name: str,
    subjects: Sequence[Subject],
    how: AskedHow,
    folder: Path,
    *,
    network: str = "",
    overwrite: bool = False,
) -> SuiteScores:
    """Ask all questions, and write what was answered.

    network: what decides the answers besides the weights (`Components.identity`).
    Raises: ConfigError for what the suite or the model cannot be asked; DataError where the folder holds other answers.
    """
    if how.style == "reasoned" and not (name in EXAMS and EXAMS[name].is_chinese):
        raise ConfigError(f"--prompt reasoned: asks in Chinese for one of A, B, C, D, which does not suit {name}")
    if short := [one.name for one in subjects if len(one.examples) < how.shots]:
        raise DataError(f"--shots {how.shots}: {', '.join(short[:3])} has not so many examples; give fewer")
    weights, is_main = identity_of_weights(engine), engine.mesh.is_main
    if is_main:
        asked = {"suite": name, "shots": how.shots, "prompt": how.style}
        questions = {one.name: _digest(one) for one in subjects}
        _open(folder, {**asked, "weights": f"{network} {weights} {engine.precision}"}, questions, overwrite)
    rows = {one.name: _answered(engine, one, how, folder / PREDICTIONS / f"{one.name}.jsonl") for one in subjects}
    scores = _scores(subjects, rows, pools=name in EXAMS and EXAMS[name].pools)
    if is_main:
        replace_json(folder / METRICS, _metrics(name, scores))
        if name in EXAMS and scores.overall is None:
            answers = {one: {row["id"]: row["answer"] for row in own} for one, own in rows.items()}
            replace_json(folder / SUBMISSION, answers)
    return scores


def _open(folder: Path, about: Mapping[str, Any], questions: Mapping[str, str], overwrite: bool) -> None:
    """questions: by subject what they were; there may be more subjects than before, and not fewer.

    Raises: DataError.
    """
    path = folder / ABOUT
    known = _known_questions(path, about) if path.is_file() else {}
    is_other = known is None or any(known.get(name, digest) != digest for name, digest in questions.items())
    left_out = [name for name in known or () if name not in questions]
    if is_other and not overwrite:
        raise DataError(
            f"{folder}: holds answers of other weights, or to other questions; choose another --folder, or add "
            "--overwrite"
        )
    if left_out and not overwrite:
        raise DataError(
            f"{folder}: holds answers to {', '.join(left_out[:3])} too, which the scores would lose; name all subjects "
            "that are to be scored together (--subjects), choose another --folder, or add --overwrite"
        )
    if is_other or left_out:
        shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)
        known = {}
    (folder / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    replace_json(path, {**about, "questions": {**(known or {}), **questions}})


def _known_questions(path: Path, about: Mapping[str, Any]) -> dict[str, str] | None:
    """What was asked so far; None where others were asked, or otherwise.

    Raises: DataError.
    """
    found = read_json_object(path, DataError)
    questions = found.pop("questions", None)
    return questions if found == about and isinstance(questions, dict) else None


def _digest(subject: Subject) -> str:
    return hashlib.sha256(repr(subject).encode()).hexdigest()


def _answered(engine: Engine, subject: Subject, how: AskedHow, path: Path) -> list[Predicted]:
    known = _read(path, subject) if engine.mesh.is_main else None
    if (found := engine.mesh.from_main(known)) is not None:
        return found
    rows = _asked(engine, subject, how)
    if engine.mesh.is_main:
        write_jsonl(path, rows)
    return rows


def _read(path: Path, subject: Subject) -> list[Predicted] | None:
    """Raises: DataError for a file that is damaged, or whose lines are no answers to the questions."""
    if not path.is_file():
        return None
    try:
        source = JsonlSource(path)
        rows = [source[number] for number in range(len(source))]
    except DataError as error:
        raise DataError(f"{error}; remove the file, and its questions are asked again") from None
    if len(rows) != len(subject.questions):
        raise DataError(
            f"{path}: has {len(rows):,} answers to {len(subject.questions):,} questions; remove the file, and they are "
            "asked again"
        )
    for number, (row, question) in enumerate(zip(rows, subject.questions, strict=True)):
        if not _is_answer(row, question):
            raise DataError(
                f"{source.where(number)}: is no answer to question {question.id!r:.40}; remove the file, and its "
                "questions are asked again"
            )
    return rows


def _is_answer(row: Predicted, question: SuiteQuestion) -> bool:
    """Whether a line is as `_row` writes it."""
    answer, gold = row.get("answer"), question.gold
    is_right = None if gold is None else answer == gold
    stated = row.get("id"), row.get("gold"), row.get("correct")
    return isinstance(answer, str) and answer in question.options and stated == (question.id, gold, is_right)


def _asked(engine: Engine, subject: Subject, how: AskedHow) -> list[Predicted]:
    continues = isinstance(engine.processor, ContinuesTexts)
    contexts: list[Context] = [
        prompt_of(subject, one, how.shots, how.style, continues=continues) for one in subject.questions
    ]
    thoughts = _thoughts(engine, contexts, how, subject.name) if how.style == "reasoned" else None
    if thoughts is not None:
        contexts = [_concluding(context, thought) for context, thought in zip(contexts, thoughts, strict=True)]
    told = [told_options(one, goes_on=continues and how.style == "text") for one in subject.questions]
    named = [(number, option) for number, options in enumerate(told) for option in options]
    pairs = [(contexts[number], told[number][option]) for number, option in named]
    found = dict(show_progress(score_continuations(engine, pairs, how.batch_size), subject.name, len(pairs)))
    scores: list[dict[str, float]] = [{} for _ in subject.questions]
    for place, (number, option) in enumerate(named):
        scores[number][option] = found[place].log_likelihood / found[place].tokens
    rows = [_row(one, own) for one, own in zip(subject.questions, scores, strict=True)]
    return rows if thoughts is None else [{**row, "thought": one} for row, one in zip(rows, thoughts, strict=True)]


def _thoughts(engine: Engine, contexts: Sequence[Context], how: AskedHow, title: str) -> list[str]:
    options = GreedySettings(max_new_tokens=_THOUGHT_TOKENS)
    written = continue_texts(engine, [OpenText(one, options) for one in contexts], how.batch_size)
    by_number = dict(show_progress(written, title, len(contexts)))
    return [by_number[number] for number in range(len(contexts))]


def _concluding(context: Context, thought: str) -> Conversation:
    assert isinstance(context, Conversation), context
    *before, asked = context.messages
    return Conversation((*before, ChatMessage("user", f"{asked.text}{thought}{CONCLUDES}")))


def _row(question: SuiteQuestion, scores: Mapping[str, float]) -> Predicted:
    answer = max(scores, key=lambda option: scores[option])
    is_right = {} if question.gold is None else {"gold": question.gold, "correct": answer == question.gold}
    return {"id": question.id, "answer": answer, **is_right, "scores": scores}


def _scores(subjects: Sequence[Subject], rows: Mapping[str, Sequence[Predicted]], *, pools: bool) -> SuiteScores:
    right = {name: [row["correct"] for row in own if "correct" in row] for name, own in rows.items()}
    accuracies = {name: share(own) if own else None for name, own in right.items()}
    groups = dict.fromkeys(group for subject in subjects for group in subject.groups)
    known = [value for value in accuracies.values() if value is not None]
    members = {group: [one.name for one in subjects if group in one.groups] for group in groups}
    of_groups = {
        group: [row for one in names for row in right[one]]
        if pools
        else [value for one in names if (value := accuracies[one]) is not None]
        for group, names in members.items()
    }
    everything = [one for own in right.values() for one in own]
    return SuiteScores(
        subjects,
        accuracies,
        {group: mean(values) for group, values in of_groups.items() if values},
        mean(known) if known else None,
        share(everything) if everything else None,
    )


def _metrics(name: str, scores: SuiteScores) -> dict[str, dict[str, float | None]]:
    overall = {"accuracy": scores.overall, "accuracy by question": scores.by_question}
    return {name: {**overall, **scores.groups}, "subjects": dict(scores.accuracies)}


def scores_table(scores: SuiteScores) -> Any:
    """For the terminal: a line for each subject, then the categories."""
    from rich.table import Table

    table = Table("subject", "category", "questions", "accuracy")
    for one in scores.subjects:
        title = one.name if one.title == one.name else f"{one.name} {one.title}"
        table.add_row(title, ", ".join(one.groups), f"{len(one.questions):,}", _shown(scores.accuracies[one.name]))
    table.add_section()
    for group, value in scores.groups.items():
        table.add_row(group, "", "", _shown(value))
    table.add_row("mean of the subjects", "", "", _shown(scores.overall))
    table.add_row("of all questions", "", "", _shown(scores.by_question))
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
