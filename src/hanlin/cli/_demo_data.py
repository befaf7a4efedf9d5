"""The embedded default: phrases and their pinyin, from the dictionary that the package pypinyin (MIT) brings.

A phrase becomes a CPM-Bee record with one answer per character:
`{"词语": "银行", "任务": "拼音", "<ans>": {"银": "yín", "行": "háng"}}`.
Many characters have several readings, so the phrase decides. The second task asks for the tone only, in the words of
the first: each tone is answered by a common syllable that has it (yī, yí, yǐ, yì; de for the neutral one).

For pretraining there is plain text, a line of it a number, date, time, price or share as it is read aloud and as it is
written: `百分之三十五点二=35.2%`. What comes next often stands far behind, so counting runs of characters does not do.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hanlin.core.errors import ConfigError
from hanlin.data.sources.jsonl import write_jsonl

__all__ = ["NumberData", "PhraseData", "write_numbers", "write_phrases"]

_TONES = {"\u0304": "yī", "\u0301": "yí", "\u030c": "yǐ", "\u0300": "yì"}
_NEUTRAL = "de"
_DIGITS = "零一二三四五六七八九"
_PARTS_OF_DAY = ("凌晨", 0, 6), ("上午", 6, 12), ("下午", 12, 18), ("晚上", 18, 24)


@dataclass(frozen=True)
class PhraseData:
    """The files that were written, and what a lookup of each character's most frequent reading would score."""

    pinyin_train: Path
    pinyin_eval: Path
    tone_train: Path
    tone_eval: Path
    rows: int
    lookup_accuracy: float


@dataclass(frozen=True)
class NumberData:
    """The lines that were written, and the beginnings of others with the rest of each; files of both are there too."""

    lines: list[str]
    held_out: dict[str, str]


def write_phrases(folder: Path, *, characters: int, eval_rows: int, seed: int) -> PhraseData:
    """Write both tasks; the phrases are made of the `characters` most used ones.

    Raises: ConfigError when pypinyin is missing.
    """
    phrases = _phrases(characters)
    order = np.random.default_rng(seed).permutation(len(phrases))
    held_out = [phrases[i] for i in order[:eval_rows]]
    seen = [phrases[i] for i in order[eval_rows:]]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in ("pinyin_train", "pinyin_eval", "tone_train", "tone_eval")}
    write_jsonl(paths["pinyin_train"], map(_pinyin_record, seen))
    write_jsonl(paths["pinyin_eval"], map(_pinyin_record, held_out))
    write_jsonl(paths["tone_train"], map(_tone_record, seen))
    write_jsonl(paths["tone_eval"], map(_tone_record, held_out))
    return PhraseData(**paths, rows=len(phrases), lookup_accuracy=_lookup_accuracy(seen, held_out))


def write_numbers(folder: Path, *, rows: int, eval_rows: int, seed: int) -> NumberData:
    """Write different lines of plain text, each `READ=WRITTEN`, of the five kinds in random order."""
    random = Random(seed)
    made: dict[str, str] = {}
    while len(made) < eval_rows + rows:
        read, written = random.choice(_KINDS)(random)
        made[f"{read}="] = written
    pairs = list(made.items())
    held_out, lines = dict(pairs[:eval_rows]), [read + written for read, written in pairs[eval_rows:]]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "numbers_train.jsonl", ({"text": line} for line in lines))
    write_jsonl(folder / "numbers_eval.jsonl", ({"prompt": one, "answer": two} for one, two in held_out.items()))
    return NumberData(lines, held_out)


def tone(syllable: str) -> str:
    """The syllable that stands for the tone of another: "háng" -> "yí", "er" -> "de"."""
    marks = [_TONES[mark] for mark in unicodedata.normalize("NFD", syllable) if mark in _TONES]
    return marks[0] if marks else _NEUTRAL


