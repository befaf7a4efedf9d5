"""Records that hold a text alone: {"text": ...}, all of which is learned after [gMASK] sop, its end too.

So a model is pretrained further; the ids are those of `tokenizer(text)` in transformers. A part of a text that was too
long is {"text": ids, "ends": false}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Sample
from hanlin.core.errors import DataError
from hanlin.models.common.multi_turn import LearnedTurn, sample_of_turns

from .record import read_text
from .tokenizer import ChatGlm2Tokenizer

TEXT, ENDS = "text", "ends"


def is_text(record: Any, prompt_column: str) -> bool:
    """Whether a record is a text, and no prompt."""
    return isinstance(record, Mapping) and TEXT in record and prompt_column not in record


def text_of(record: Mapping[str, Any], vocab_size: int) -> list[Any]:
    """The parts that are encoded: a text, or the ids of a part of one.

    Raises: DataError.
    """
    given = record[TEXT]
    if isinstance(given, list) and all(type(id) is int and 0 <= id < vocab_size for id in given):
        return given
    return [read_text(record, TEXT)]


def text_behind(prefix: Sequence[int], ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids of a row without those of its beginning that are there: all, the last ones, or none.

    Raises: DataError.
    """
    if odd := [id for id in ids if not 0 <= id < vocab_size]:
        raise DataError(f"{odd[0]} is no id, the model has {vocab_size}")
    sizes = range(len(prefix), -1, -1)
    there = next(size for size in sizes if list(ids[:size]) == list(prefix[len(prefix) - size :]))
    return list(ids[there:])


def text_sample(record: Mapping[str, Any], ids: Sequence[int], tokenizer: ChatGlm2Tokenizer) -> Sample:
    """The sample of a record; ids: of its text.

    Raises: DataError.
    """
    if not ids:
        raise DataError(f'"{TEXT}" holds nothing that makes a token')
    end = tokenizer.end if record.get(ENDS, True) else None
    return sample_of_turns([LearnedTurn(tokenizer.prefix, ids, end)])


def fit_text(
    record: Mapping[str, Any], ids: Sequence[int], tokenizer: ChatGlm2Tokenizer, max_length: int, policy: str
) -> list[dict[str, Any]]:
    """Parts that are short enough; of "truncate" the first one.

    Raises: DataError where there is no room for any.
    """
    room = max_length - len(tokenizer.prefix)
    if room < 1:
        raise DataError(f"data.max_length is {max_length}, which leaves no room for a text; raise it")
    learned = [*ids, *([tokenizer.end] if record.get(ENDS, True) else [])]
    parts = [learned[start : start + room] for start in range(0, len(learned), room)]
    return [{**record, TEXT: part, ENDS: False} for part in (parts[:1] if policy == "truncate" else parts)]


def told_sample(text: str, tokenizer: ChatGlm2Tokenizer) -> Sample:
    """All of a text behind the tokens with which every row begins, of which none is learned.

    Raises: DataError for one without tokens.
    """
    prefix, ids = list(tokenizer.prefix), tokenizer.encode(text)
    if not ids:
        raise DataError("an empty text, of which nothing is to be told")
    tokens = np.array(prefix + ids, dtype=np.int32)
    labels, weights = np.full(tokens.size, IGNORED, dtype=np.int32), np.zeros(tokens.size, dtype=np.float32)
    learnt = slice(len(prefix) - 1, tokens.size - 1)
    labels[learnt], weights[learnt] = ids, 1
    return Sample({"tokens": tokens}, labels, weights)
