"""The rows of the original's scripts, id by id: `ptuning/main.py`, and the Ascend version's `preprocess.py`.

A row is written in the original's words: `input_ids` and `labels` of equal length, the label of a token at its own
place (ours stand one place earlier, where the token is predicted), -100 outside the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Sample
from hanlin.core.errors import DataError

from .tokenizer import EOS, PAD

INPUT_IDS, LABELS = "input_ids", "labels"

TokensAndLabels = tuple[list[int], list[int]]
"""input_ids, labels."""


def train_row(
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    source_length: int,
    target_length: int,
    row_length: int | None = None,
    learn_padding: bool = False,
) -> TokensAndLabels:
    """The training row of encoded texts; `prompt` begins with [gMASK] sop.

    row_length: tokens it is padded to; None: source_length + target_length + 1. The Ascend version has no "+ 1".
    """
    # kept (chatglm2_preprocess): prompts are cut from the right, so that long ones lose the mark before the answer.
    prompt, answer = prompt[:source_length], answer[:target_length]
    tokens = [*prompt, *answer, EOS]
    labels = [PAD] * len(prompt) + [*answer, EOS]
    padding = [PAD] * ((row_length or source_length + target_length + 1) - len(tokens))
    tokens, labels = tokens + padding, labels + padding
    return tokens, labels if learn_padding else [IGNORED if label == PAD else label for label in labels]


def reference_ids(prefix: Sequence[int], answer: Sequence[int], target_length: int) -> list[int]:
    """The ids whose text the original compares predictions with: the prefix counts in the length."""
    return [*prefix, *answer][:target_length]


def make_sample(row: TokensAndLabels) -> Sample:
    """A row as a sample of ours. Padding at its end that carries no loss is left out.

    # differs: the original pads every row to one length; nothing is lost, since no token sees a later one.
    """
    tokens, labels = (np.array(part, dtype=np.int32) for part in row)
    used = np.flatnonzero((tokens != PAD) | (labels != IGNORED))
    length = int(used[-1]) + 1 if used.size else 0
    shifted = np.append(labels[1:length], IGNORED).astype(np.int32)[:length]
    return Sample({"tokens": tokens[:length]}, shifted, (shifted != IGNORED).astype(np.float32))


def is_row(record: Any) -> bool:
    """Whether a record is already a row of ids."""
    return isinstance(record, Mapping) and INPUT_IDS in record and LABELS in record


def read_row(record: Mapping[str, Any], vocab_size: int) -> TokensAndLabels:
    """The row that a pre-tokenised record holds.

    Raises: DataError.
    """
    try:
        tokens, labels = np.asarray(record[INPUT_IDS]), np.asarray(record[LABELS])
    except (ValueError, OverflowError):  # lists in lists of different lengths, numbers of no dtype
        raise DataError(f"{INPUT_IDS} and {LABELS}: expected lists of whole numbers") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or labels.dtype.kind not in "iu" or not tokens.size:
        raise DataError(f"{INPUT_IDS} and {LABELS}: expected lists of whole numbers")
    if tokens.shape != labels.shape:
        raise DataError(f"{INPUT_IDS} has {tokens.size} numbers, {LABELS} {labels.size}; expected as many")
    for name, ids, least in ((INPUT_IDS, tokens, 0), (LABELS, np.where(labels == IGNORED, 0, labels), 0)):
        odd = ids[(ids < least) | (ids >= vocab_size)]
        if odd.size:
            raise DataError(f"{name} holds {odd[0]}, but the model has ids from 0 to {vocab_size - 1}")
    return tokens.tolist(), labels.tolist()