def read_number(number: int) -> str:
    """How 0 to 99,999,999 is read: 10500 -> 一万零五百."""
    thousands, rest = divmod(number, 10_000)
    if not thousands:
        return (_read_thousands(rest) or _DIGITS[0]).removeprefix("一" if 10 <= rest < 20 else "")
    gap = _DIGITS[0] if 0 < rest < 1000 else ""
    return f"{read_number(thousands)}万{gap}{_read_thousands(rest)}"


def _read_thousands(number: int) -> str:
    """Below ten thousand; 0 is nothing, and inner zeros, however many, are read once."""
    text, gap = "", ""
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        text += f"{gap}{_DIGITS[digit]}{name}" if digit else ""
        gap = _DIGITS[0] if text and not digit else ""
    return text


def _read_amount(number: int) -> str:
    """In front of a word for what is counted, where a lone 2 is 两."""
    return "两" if number == 2 else read_number(number)


def _read_digits(digits: str) -> str:
    return "".join(_DIGITS[int(digit)] for digit in digits)


def _number(random: Random) -> tuple[str, str]:
    number = random.randrange(10 ** random.randint(2, 8))
    return read_number(number), str(number)


def _date(random: Random) -> tuple[str, str]:
    day = date.fromordinal(random.randint(date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()))
    return f"{_read_digits(str(day.year))}年{read_number(day.month)}月{read_number(day.day)}日", day.isoformat()


def _time(random: Random) -> tuple[str, str]:
    part, first, last = random.choice(_PARTS_OF_DAY)
    hour, minute = random.randrange(first, last), random.randrange(1, 60)
    read = read_number(minute) if minute >= 10 else _read_digits(f"{minute:02}")
    return f"{part}{_read_amount(hour % 12 or 12 if hour else 0)}点{read}分", f"{hour:02}:{minute:02}"


def _price(random: Random) -> tuple[str, str]:
    yuan, jiao = random.randrange(1, 10 ** random.randint(1, 4)), random.randint(1, 9)
    return f"{_read_amount(yuan)}块{_DIGITS[jiao]}", f"{yuan}.{jiao}0元"


def _share(random: Random) -> tuple[str, str]:
    whole, part = random.randrange(100), str(random.randrange(1, 100))
    return f"百分之{read_number(whole)}点{_read_digits(part)}", f"{whole}.{part}%"


_KINDS = _number, _date, _time, _price, _share


def _dictionary() -> dict[str, list[list[str]]]:
    """Phrase -> the readings of each character."""
    try:
        from pypinyin.phrases_dict import phrases_dict  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError("the demo's data come with the package pypinyin: pip install 'hanlin[demo]'") from error
    return phrases_dict


def _phrases(characters: int) -> list[tuple[str, list[str]]]:
    phrases_dict = _dictionary()
    used = Counter(character for phrase in phrases_dict for character in phrase)
    common = {character for character, _ in used.most_common(characters)}
    return [
        (phrase, [readings[0] for readings in syllables])
        for phrase, syllables in phrases_dict.items()
        # Each character is a key of the answer, so it may stand only once.
        if 2 <= len(phrase) <= 4 and len(set(phrase)) == len(phrase) == len(syllables) and common.issuperset(phrase)
    ]


def _pinyin_record(phrase: tuple[str, list[str]]) -> dict[str, Any]:
    text, syllables = phrase
    return {"词语": text, "任务": "拼音", "<ans>": dict(zip(text, syllables, strict=True))}


def _tone_record(phrase: tuple[str, list[str]]) -> dict[str, Any]:
    text, syllables = phrase
    return {"词语": text, "任务": "声调", "<ans>": dict(zip(text, map(tone, syllables), strict=True))}


def _lookup_accuracy(seen: Sequence[tuple[str, list[str]]], held_out: Sequence[tuple[str, list[str]]]) -> float:
    readings: dict[str, Counter[str]] = {}
    for text, syllables in seen:
        for character, syllable in zip(text, syllables, strict=True):
            readings.setdefault(character, Counter())[syllable] += 1
    best = {character: counts.most_common(1)[0][0] for character, counts in readings.items()}
    right = sum([best.get(c) for c in text] == syllables for text, syllables in held_out)
    return right / max(len(held_out), 1)
