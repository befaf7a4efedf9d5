"""T5's task as CPM-1's program makes it: spans of a document are taken out and have to be given back.

A document becomes `keep_0, V, keep_1, V + 1, ...` (what is read) and `V, noise_0, V + 1, noise_1, ...` (what is
wanted), V being the size of the vocabulary: a number, not yet a token. Noise always stands last, so the end of the
document is always wanted. A sample reads `length` ids from several documents; its spans are numbered anew, by tokens.
Golden case cpm1_t5_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanlin.data.pretraining.indexed_data import IndexedData, written_index
from hanlin.data.pretraining.sample_index import SampleIndex

if TYPE_CHECKING:
    import torch

SEED = 233
"""What the original's generator begins with; one generator serves a whole process."""
PARTS = ("context", "target", "target_offset")
"""The endings of the three files' prefixes."""
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


def write_spans(
    documents: IndexedData, prefix: Path, vocab_size: int, end: int, *, density: float = 0.15, mean_span: float = 3
) -> int:
    """Corrupt all documents and write the three files, to the byte as the original; returns how many got in.

    end: the id that stands, or is put, at the end of each.
    Raises: DataError when they cannot be written.
    """
    import torch

    generator, count = torch.Generator().manual_seed(SEED), 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(written_index(Path(f"{prefix}_{part}"), vocab_size=vocab_size)) for part in PARTS
        ]
        for item in range(len(documents)):
            ids = documents[item].tolist()
            if ids[-1:] == [end]:
                ids.pop()
            if len(ids) < MIN_TOKENS:
                continue
            count += 1
            # kept: no document ends, only items (cpm1_t5_dataset).
            made = corrupt_spans([*ids, end], vocab_size, generator, density=density, mean_span=mean_span)
            for writer, part in zip(writers, (made.context, made.target, made.offsets), strict=True):
                writer.add(part)
    return count


@dataclass(frozen=True)
class Marks:
    """Ids: first of the tokens that stand for spans, end of a document, padding; vocab_size: V."""

    first_span: int
    end: int
    pad: int
    vocab_size: int


@dataclass(frozen=True)
class SpanSample:
    """int64 ids; tokens, labels: what the decoder reads and gives; holds_end: 1 where a span of context holds one."""

    context: np.ndarray
    holds_end: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray


def span_sample(context: np.ndarray, target: np.ndarray, marks: Marks, target_length: int) -> SpanSample:
    """The arrays of a pair from `SpanData`; what is wanted is cut and padded to `target_length`."""
    is_mark = (target >= marks.first_span) & (target <= target[-1])
    spans = np.split(target, np.flatnonzero(is_mark))[1:-1]
    ends = [int(span[0]) for span in spans if marks.end in span]
    decoder = target[: target_length + 1]
    tokens, labels = np.full((2, target_length), marks.pad, np.int64)
    tokens[: len(decoder) - 1], labels[: len(decoder) - 1] = decoder[:-1], decoder[1:]
    return SpanSample(context, np.isin(context, ends).astype(np.int64), tokens, labels)


class SpanData:
    """Pairs out of the three files that corrupted documents were written to: `<prefix>_context` and so on."""

    def __init__(self, prefix: Path, index: SampleIndex, marks: Marks) -> None:
        self.contexts, self.targets, self.offsets = open_spans(prefix)
        self.index, self.marks = index, marks

    def __len__(self) -> int:
        return len(self.index)

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What is read and all that is wanted, int64; spans stand as tokens, the next one ends what is wanted."""
        context, target, next_span = [], [], self.marks.first_span
        for item, ids in self.index.pieces(number, self.contexts):
            for id in ids.tolist():
                if id < self.marks.vocab_size:
                    context.append(id)
                    continue
                context.append(next_span)
                target += [next_span, *self._span(item, id - self.marks.vocab_size)]
                next_span += 1
        return np.array(context, np.int64), np.array([*target, next_span], np.int64)

    def _span(self, item: int, number: int) -> list[int]:
        """The tokens of a document's span, without its number."""
        start, size = self.offsets.get(item, 2 * number, 2).tolist()
        return self.targets.get(item, start + 1, size - 1).tolist()


def open_spans(prefix: Path) -> list[IndexedData]:
    """The three files of corrupted documents, in the order of `PARTS`.

    Raises: DataError.
    """
    return [IndexedData(Path(f"{prefix}_{part}")) for part in PARTS]


def _span_lengths(num_tokens: int, num_spans: int, generator: torch.Generator) -> list[int]:
    """Cut tokens in random spans of at least one."""
    import torch

    order = torch.randperm(num_tokens - 1, generator=generator).numpy()
    begins = np.concatenate(([False], (np.arange(num_tokens - 1) < num_spans - 1)[order]))
    return np.bincount(np.cumsum(begins), minlength=num_spans).tolist()
