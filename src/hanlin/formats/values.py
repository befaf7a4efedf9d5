"""Whether tensors hold numbers: NaN, inf and zeros alone are found while they are read anyway, and told or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.lazy import TensorSubset, forget, meta_of

if TYPE_CHECKING:
    import torch

_SHOWN = 4


@dataclass
class ValueReport:
    """What was found in the tensors that passed.

    names: all of them; broken: NaN, inf and numbers in all of those that hold the first two; zeros: those that hold
    nothing but zeros.
    """

    names: set[str] = field(default_factory=set)
    broken: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    zeros: set[str] = field(default_factory=set)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self.names.add(name)
        if not tensor.numel() or not tensor.is_floating_point():
            return
        if tensor.dtype.itemsize == 1:
            tensor = tensor.float()
        least, most = (value.item() for value in tensor.aminmax())
        if not _is_number(least) or not _is_number(most):
            self.broken[name] = (int(tensor.isnan().sum()), int(tensor.isinf().sum()), tensor.numel())
        elif least == most == 0:
            self.zeros.add(name)

    def broken_lines(self) -> list[str]:
        """A line for each tensor that holds something else than numbers."""
        return [
            f"{name}: {nan:,} NaN, {inf:,} inf of {count:,} numbers" for name, (nan, inf, count) in self.broken.items()
        ]

    def __str__(self) -> str:
        """A sentence on what is no number; '' where all are."""
        listed = "; ".join(shorten(self.broken_lines(), _SHOWN))
        return f"{len(self.broken)} of {len(self.names)} tensors hold no numbers: {listed}" if self.broken else ""


def count_values(tensors: Mapping[str, torch.Tensor]) -> ValueReport:
    """Look at all tensors, one in memory at a time."""
    report = ValueReport()
    for name in tensors:
        report.add(name, tensors[name])
        forget(tensors, name)
    return report


def refuse_broken(where: object, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, if it holds numbers.

    where: the file or folder that it is from, for the message.
    Raises: CheckpointError.
    """
    report = ValueReport()
    report.add(name, tensor)
    if report.broken:
        raise CheckpointError(
            f"{where}: holds something else than numbers ({report.broken_lines()[0]}): what wrote it had diverged or "
            f"failed; take an earlier checkpoint. `hanlin inspect --values {where}` lists all such tensors"
        )
    return tensor


def cast(where: object, name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor in a dtype (None: its own); one of whole numbers, which is quantised, stays as it is.

    Raises: CheckpointError when it holds something else than numbers, or such as the dtype cannot hold.
    """
    refuse_broken(where, name, tensor)
    if dtype is None or dtype == tensor.dtype or not tensor.is_floating_point():
        return tensor
    kept = tensor.to(dtype)
    report = ValueReport()
    report.add(name, kept)
    if report.broken:
        word, largest = str(dtype).removeprefix("torch."), float(tensor.abs().max())
        raise CheckpointError(f"{where}: {name} has numbers up to {largest:.3g}, which {word} cannot hold; take bf16")
    return kept


class Cast(TensorSubset):
    """Tensors in a dtype (None: each in its own); what is in them is noted in `report` on its way.

    Raises: CheckpointError, when a tensor is read, for numbers that the dtype cannot hold.
    """

    def __init__(self, where: object, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
        super().__init__(tensors, tensors)
        self._where, self._dtype = where, dtype
        self.report = ValueReport()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = super().__getitem__(name)
        self.report.add(name, tensor)
        if self._dtype is None or not tensor.is_floating_point():
            return tensor
        is_broken = name in self.report.broken
        return tensor.to(self._dtype) if is_broken else cast(self._where, name, tensor, self._dtype)

    def meta(self, name: str) -> torch.Tensor:
        tensor = super().meta(name)
        return tensor if self._dtype is None or not tensor.is_floating_point() else tensor.to(self._dtype)


class Sound(TensorSubset):
    """Tensors that are refused (CheckpointError) when they are read and hold something else than numbers."""

    def __init__(self, where: object, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors, tensors)
        self._where = where

    def __getitem__(self, name: str) -> torch.Tensor:
        return refuse_broken(self._where, name, super().__getitem__(name))


def stored_dtype(tensors: Mapping[str, torch.Tensor]) -> str:
    """The dtype of most of the plain numbers, by torch's word; '' where there are none."""
    sizes: dict[str, int] = {}
    for name in tensors:
        tensor = meta_of(tensors, name)
        if tensor.is_floating_point():
            word = str(tensor.dtype).removeprefix("torch.")
            sizes[word] = sizes.get(word, 0) + tensor.numel()
    return max(sizes, key=lambda word: sizes[word], default="")


def _is_number(value: float) -> bool:
    return value - value == 0
