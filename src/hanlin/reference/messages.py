"""What the program says to a user, in his language. English is the key; `messages/ROOM.yaml` has the Chinese of a room.

The source says its messages in English where they arise, as f-strings; what is raised, logged and answered over HTTP
stays so. The command line translates a finished message just before it is printed. A line that is one of `labels.yaml`
as a whole (headings of tables, names of rows, lines of few words) is said as it stands there; else the constant parts
of a template (`{}: no such file {}`) are found in it, and what stands between them is put into the Chinese one, after
it was looked at in the same way (a message often holds another). Of all such readings that one is taken which knows
most of the message and leaves no clause half in English; what no template fits is said in English, and what is quoted
stays as it is. Which templates there have to be is read off the source by tests/reference/test_messages.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from string import Formatter
from typing import Any, NamedTuple

from hanlin.core.language import language

__all__ = ["read_labels", "read_messages", "said", "say_in_chinese"]

_FOLDER, _LABELS = "messages", "labels.yaml"
_QUOTED = re.compile(r"""(?<![\w])(?:'[^'\n]*'|"[^"\n]*"|`[^`\n]*`)(?!\w)""")

_JOINING = "._-"
"""Within a name of several words."""
_CLAUSE_ENDS = re.compile(r"[,;:()\n]")
_WORDS = re.compile(r"(?<!\S)[a-z]+ [a-z]+(?!\S)")
"""Two English words, as names and values are not."""
_MOST_CLAUSES = 16
_BEGINS_WITH_WORD = re.compile(r"\s*[a-z]+ \S")
_BEFORE, _BEHIND = re.compile(r"^\s+|[:;.] "), re.compile(r"[;)]|, near |\.(?=\s|$)| \(")
"""What parts a message from what stands before it (`recipe.yaml:2: data.train: `), and behind it."""


def said(text: str, stream: Any = None) -> str:
    """A message in the user's language; stream: where it will be printed; English where that cannot show Chinese."""
    return say_in_chinese(text) if language() == "zh" and _shows_chinese(stream) else text


def say_in_chinese(text: str) -> str:
    """A message, which may have several lines, as far as the catalogue knows it."""
    lines = text.split("\n")
    return "\n".join("".join(_read_line(piece).chinese for piece in _pieces(line)) for line in lines)


def read_messages(room: str) -> dict[str, str | None]:
    """The catalogue of a room: English template -> Chinese one, None for a text that no user reads."""
    return _read(f"{_FOLDER}/{room}.yaml")


def read_labels() -> dict[str, str | None]:
    """What is translated only where it is a whole line, a heading or a cell."""
    return _read(_LABELS)


def _read(name: str) -> dict[str, str | None]:
    import yaml  # only those who read Chinese need it this early

    text = files("hanlin.reference").joinpath(name).read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may have been built without it, ten times slower
    return {entry["en"]: entry["zh"] for entry in yaml.load(text, loader) or ()}


def _pieces(line: str) -> Iterator[str]:
    """A line in pieces of so many clauses that a list of hundreds takes no time by their square."""
    clauses = re.split(r"(?<=; )", line)
    for first in range(0, len(clauses), _MOST_CLAUSES):
        yield "".join(clauses[first : first + _MOST_CLAUSES])


@dataclass(frozen=True)
class _Template:
    """parts: the constant parts, with a placeholder between each two; longest: of them, to look for first."""

    parts: Sequence[str]
    chinese: str
    longest: str

    def find(self, text: str) -> _Found | None:
        """The first place where it stands, whatever is before and behind it; not within what a user has written."""
        first, quoted = self.parts[0], [match.span() for match in _QUOTED.finditer(text)]
        begin = text.find(first)
        while begin >= 0 and (_cuts_word(text, begin) or _is_within(quoted, begin, first)):
            begin = text.find(first, begin + 1)
        end, values = begin + len(first), []
        for number, part in enumerate(self.parts[1:], start=2):
            is_rest = number == len(self.parts) and not part
            place = len(text) if is_rest else text.find(part, end)
            if begin < 0 or place < 0 or _is_within(quoted, place, part):
                return None
            values.append(text[end:place])
            end = place + len(part)
        return None if begin < 0 or _cuts_word(text, end) else self._without_neighbours(_Found(begin, end, values))

    def _without_neighbours(self, found: _Found) -> _Found:
        """Without the file, the setting or the next sentence in a value at an end that is elsewhere in Chinese."""
        begin, end, values = found.begin, found.end, [*found.values]
        if values and not self.parts[0] and not self.chinese.startswith(("{}", "{0}")):
            last = max((match.end() for match in _BEFORE.finditer(values[0])), default=0)
            begin, values[0] = begin + last, values[0][last:]
        if values and not self.parts[-1] and not self.chinese.endswith("}"):
            marks = [match.span() for match in _QUOTED.finditer(values[-1])]
            behind = (match.start() for match in _BEHIND.finditer(values[-1]))
            first = next((at for at in behind if not any(one < at < other for one, other in marks)), len(values[-1]))
            end, values[-1] = end - len(values[-1]) + first, values[-1][:first]
        return _Found(begin, end, values)


