"""T5's task as CPM-1's program makes it: spans of a document are taken out and have to be given back.

A document becomes `keep_0, V, keep_1, V + 1, ...` (what is read) and `V, noise_0, V + 1, noise_1, ...` (what is wanted),
V being the size of the vocabulary: a number, not yet a token. Noise always stands last, so the end of the document is
always wanted. Golden case cpm1_t5_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SEED = 233
"""What the original's generator begins with; one generator serves a whole process."""
MIN_TOKENS = 10
"""Documents of fewer tokens, their end not counted, are left out."""


@dataclass(frozen=True)
class Corrupted:
    """offsets: where each wanted span begins and how long it is, its number included: `[start, length, ...]`."""

    context: list[int]
    target: list[int]
    offsets: list[int]


def corrupt_spans(
    ids: Sequence[int], vocab_size: int, generator: torch.Generator, *, density: float = 0.15, mean_span: float = 3
) -> Corrupted:
    """Take spans out of a document, its end included; density: share of tokens taken; mean_span: tokens per span."""
    num_noise = min(max(round(len(ids) * density), 1), len(ids) - 1)
    num_spans = max(round(num_noise / mean_span), 1)
    # The order of the two draws must not change.
    noise = _span_lengths(num_noise, num_spans, generator)
    kept = _span_lengths(len(ids) - num_noise, num_spans, generator)
    context, target, offsets, start = [], [], [], 0
    for number, (keep, take) in enumerate(zip(kept, noise, strict=True)):
        middle, end = start + keep, start + keep + take
        context += [*ids[start:middle], vocab_size + number]
        offsets += [len(target), take + 1]
        target += [vocab_size + number, *ids[middle:end]]
        start = end
    return Corrupted(context, target, offsets)


def _span_lengths(num_tokens: int, num_spans: int, generator: torch.Generator) -> list[int]:
    """Cut tokens in random spans of at least one."""
    import torch

    order = torch.randperm(num_tokens - 1, generator=generator).numpy()
    begins = np.concatenate(([False], (np.arange(num_tokens - 1) < num_spans - 1)[order]))
    return np.bincount(np.cumsum(begins), minlength=num_spans).tolist()
