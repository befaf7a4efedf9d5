"""Which form the rows of a file have, and the rows as records of a family.

A row that is a record of the family's own is never anything else. All rows of a file have one form, told from its
first row of a form that is known; a row of another one is a bad row. `data.format` overrules what the keys tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hanlin.core.errors import DataError
from hanlin.data.forms import alpaca, messages, preference, prompt_completion, sharegpt, text
from hanlin.data.forms.content import Content, Conversation, PlainText, Preference, Side
from hanlin.data.forms.form import Form, RawRow, kind_of
from hanlin.data.processor import ContinuesTexts, SampleProcessor, TakesForms, tried
from hanlin.data.sources import Records

__all__ = ["FORMS", "InForm", "Reading", "tell_form", "tell_row"]

FORMS: Mapping[str, Form] = {
    module.FORM.name: module.FORM for module in (preference, sharegpt, messages, alpaca, prompt_completion, text)
}
"""By their names in `data.format`."""
AUTO, OWN = "auto", "records"
ONE_LEARNED = "a dialogue of several answers; the last one is learned, the others are read"
_LOOKED_AT = 100
"""Rows of a file from which its form is told."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a file are read. form: None for a family's own records; reason: how that is known; is_asked: the
    rows wait for answers; side: which answer of preference rows is read.
    """

    form: Form | None
    reason: str
    processor: SampleProcessor
    is_asked: bool = False
    is_told: bool = True
    side: Side | None = None

    def __str__(self) -> str:
        return f"{self.title} ({self.reason})" if self.reason else self.title

    @property
    def title(self) -> str:
        return "the model's own records" if self.form is None else self.form.title

    def record(self, row: Any) -> Any:
        """The family's record of a row.

        Raises: DataError.
        """
        return self.noted(row)[0]

    def noted(self, row: Any) -> tuple[Any, Sequence[str]]:
        """The same, and what is to be said of it.

        Raises: DataError.
        """
        if self.is_told and isinstance(self.processor, TakesForms):
            self._refuse_others(row)
        if self.form is None:
            return row, ()
        assert isinstance(self.processor, TakesForms), self.processor
        content = self.content(row)
        return self.processor.record_of(content), self.notes(row, content)

    def content(self, row: Any) -> Content:
        """What a row of a form says.

        Raises: DataError.
        """
        assert self.form is not None, self
        content = self.form.read(_given(row))
        if isinstance(content, Preference) and self.side is not None and self.side != "unrelated":
            return content.side(self.side)
        if isinstance(content, Conversation) and not self.is_asked and not content.is_answered:
            raise DataError("no answer to learn or to compare: there is none behind the last question, or it is empty")
        if isinstance(content, PlainText) and self.is_asked and not isinstance(self.processor, ContinuesTexts):
            raise DataError("a bare text, with which models of this family do not go on; ask a question instead")
        return content

    def notes(self, row: Any, content: Content) -> Sequence[str]:
        """What is to be said of a row of a form: keys that nothing reads, answers that are not learned."""
        assert self.form is not None, self
        assert isinstance(self.processor, TakesForms), self.processor
        is_several = isinstance(content, Conversation) and content.num_answers > 1 and self.side is None
        return [
            *self.form.unread(_given(row)),
            *([ONE_LEARNED] if is_several and not self.processor.learns_all_turns else []),
        ]

    def answered(self, row: Any, record: Any) -> Any:
        """A row with the answer that the family's record has by now, in the row's own form."""
        if self.form is None:
            return record
        assert isinstance(self.processor, TakesForms), self.processor
        return self.form.write(row, self.processor.answer_of(record))

    def of_side(self, side: Side | None, where: str) -> Reading:
        """The reading of one side of preference rows, or of rows that have no sides (None).

        Raises: DataError for the one where the other is needed.
        """
        is_preference = self.form is FORMS["preference"]
        if side is None and is_preference:
            raise DataError(
                f"{where}: read as {self}: two answers to a question, one of them preferred. Training with "
                "train.objective=dpo or kto learns from them, and evaluate.tasks=[preference] compares them (`hanlin "
                "recipes` names recipes); to learn or to score the chosen answers alone, map the keys of your rows: "
                "data.transform={prompt: $prompt, completion: $chosen}"
            )
        if side is not None and not is_preference:
            raise DataError(
                f"{where}: read as {self}, but preference rows are compared (train.objective, evaluate.tasks): "
                'objects with a question, a "chosen" and a "rejected" answer'
            )
        return replace(self, side=side)

    def _refuse_others(self, row: Any) -> None:
        """Raises: DataError for a row of another form than the file's first one."""
        found = _told(row, self.processor, self.is_asked)
        if found is None or found == (self.form or OWN):
            return
        other = "a record of the model's own" if found == OWN else f"{found.title} ({', '.join(found.signs(row))})"
        raise DataError(
            f"this row is {other}, but the first rows of its file are {self.title}; put each form into a file of its "
            "own, or say with data.format how all of them are read"
        )


