"""The marks in a record: those that are no text, those that were probably meant, and those that an answer may hold.

A mark is `<name>` or `<name_number>`. `<mask>`, `<option>`, `<sep>` and what else a vocabulary has are for texts. The
marks of `CONTROL` are for the program alone, which writes them around texts: in one, they would end it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hanlin.core.errors import DataError

from .answers import ANSWER, options_of
from .record import Path, Segment
from .tokenizer import CpmBeeTokenizer

CONTROL = ("<pad>", "<unk>", "<s>", "</s>", "<root>", "<ans>", "<eod>")
"""Marks that no text may hold, bare or with a number."""

_IN_TEXTS = ("mask", "option", "sep")  # what a misspelt mark can have been meant to be
_NUMBERED = re.compile(r"<([^<>_]+)_\d+>")
_NAME = re.compile(r"\s*(.*?)[\s_-]*(\d*)\s*", re.DOTALL)
_WIDE = re.compile(r"＜([^＜＞<>]{1,20})＞")
_CLOSE, _CLOSE_WITH_NUMBER = 0.75, 0.5


def check_control_marks(parts: Iterable[Segment], tokenizer: CpmBeeTokenizer) -> None:
    """Whether texts and keys are without control marks; "<ans>" is the key of the answer.

    Raises: DataError naming the key and the mark.
    """
    for part in parts:
        if "<" not in part.text or (part.path in ((), (ANSWER,)) and part.role == "key"):
            continue
        for mark in tokenizer.marks_in(part.text):
            if tokenizer.kind(mark) in CONTROL:
                raise DataError(
                    f'{".".join(part.path)}: holds the control mark {mark}; write it as text, "<{mark}", or allow such '
                    "marks with data.options.control_marks"
                )


def misspelt_marks(parts: Iterable[Segment], tokenizer: CpmBeeTokenizer) -> list[str]:
    """What was probably meant to be a mark, and is read as text, or as a mark with another name."""
    found: dict[str, str] = {}
    for part in parts:
        for name in [*_WIDE.findall(part.text), *(mark[1:-1] for mark in tokenizer.marks_in(part.text))]:
            written = f"<{name}>" if f"<{name}>" in part.text else f"＜{name}＞"
            if (meant := _meant(name)) is not None and meant != written:
                found[written] = meant
    return [f"{written} is not read as the mark {meant}; did you mean that?" for written, meant in found.items()]


def check_answers(record: Mapping[str, Any], parts: Sequence[Segment], tokenizer: CpmBeeTokenizer) -> None:
    """Whether each answer can be given: by the options and the numbered marks that the record has.

    Raises: DataError.
    """
    known = _numbered_marks((part.text for part in parts if part.role != "answer"), tokenizer)
    options = options_of(record)
    for part in parts:
        if part.role != "answer":
            continue
        marks = _numbered_marks([part.text], tokenizer)
        where = ".".join(part.path)
        if missing := [mark for mark in marks if mark not in known]:
            raise DataError(f"{where}: the answer names {missing[0]}, which stands nowhere else in the record")
        is_option = part.text in options or part.text in options.values() or any(mark in options for mark in marks)
        if options and part.path == (ANSWER,) and not is_option:
            raise DataError(f"{where}: {part.text!r:.60} is none of the options {', '.join(options)}, by name or text")


def check_blanks(parts: Sequence[Segment], paths: Sequence[Path], tokenizer: CpmBeeTokenizer) -> None:
    """Whether answers that are named by blanks, {"<mask_0>": ...}, fit those of the texts.

    Raises: DataError.
    """
    keys = list(dict.fromkeys(key for path in paths for key in path[1:] if tokenizer.kind(key) == "<mask>"))
    if not keys:
        return
    texts = (part.text for part in parts if part.path[:1] != (ANSWER,))
    blanks = [mark for mark in _numbered_marks(texts, tokenizer) if tokenizer.kind(mark) == "<mask>"]
    if missing := [key for key in keys if key not in blanks and key != "<mask>"]:
        raise DataError(f"{ANSWER}.{missing[0]}: there is no such blank; the texts have {', '.join(blanks) or 'none'}")
    if unfilled := [mark for mark in blanks if mark not in keys]:
        raise DataError(f"{ANSWER}: {unfilled[0]} has no answer; the answers are for {', '.join(keys)}")


def _numbered_marks(texts: Iterable[str], tokenizer: CpmBeeTokenizer) -> list[str]:
    """Those of the vocabulary's kinds, each once."""
    marks = (mark for text in texts if "<" in text for mark in tokenizer.marks_in(text))
    numbered = dict.fromkeys(mark for mark in marks if _NUMBERED.fullmatch(mark))
    return [mark for mark in numbered if tokenizer.mark_id(tokenizer.kind(mark)) is not None]


def _meant(name: str) -> str | None:
    """The mark that somebody who wrote <name> had in mind; None for a name of its own."""
    word, number = _NAME.fullmatch(name).groups()  # pyright: ignore[reportOptionalMemberAccess]  # it fits any line
    close = difflib.get_close_matches(word.lower(), _IN_TEXTS, 1, _CLOSE_WITH_NUMBER if number else _CLOSE)
    return None if not close else f"<{close[0]}_{number}>" if number else f"<{close[0]}>"
