"""Whether the files of a token corpus are whole and belong together: asked wherever one is opened.

Tables that contradict each other, a .bin that is not its index's, ids that are no tokens, and T5's three files.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.remembered import remembered
from hanlin.data.file_array import FileBytes

if TYPE_CHECKING:
    from hanlin.data.pretraining.indexed_data import Index, IndexedData

_CHUNK_TOKENS = 1 << 23
_OTHER_RUN = "the three files are not of one run; copy all six again, or prepare the data anew"


def check_tables(index: Index) -> None:
    """What the tables of an index say must fit together.

    Raises: ValueError.
    """
    sizes, starts, documents = index.sizes, index.starts, index.documents
    if sizes.size and sizes.min() < 0:
        item = int(np.argmax(sizes < 0))
        raise ValueError(f"item {item:,} is said to have {sizes[item]:,} tokens")
    wanted = np.cumsum(sizes, dtype=np.int64) - sizes
    if not np.array_equal(starts, wanted):
        item = int(np.argmax(starts != wanted))
        raise ValueError(
            f"item {item:,} is said to begin at token {starts[item]:,}, the items before it have {wanted[item]:,}"
        )
    # The original's merging and its T5 tool write no ends of documents at all: there an item is a document.
    has_ends = len(documents) != 1
    if (
        len(documents) == 0
        or documents[0] != 0
        or (np.diff(documents) < 0).any()
        or (has_ends and documents[-1] != len(sizes))
    ):
        raise ValueError(f"the documents do not divide the {len(sizes):,} items: their bounds are {_shown(documents)}")


def check_bytes(path: Path, found: int, index: Index) -> None:
    """The .bin file must have as many bytes as its index says.

    Raises: DataError, with the dtype that the bytes are likely to have.
    """
    num_tokens = int(index.sizes.sum(dtype=np.int64))
    wanted = num_tokens * index.dtype.itemsize
    if found == wanted:
        return
    likely = {2: "uint16", 4: "int32", 8: "int64"}.get(found // num_tokens) if num_tokens else None
    if likely is not None and found % num_tokens == 0:
        reason = (
            f"the ids are likely {likely}, the index says {index.dtype}: the two files are of different runs; copy "
            "both again, or prepare the data anew"
        )
    elif found < wanted:
        reason = "it was cut off, or belongs to another index; copy both files again"
    else:
        reason = "the rest would never be read: it belongs to another index, or was written to later; copy both again"
    raise DataError(f"{path}: {found:,} bytes, its index speaks of {wanted:,}: {reason}")


@dataclass(frozen=True)
class CorpusFacts:
    """What all bytes of a corpus say: their hash, and the smallest and largest id (0 and -1: there are none)."""

    digest: str
    least: int
    largest: int


def read_facts(data: IndexedData, cache: Path) -> CorpusFacts:
    """Read a corpus once; `cache` remembers what was found while its two files stay as they are."""
    return CorpusFacts(*remembered(cache, data.files, "corpus 1", lambda: astuple(_scan(data))))


def check_ids(data: IndexedData, facts: CorpusFacts, vocab_size: int) -> None:
    """Raises: DataError naming the first token that the vocabulary does not have."""
    if facts.least >= 0 and facts.largest < vocab_size:
        return
    check_first_ids(data, vocab_size)


def check_first_ids(data: IndexedData, vocab_size: int, most: int = sys.maxsize) -> None:
    """Look at the first `most` ids.

    Raises: DataError naming the first one that the vocabulary does not have.
    """
    for first, ids in _chunks(data, most):
        is_outside = (ids < 0) | (ids >= vocab_size)
        if is_outside.any():
            place = first + int(np.argmax(is_outside))
            item = int(np.searchsorted(data.index.starts, place, side="right")) - 1
            raise DataError(
                f"{data.prefix}: document {item:,}, token {place - int(data.index.starts[item]):,}: id "
                f"{ids[place - first]:,}, but the tokenizer has {vocab_size:,} tokens; prepare the data with the same "
                "vocabulary"
            )


def _scan(data: IndexedData) -> CorpusFacts:
    digest = hashlib.sha256()
    for path in data.files:
        digest.update(FileBytes(path).sha256.encode())
    least, largest = 0, -1
    for _, ids in _chunks(data, sys.maxsize):
        least, largest = min(least, int(ids.min())), max(largest, int(ids.max()))
    return CorpusFacts(digest.hexdigest(), least, largest)


def _chunks(data: IndexedData, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """The ids of all items, piece by piece, each with the number of its first token."""
    tokens = data.tokens
    for first in range(0, min(len(tokens), most), _CHUNK_TOKENS):
        yield first, tokens[first : first + _CHUNK_TOKENS]


# --- T5's three files ---


def check_spans(files: Sequence[IndexedData], vocab_size: int | None = None) -> None:
    """Documents, what was taken out of them, and where that lies must fit together, to the last number.

    files: context, target, offsets; vocab_size: the number of the first span; None: what the files say it is.
    Raises: DataError.
    """
    counts = [len(data) for data in files]
    if len(set(counts)) > 1:
        shown = ", ".join(f"{data.prefix.name} {count:,}" for data, count in zip(files, counts, strict=True))
        raise DataError(f"{files[0].prefix}: documents of the three files: {shown}; {_OTHER_RUN}")
    if counts[0] == 0:
        return
    if vocab_size is None:
        vocab_size = int(files[1].tokens[0]) if len(files[1].tokens) else 0
    bounds = np.cumsum(files[0].sizes, dtype=np.int64) // _CHUNK_TOKENS
    firsts = [0, *(np.flatnonzero(np.diff(bounds)) + 1).tolist(), counts[0]]
    for first, end in itertools.pairwise(firsts):
        _check_some_spans(files, first, end, vocab_size)


def _check_some_spans(files: Sequence[IndexedData], first: int, end: int, vocab_size: int) -> None:
    contexts, targets, offsets = files
    num_spans, rest = np.divmod(offsets.sizes[first:end].astype(np.int64), 2)
    _refuse(offsets, first, rest != 0, "an odd count of numbers, expected pairs of place and length")
    marks, place = _numbers_from(contexts, first, end, vocab_size)
    found = np.bincount(place, minlength=end - first)
    _refuse(contexts, first, found != num_spans, f"its places of spans are not as many as {offsets.prefix.name} has")
    ranks = np.arange(len(marks)) - np.repeat(np.cumsum(num_spans) - num_spans, num_spans)
    _refuse(contexts, first, _any_in(place, marks != ranks + vocab_size, end - first), "its spans are not numbered on")

    pairs = _ids_of(offsets, first, end).reshape(-1, 2)
    totals = np.concatenate(([0], np.cumsum(pairs[:, 1])))
    begins = np.cumsum(num_spans) - num_spans
    wrong = (pairs[:, 1] < 1) | (pairs[:, 0] != totals[:-1] - np.repeat(totals[begins], num_spans))
    _refuse(offsets, first, _any_in(place, wrong, end - first), "its spans do not follow each other")
    lengths = totals[begins + num_spans] - totals[begins]
    sizes = targets.sizes[first:end]
    _refuse(targets, first, lengths != sizes, f"its tokens are not as many as {offsets.prefix.name} says")
    heads = _ids_of(targets, first, end)
    at = np.flatnonzero(heads >= vocab_size)
    if not np.array_equal(at, totals[:-1]) or not np.array_equal(heads[at], marks):
        _refuse(targets, first, _differing(at, heads, totals[:-1], marks, sizes), "its spans begin elsewhere")


def _differing(
    at: np.ndarray, heads: np.ndarray, begins: np.ndarray, marks: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Of each document whether its spans begin where they should, with the right number."""
    wanted, found = np.full((2, len(heads)), -1)
    wanted[begins], found[at] = marks, heads[at]
    return _any_in(np.repeat(np.arange(len(sizes)), sizes), wanted != found, len(sizes))


