"""Which tokens make up the samples of pretraining: Megatron's document, sample and shuffle index, to the bit.

All documents of a split are put in random order, as often as needed, and cut every `length` tokens; a sample is
`length + 1` tokens and shares its last one with the next sample's first. Then the samples are put in random order.
Golden cases cpm1_split and cpm1_indexed_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hanlin.core.errors import ConfigError, DataError
from hanlin.core.files import replaced_file
from hanlin.data.file_array import FileArray
from hanlin.data.pretraining.indexed_data import IndexedData

SPLITS = ("train", "valid", "test")
_PARTS = ("doc_idx", "sample_idx", "shuffle_idx")


def split_bounds(split: str, num_documents: int) -> list[int]:
    """The bounds of train, valid and test among the documents, from shares such as "949,50,1" or "7/2/1".

    The original's rounding: with few documents a bound may even be negative.
    Raises: ConfigError.
    """
    bounds = [0]
    for share in split_shares(split).values():
        bounds.append(bounds[-1] + round(share * num_documents))
    excess = bounds[-1] - num_documents
    return [0, *(bound - excess for bound in bounds[1:])]


def split_documents(split: str, num_documents: int) -> dict[str, range]:
    """The documents of train, valid and test; a split may be empty.

    Raises: ConfigError, also when there are too few documents for these shares.
    """
    bounds = split_bounds(split, num_documents)
    if bounds != sorted(bounds):
        raise ConfigError(f"data.split: {split!r}: cannot divide {num_documents} documents like this; use fewer parts")
    return {name: range(*bounds[i : i + 2]) for i, name in enumerate(SPLITS)}


def split_shares(split: str) -> dict[str, float]:
    """The shares of train, valid and test, which sum to 1.

    Raises: ConfigError.
    """
    try:
        numbers = [float(part) for part in split.split("," if "," in split else "/")]
    except ValueError:
        raise ConfigError(f"data.split: {split!r}: expected numbers, as in 949,50,1") from None
    numbers = [*numbers, 0.0, 0.0, 0.0][: len(SPLITS)]
    if not sum(numbers) > 0 or min(numbers) < 0:
        raise ConfigError(f"data.split: {split!r}: the shares must be at least 0 and not all 0")
    total = sum(numbers)
    return {name: number / total for name, number in zip(SPLITS, numbers, strict=True)}


@dataclass(frozen=True)
class SampleIndex:
    """documents: items in the order they are read, `[repeats * items]`; samples: where each begins, as (place in
    `documents`, token inside the item), `[samples + 1, 2]`; order: the numbers of the samples as they are given out.
    """

    documents: np.ndarray | FileArray
    samples: np.ndarray | FileArray
    order: np.ndarray | FileArray

    def __len__(self) -> int:
        return len(self.order)

    def tokens(self, number: int, data: IndexedData) -> np.ndarray:
        """Sample `number` of the random order: int64 `[length + 1]`."""
        return np.concatenate([ids for _, ids in self.pieces(number, data)], dtype=np.int64)

    def pieces(self, number: int, data: IndexedData) -> list[tuple[int, np.ndarray]]:
        """The items that sample `number` is made of, each with its tokens in it."""
        place = int(self.order[number])
        (first, begin), (last, end) = self.samples[place].tolist(), self.samples[place + 1].tolist()
        items = self.documents[first : last + 1].tolist()
        if first == last:
            return [(items[0], data.get(items[0], begin, end - begin + 1))]
        middle = [(item, data[item]) for item in items[1:-1]]
        return [(items[0], data.get(items[0], begin)), *middle, (items[-1], data.get(items[-1], 0, end + 1))]

    def save(self, prefix: Path) -> None:
        """Write the three files under the original's names; prefix: that of `index_prefix`."""
        for part, table in zip(_PARTS, (self.documents, self.samples, self.order), strict=True):
            with replaced_file(_index_file(prefix, part)) as stream:
                np.save(stream, table, allow_pickle=False)

    @classmethod
    def load(cls, prefix: Path) -> SampleIndex | None:
        """The index that lies there; None unless all files of it do.

        Raises: DataError for a damaged file.
        """
        paths = [_index_file(prefix, part) for part in _PARTS]
        if not all(path.is_file() for path in paths):
            return None
        return cls(*(FileArray.of_npy(path) for path in paths))


def build_index(sizes: np.ndarray, items: Sequence[int], num_samples: int, length: int, seed: int) -> SampleIndex:
    """The index of at least `num_samples` samples of `length + 1` tokens.

    sizes: tokens of every item of the data; items: those of the split.
    Raises: DataError when the split is too short for a sample, however often it is repeated.
    """
    chosen = np.asarray(items, np.int32)
    num_tokens = int(sizes[chosen].sum())
    if num_tokens == 0:
        raise DataError("no tokens in this split; give it a larger share or more documents")
    repeats = max(-(-(num_samples * length + 1) // num_tokens), 1)
    random = np.random.RandomState(seed)
    documents = np.tile(chosen, repeats)
    random.shuffle(documents)
    samples = _cut(sizes[documents], (repeats * num_tokens - 1) // length, length)
    count = len(samples) - 1
    order = np.arange(count, dtype=np.uint32 if count < 2**32 - 2 else np.int64)
    random.shuffle(order)
    return SampleIndex(documents, samples, order)


def index_prefix(prefix: Path, split: str, num_samples: int, length: int, seed: int) -> Path:
    """What the names of the original's index files begin with; prefix: that of the data."""
    return Path(f"{prefix}_{split}_indexmap_{num_samples}ns_{length}sl_{seed}s")


def _cut(sizes: np.ndarray, count: int, length: int) -> np.ndarray:
    """Where token 0, length, 2 * length, ... stands: (item, token inside it), int32 `[count + 1, 2]`."""
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = np.arange(count + 1, dtype=np.int64) * length
    places = np.searchsorted(ends, starts, side="right")
    places[0] = 0  # also where the first item is empty
    return np.stack((places, starts - (ends - sizes)[places]), axis=1).astype(np.int32)


def _index_file(prefix: Path, part: str) -> Path:
    return Path(f"{prefix}_{part}.npy")
