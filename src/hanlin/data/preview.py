"""What a file of rows looks like before anything is done with it: its form, its first rows, their lengths.

Without a model the first rows are shown as what they say, and measured in characters; with one as the samples that it
sees, measured in tokens, with what would be cut, left out or refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.bad_rows import BadRow
from hanlin.data.expand import FileRecords, as_records, first_records
from hanlin.data.forms.content import Content, Conversation, PlainText, Side
from hanlin.data.forms.detection import FORMS, Reading, tell_form
from hanlin.data.pairs import answer_settings
from hanlin.data.prepare import try_rows
from hanlin.data.processor import SampleProcessor, tried
from hanlin.data.sources import BadRowError, Records
from hanlin.data.transform import open_transformed
from hanlin.recipe.settings import DataSettings

__all__ = ["Preview", "ShownPiece", "ShownRow", "preview"]

_COMPARED: tuple[Side, ...] = ("chosen", "rejected")
ShownPiece = tuple[str, str, bool]
"""Who speaks (nothing for a model's sample), the text, and whether it carries loss."""


@dataclass(frozen=True)
class ShownRow:
    """where: file and line; size: tokens, or characters without a model; learned: tokens that carry loss."""

    where: str
    pieces: list[ShownPiece]
    size: int
    learned: int | None = None


@dataclass(frozen=True)
class Preview:
    """num_rows: of the file; looked_at: rows that all that follows is about; read_as: form and why; keys: of the rows,
    and how many have each; unit: of sizes; sizes: p10, p50, p90, p99 and max; longest: file, line and size; fates: what
    happens to rows that are not taken as they are; bad: what would stop a run; notes: what is not read; form: its
    name, None where the rows are the model's own; total: of all sizes; longest_answer: tokens of the longest answer of
    preference rows, with its question.
    """

    path: str
    num_rows: int
    looked_at: int
    read_as: str
    keys: dict[str, int]
    unit: str
    first: list[ShownRow]
    sizes: dict[str, int] = field(default_factory=dict)
    longest: tuple[str, int] | None = None
    fates: list[tuple[str, str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    form: str | None = None
    total: int = 0
    longest_answer: int = 0


def preview(
    path: Path,
    settings: DataSettings,
    processor: SampleProcessor | None,
    tokenizer: Tokenizer | None = None,
    *,
    shown: int,
    most: int,
) -> Preview:
    """The first `most` rows of a file, `shown` of them in full.

    processor, tokenizer: of the model that would read them; None: there is none.
    Raises: DataError when the file cannot be read, or no row as the settings say.
    """
    rows = open_transformed(path, settings)
    looked_at = min(most, len(rows))
    keys = Counter(key for number in range(looked_at) for key in _keys(tried(rows.__getitem__, number)))
    reading = tell_form(rows, processor or NO_MODEL, settings.format)
    facts: dict[str, Any] = {
        "path": str(path), "num_rows": len(rows), "looked_at": looked_at, "keys": dict(keys),
        "form": None if reading.form is None else reading.form.name,
    }  # fmt: skip
    if processor is None:
        return _without_model(rows, reading, facts, shown)
    sides: tuple[Side | None, ...] = (None,)
    if reading.form is FORMS["preference"]:
        sides, settings = _COMPARED, answer_settings(settings, len(_COMPARED))
    records = [as_records(rows, path, settings, processor, side=side) for side in sides]
    sources = {
        side or "": first_records(one, path, processor, looked_at)[0] for side, one in zip(sides, records, strict=True)
    }
    return _with_model(sources, settings, processor, tokenizer, facts, shown)


def _with_model(
    sources: Mapping[str, FileRecords],
    settings: DataSettings,
    processor: SampleProcessor,
    tokenizer: Tokenizer | None,
    facts: Mapping[str, Any],
    shown: int,
) -> Preview:
    """sources: of preference rows by which answer they hold, each with the question; else one."""
    found = [try_rows(one, processor, settings, keep=shown, tokenizer=tokenizer) for one in sources.values()]
    source, counts = next(iter(sources.values())), found[0].counts
    first = [
        _shown_samples(source.where(number), dict(zip(sources, samples, strict=True)), processor)
        for number, samples in _together([one.first for one in found])
    ]
    together = _together([one.lengths for one in found])
    lengths = [(number, sum(sizes)) for number, sizes in together]
    return Preview(
        **facts,
        read_as=source.read_as or "records of the model's own",
        unit="tokens",
        first=first,
        sizes=_quantiles(np.array([size for _, size in lengths])),
        longest=_longest([(source.where(number), size) for number, size in lengths]),
        total=sum(size for _, size in lengths),
        fates=[
            (f"{label} ({side})" if side else label, text)
            for side, one in zip(sources, found, strict=True)
            for label, text in (*one.counts.fates(), *one.counts.unknown_share())
        ],
        bad=list(dict.fromkeys(bad for one in found for bad in one.bad)),
        notes=counts.notes,
        longest_answer=max((max(sizes) for _, sizes in together), default=0) if len(found) > 1 else 0,
    )


def _together(sides: Sequence[Sequence[tuple[int, Any]]]) -> list[tuple[int, tuple[Any, ...]]]:
    """What was found of a row under each side, where all have it; of a single side a row may have several."""
    if len(sides) == 1:
        return [(number, (value,)) for number, value in sides[0]]
    known = [dict(side) for side in sides]
    return [
        (number, tuple(side[number] for side in known)) for number in known[0] if all(number in side for side in known)
    ]


def _shown_samples(where: str, samples: Mapping[str, Sample], processor: SampleProcessor) -> ShownRow:
    """samples: by whose they are."""
    pieces = [
        (name if place == 0 else "", text, is_learned)
        for name, sample in samples.items()
        for place, (text, is_learned) in enumerate(processor.show(sample))
    ]
    size, learned = (sum(getattr(one, name) for one in samples.values()) for name in ("length", "loss_tokens"))
    return ShownRow(where, pieces, size, learned)


class _NoModel:
    """A stand-in where no model is named: no row is a record of its own."""

    learns_all_turns = True

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        return False

    def record_of(self, content: Content) -> Any:
        return content

    def answer_of(self, record: Any) -> str:
        return ""


NO_MODEL: Any = _NoModel()


def _without_model(rows: Records, reading: Reading, facts: Mapping[str, Any], shown: int) -> Preview:
    said, bad, notes = [], [], Counter[str]()
    for number in range(facts["looked_at"]):
        found = tried(_said, rows, number, reading)
        if isinstance(found, DataError):
            bad.append((rows.where(number), found.reason if isinstance(found, BadRowError) else str(found)))
        else:
            pieces, noted = found
            said.append(ShownRow(rows.where(number), pieces, sum(len(text) for _, text, _ in pieces)))
            notes.update(noted)
    if reading.form is not None:
        read_as = str(reading)
    else:
        read_as = _no_form(facts["keys"]) if said or not bad else "no row can be read; see below"
    return Preview(
        **facts,
        read_as=read_as,
        unit="characters",
        first=said[:shown],
        sizes=_quantiles(np.array([row.size for row in said])),
        longest=_longest([(row.where, row.size) for row in said]),
        total=sum(row.size for row in said),
        bad=bad,
        notes=dict(notes),
    )


def _no_form(keys: Iterable[str]) -> str:
    """What to do about rows of no form that is known."""
    named = list(keys)[:2]
    question, answer = named if len(named) == 2 else ("QUESTION", "ANSWER")
    example = f"'data.transform={{prompt: ${question}, response: ${answer}}}'"
    return (
        f"no form that is known: say which columns are the question and the answer, as in {example}, or name the model "
        "whose own records they are with --base or --family"
    )


def _said(rows: Records, number: int, reading: Reading) -> tuple[list[ShownPiece], Sequence[str]]:
    """What a row says, by who says it, and what is to be said of it; of a row of no form its keys and values.

    Raises: DataError.
    """
    row = rows[number]
    if reading.form is None:
        return [(f"{key}", str(value), False) for key, value in row.items()] if isinstance(row, Mapping) else [], ()
    content = reading.content(row)
    return _pieces(content), reading.notes(row, content)


def _pieces(content: Content) -> list[ShownPiece]:
    if isinstance(content, PlainText):
        return [("text", content.text, True)]
    if isinstance(content, Conversation):
        return _turns(content)
    rejected = [(f"rejected {role}", text, False) for role, text, _ in _turns(content.rejected)[-1:]]
    return [*_turns(content.chosen), *rejected]


def _turns(dialogue: Conversation) -> list[ShownPiece]:
    tools = [("tools", ", ".join(map(_tool_name, dialogue.tools)), False)]
    said = [
        (message.role, text, message.role == "assistant" and message.is_learned)
        for message in dialogue.messages
        for text in [
            *([message.text] if message.text else []),
            *(f"{one.name}({one.arguments})" for one in message.calls),
        ]
    ]
    return [*(tools if dialogue.tools else []), *said]


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    return str(function.get("name") if isinstance(function, Mapping) else function)


def _keys(row: Any) -> Sequence[str]:
    return list(row) if isinstance(row, Mapping) else []


def _quantiles(sizes: np.ndarray) -> dict[str, int]:
    if not len(sizes):
        return {}
    shares = {"p10": 10, "p50": 50, "p90": 90, "p99": 99}
    return {name: round(float(np.percentile(sizes, share))) for name, share in shares.items()} | {
        "max": int(sizes.max())
    }


def _longest(sizes: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    return max(sizes, key=lambda one: one[1], default=None)