def _numbers_from(data: IndexedData, first: int, end: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids from `vocab_size` on, and the document of each, counted from `first`."""
    ids = _ids_of(data, first, end)
    at = np.flatnonzero(ids >= vocab_size)
    return ids[at], np.repeat(np.arange(end - first), data.sizes[first:end])[at]


def _ids_of(data: IndexedData, first: int, end: int) -> np.ndarray:
    start = int(data.index.starts[first])
    return data.tokens[start : start + int(data.sizes[first:end].sum(dtype=np.int64))].astype(np.int64)


def _any_in(place: np.ndarray, is_wrong: np.ndarray, count: int) -> np.ndarray:
    """Of each of `count` documents whether something in it is wrong; place: the document of each thing."""
    return np.bincount(place[is_wrong], minlength=count) > 0


def _refuse(data: IndexedData, first: int, is_wrong: np.ndarray, reason: str) -> None:
    if is_wrong.any():
        raise DataError(f"{data.prefix}: document {first + int(np.argmax(is_wrong)):,}: {reason}; {_OTHER_RUN}")


def _shown(bounds: np.ndarray) -> str:
    shown = [str(bound) for bound in bounds[:3].tolist()]
    return ", ".join([*shown, "...", str(int(bounds[-1]))] if len(bounds) > 3 else shown) or "none"