@dataclass(frozen=True)
class InForm:
    """Rows of a form as a family's records."""

    source: Records
    reading: Reading

    @property
    def fingerprint(self) -> str:
        form, side = self.reading.form, self.reading.side
        if form is None:
            return self.source.fingerprint
        return f"{self.source.fingerprint} as {form.name}{f' {side}' if side else ''}"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Any:
        return self.noted(row)[0]

    def where(self, row: int) -> str:
        return self.source.where(row)

    def noted(self, row: int) -> tuple[Any, Sequence[str]]:
        """See `Reading.noted`."""
        if self.reading.side == "unrelated":
            return self._unrelated(row), ()
        return self.reading.noted(self.source[row])

    def _unrelated(self, row: int) -> Any:
        """The record of a row's question with the answer of the next row that has another one.

        Raises: DataError.
        """
        assert isinstance(self.reading.processor, TakesForms), self.reading
        asked = self.reading.content(self.source[row])
        assert isinstance(asked, Preference), self.reading
        for step in range(1, min(len(self), _LOOKED_AT)):
            other = tried(self.reading.content, tried(self.source.__getitem__, (row + step) % len(self)))
            if isinstance(other, Preference) and asked.is_unrelated(other):
                return self.reading.processor.record_of(asked.side("unrelated", other))
        raise DataError("no row behind it has another answer, with which its own are to be compared")

    def answered(self, row: int, record: Any) -> Any:
        """See `Reading.answered`."""
        return record if self.reading.form is None else self.reading.answered(self.source[row], record)


def tell_form(rows: Records, processor: SampleProcessor, format: str = AUTO, *, is_asked: bool = False) -> Reading:
    """How the rows of a file are read; format: as in `data.format`; is_asked: the rows wait for answers.

    Raises: DataError for a format that the family does not take, and for a row that may be of several forms.
    """
    if (stated := _stated(processor, format, is_asked)) is not None:
        return stated
    for number in range(min(len(rows), _LOOKED_AT)):
        row = tried(rows.__getitem__, number)
        if not isinstance(row, Mapping):
            continue  # a bad row, which is told where it is read
        form = tried(_told, row, processor, is_asked)
        if isinstance(form, DataError):
            raise DataError(f"{rows.where(number)}: {form}")
        if form is not None:
            return _reading(form, row, processor, is_asked)
    return Reading(None, "", processor, is_asked)


def tell_row(row: Any, processor: SampleProcessor, format: str = AUTO, *, is_asked: bool = True) -> Reading:
    """How one row is read, be it that it waits for an answer or that it has one.

    Raises: as `tell_form`.
    """
    if (stated := _stated(processor, format, is_asked)) is not None:
        return stated
    form = _told(row, processor, is_asked)
    return Reading(None, "", processor, is_asked) if form is None else _reading(form, row, processor, is_asked)


def _reading(form: Form | Literal["records"], row: RawRow, processor: SampleProcessor, is_asked: bool) -> Reading:
    if form == OWN:
        return Reading(None, "", processor, is_asked)
    return Reading(form, f"told from {', '.join(form.signs(_given(row)))}", processor, is_asked)


def _stated(processor: SampleProcessor, format: str, is_asked: bool) -> Reading | None:
    """What `data.format` says; None where the keys of the rows tell.

    Raises: DataError.
    """
    if format == OWN or (format == AUTO and not isinstance(processor, TakesForms)):
        return Reading(None, "", processor, is_asked, is_told=False)
    if format == AUTO:
        return None
    if not isinstance(processor, TakesForms):
        raise DataError(f"data.format is {format}, but this model reads records of its own alone; remove data.format")
    return Reading(FORMS[format], "as data.format says", processor, is_asked, is_told=False)


def _told(row: Any, processor: SampleProcessor, is_asked: bool) -> Form | Literal["records"] | None:
    """The form that a row's keys tell, or that it is the family's own; None where they tell nothing.

    is_asked: a row that has no answer counts too, behind what has one.
    Raises: DataError where several forms fit alike.
    """
    assert isinstance(processor, TakesForms), processor
    if not isinstance(row, Mapping):
        return None
    given = _given(row)
    for fit in ("whole", "question") if is_asked else ("whole",):
        if processor.owns(given, whole=fit == "whole"):
            return OWN
        found = [form for form in FORMS.values() if form.fits(given) == fit]
        if len(found) > 1 and found[0] is not FORMS["preference"]:
            raise DataError(_ambiguous(given, *found[:2]))
        if found:
            return found[0]
    return None


def _ambiguous(row: RawRow, one: Form, other: Form) -> str:
    return (
        f"a row may be {one.title} ({', '.join(one.signs(row))}) or {other.title} ({', '.join(other.signs(row))}); say "
        f"which with data.format={one.name} or data.format={other.name}"
    )


def _given(row: Any) -> RawRow:
    """A row without the keys that hold nothing: a table has them in every row.

    Raises: DataError for what is no row.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"expected an object, found {kind_of(row)}")
    return {key: value for key, value in row.items() if value is not None}