class _Found(NamedTuple):
    begin: int
    end: int
    values: list[str]


def _is_within(quoted: Sequence[tuple[int, int]], begin: int, part: str) -> bool:
    """Whether words of a template stand inside of quotation marks that are not the template's."""
    end = begin + len(part)
    return any(map(str.isalpha, part)) and any(first < begin and end < last for first, last in quoted)


def _cuts_word(text: str, place: int) -> bool:
    """Whether a place is inside of an English word, a number, or a name of several (`data.options.NAME`)."""
    kinds = [
        "." if one in _JOINING else "a" if one.isascii() and one.isalnum() else " " for one in _around(text, place)
    ]
    return kinds[1:3] == ["a", "a"] or kinds[:3] == ["a", ".", "a"] or kinds[1:] == ["a", ".", "a"]


def _around(text: str, place: int) -> str:
    """Two characters before a place, and two behind it."""
    return text[max(0, place - 2) : place].rjust(2) + text[place : place + 2].ljust(2)


class _Reading(NamedTuple):
    """A line or a part of one. known: how many of its characters are constant ones; english: whether it begins, and
    whether it ends, with a clause of which nothing is known.
    """

    known: int
    chinese: str
    english: tuple[bool, bool]


@lru_cache(maxsize=4096)
def _read_line(line: str) -> _Reading:
    """A line as a label, with the spaces around it, or as a message: whatever knows more of it."""
    text, best = line.strip(), _parsed(line)
    for pattern, chinese in _labels():
        if found := pattern.fullmatch(text):
            values = [*map(_read_line, found.groups())]
            known = len(text) - sum(map(len, found.groups())) + sum(one.known for one in values)
            if known > best.known:
                told = chinese.format(*(one.chinese for one in values))
                best = _Reading(known, line.replace(text, told, 1), (False, False))
    return best


@lru_cache(maxsize=4096)
def _parsed(text: str) -> _Reading:
    """The reading that knows most of it."""
    clauses = _CLAUSE_ENDS.split(text)
    begins = _WORDS.search(clauses[0]) or _BEGINS_WITH_WORD.match(clauses[0])
    best = _Reading(0, text, (begins is not None, _WORDS.search(clauses[-1]) is not None))
    for template in _templates():
        if template.longest in text and (found := template.find(text)):
            pieces = [text[: found.begin], *found.values, text[found.end :]]
            quoted = [False, *map(_are_quotes, template.parts, template.parts[1:]), False]
            readings = [
                _Reading(0, piece, (False, False)) if is_quoted else _parsed(piece)
                for piece, is_quoted in zip(pieces, quoted, strict=True)
            ]
            known = sum(map(len, template.parts)) + sum(one.known for one in readings)
            if known > best.known and not _is_mixed(template.parts, readings):
                before, *inner, behind = (one.chinese for one in readings)
                edges = _edges(template.parts, pieces, readings)
                best = _Reading(known, before + template.chinese.format(*inner) + behind, edges)
    return best


def _are_quotes(before: str, behind: str) -> bool:
    """Whether what stands between two parts of a template is quoted by them."""
    return before[-1:] == behind[:1] and before[-1:] in ("'", '"', "`")


def _is_mixed(parts: Sequence[str], readings: Sequence[_Reading]) -> bool:
    """Whether a clause would be half Chinese, half English: what stands beside a constant part, without a mark between
    them, is words that nobody knows.
    """
    return any(
        (before.english[1] and part.lstrip()[:1].isalnum()) or (behind.english[0] and part.rstrip()[-1:].isalnum())
        for part, before, behind in zip(parts, readings, readings[1:], strict=False)
    )


def _edges(parts: Sequence[str], pieces: Sequence[str], readings: Sequence[_Reading]) -> tuple[bool, bool]:
    """Of a reading: that of its first piece, if it is not a constant part, and that of its last one."""
    first = next((number for number, piece in enumerate(pieces) if piece or (parts[number : number + 1] or "-")[0]), 0)
    last = next((number for number in reversed(range(len(pieces))) if pieces[number] or parts[number - 1]), 0)
    return bool(pieces[first]) and readings[first].english[0], bool(pieces[last]) and readings[last].english[1]


@cache
def _labels() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile("(.+)".join(map(re.escape, _template(english, chinese).parts))), chinese)
        for english, chinese in read_labels().items()
        if chinese is not None
    ]


@cache
def _templates() -> list[_Template]:
    return [_template(english, chinese) for english, chinese in _all_messages() if chinese is not None]


def _template(english: str, chinese: str) -> _Template:
    parts = [""]
    for constant, field, _, _ in Formatter().parse(english):
        parts[-1] += constant
        if field is not None:
            parts.append("")
    return _Template(parts, chinese, max(parts, key=len))


def _all_messages() -> Iterator[tuple[str, str | None]]:
    for file in (files("hanlin.reference") / _FOLDER).iterdir():
        if file.name.endswith(".yaml"):
            yield from read_messages(file.name.removesuffix(".yaml")).items()


def _shows_chinese(stream: Any) -> bool:
    try:
        "中".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
