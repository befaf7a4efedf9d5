"""The embedded default: phrases and their pinyin, from the dictionary that the package pypinyin (MIT) brings.

A phrase becomes a CPM-Bee record with one answer per character:
`{"词语": "银行", "任务": "拼音", "<ans>": {"银": "yín", "行": "háng"}}`.
Many characters have several readings, so the phrase decides. The second task asks for the tone only, in the words of
the first: each tone is answered by a common syllable that has it (yī, yí, yǐ, yì; de for the neutral one). For
pretraining there are the phrases of four characters as plain text, most of them idioms.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import ConfigError

__all__ = ["PhraseData", "write_idioms", "write_phrases"]

_TONES = {"\u0304": "yī", "\u0301": "yí", "\u030c": "yǐ", "\u0300": "yì"}
_NEUTRAL = "de"


@dataclass(frozen=True)
class PhraseData:
    """The files that were written, and what a lookup of each character's most frequent reading would score."""

    pinyin_train: Path
    pinyin_eval: Path
    tone_train: Path
    tone_eval: Path
    rows: int
    lookup_accuracy: float


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
    _write_rows(paths["pinyin_train"], map(_pinyin_record, seen))
    _write_rows(paths["pinyin_eval"], map(_pinyin_record, held_out))
    _write_rows(paths["tone_train"], map(_tone_record, seen))
    _write_rows(paths["tone_eval"], map(_tone_record, held_out))
    return PhraseData(**paths, rows=len(phrases), lookup_accuracy=_lookup_accuracy(seen, held_out))


def write_idioms(file: Path, *, characters: int, seed: int) -> list[str]:
    """Write the phrases of four characters, made of the `characters` most used ones, one a line in random order.

    Returns: the lines. Raises: ConfigError when pypinyin is missing.
    """
    idioms = [phrase for phrase in _dictionary() if len(phrase) == 4]
    used = Counter(character for idiom in idioms for character in idiom)
    common = {character for character, _ in used.most_common(characters)}
    chosen = [idiom for idiom in idioms if common.issuperset(idiom)]
    lines = [chosen[i] for i in np.random.default_rng(seed).permutation(len(chosen))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lines


def tone(syllable: str) -> str:
    """The syllable that stands for the tone of another: "háng" -> "yí", "er" -> "de"."""
    marks = [_TONES[mark] for mark in unicodedata.normalize("NFD", syllable) if mark in _TONES]
    return marks[0] if marks else _NEUTRAL


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


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
