"""Encoded samples on disk: per field one flat .npy file, and where each sample begins in it; a sealed folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.data.file_array import FileArray
from hanlin.data.sealed_folder import read_seal, seal

LABELS, WEIGHTS, STARTS, OPTIONAL = "labels", "weights", "starts", "optional"


@dataclass
class SampleArrays:
    """Flat arrays by name; `starts[name]`: where each sample begins, one more than there are samples.

    Fields of one entry per token share the starts of the labels. facts: small things about the whole; optional: the
    inputs that only some samples have.
    """

    arrays: dict[str, FileArray]
    starts: dict[str, FileArray]
    facts: dict[str, Any]

    def sample(self, number: int) -> Sample:
        """The sample, as private arrays."""
        labels = self._part(LABELS, number)
        inputs = {name: self._part(name, number) for name in self.facts["inputs"]}
        for name in self.facts[OPTIONAL]:
            if not len(inputs[name]):
                del inputs[name]
        return Sample(inputs=inputs, labels=labels, weights=self._part(WEIGHTS, number))

    def _part(self, name: str, number: int) -> np.ndarray:
        starts = self.starts.get(name, self.starts[LABELS])
        return self.arrays[name][starts[number] : starts[number + 1]]


@dataclass
class SampleArrayWriter:
    """Appends samples to the files of a folder; `finish` seals it."""

    folder: Path
    _files: dict[str, _GrowingArray] = field(default_factory=dict)
    _sizes: dict[str, list[int]] = field(default_factory=dict)
    _count: int = 0
    _optional: set[str] = field(default_factory=set)

    def append(self, sample: Sample) -> None:
        """A sample may have inputs that others have not."""
        fields = {**sample.inputs, LABELS: sample.labels, WEIGHTS: sample.weights}
        for name in fields.keys() - self._files.keys():
            self._files[name] = _GrowingArray(self.folder / f"{name}.npy", fields[name].dtype)
            self._sizes[name] = [0] * self._count
            self._optional |= {name} if self._count else set()
        for name, sizes in self._sizes.items():
            values = fields.get(name)
            if values is None:
                self._optional.add(name)
                sizes.append(0)
            else:
                self._files[name].append(values)
                sizes.append(len(values))
        self._count += 1

    def finish(self, per_sample: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """per_sample: further arrays with one entry (or row) per sample."""
        for array in self._files.values():
            array.close()
        lengths = self._sizes[LABELS]
        for name, sizes in self._sizes.items():
            if name == LABELS or sizes != lengths:
                starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
                np.save(self.folder / f"{name}.{STARTS}.npy", starts)
        for name, values in per_sample.items():
            np.save(self.folder / f"{name}.npy", values)
        inputs = [name for name in self._files if name not in (LABELS, WEIGHTS)]
        seal(self.folder, {**facts, "inputs": inputs, OPTIONAL: sorted(self._optional)})


def read_columns(folder: Path) -> SampleArrays:
    """Open a cache after comparing each file with the seal.

    Raises: ValueError saying what is damaged.
    """
    names, facts = read_seal(folder)
    try:
        arrays = {name.removesuffix(".npy"): FileArray.of_npy(folder / name) for name in names}
    except DataError as error:
        raise ValueError(str(error)) from None
    ending = f".{STARTS}"
    starts = {name.removesuffix(ending): values for name, values in arrays.items() if name.endswith(ending)}
    return SampleArrays({name: values for name, values in arrays.items() if not name.endswith(ending)}, starts, facts)


class _GrowingArray:
    """A one-dimensional .npy file that is appended to; its header leaves room for the final size."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._stream: BinaryIO = path.open("wb")
        self._dtype, self._size = dtype, 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        assert (values.ndim, values.dtype) == (1, self._dtype), (values.shape, values.dtype, self._dtype)
        self._stream.write(np.ascontiguousarray(values).tobytes())
        self._size += len(values)

    def close(self) -> None:
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def _write_header(self) -> None:
        about = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._size,)}
        np.lib.format.write_array_header_1_0(self._stream, about)
