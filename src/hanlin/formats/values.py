"""Whether tensors hold numbers: NaN, inf and zeros alone are found while they are read anyway, and told or refused."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.progress import counted
from hanlin.formats.lazy import TensorSubset, forget, meta_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_SHOWN = 4


@dataclass
class ValueReport:
    """What was found in the tensors that passed.

    names: all of them; broken: NaN, inf and numbers in all of those that hold the first two; zeros: those that hold
    nothing but zeros; largest: what is farthest from 0 in the others, and in which of them it is.
    """

    names: set[str] = field(default_factory=set)
    broken: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    zeros: set[str] = field(default_factory=set)
    largest: tuple[float, str] = (0.0, "")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ValueReport:
        """The report of its `as_json`."""
        broken = {name: tuple(counts) for name, counts in values["broken"].items()}
        largest, name = values["largest"]
        return cls(set(values["names"]), broken, set(values["zeros"]), (largest, name))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "names": sorted(self.names), "zeros": sorted(self.zeros)}

    def join(self, other: ValueReport) -> None:
        """Take in what was found in other tensors."""
        self.names |= other.names
        self.broken |= other.broken
        self.zeros |= other.zeros
        self.largest = max(self.largest, other.largest)

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
        else:
            self.largest = max(self.largest, (max(-least, most), name))

    def refuse(self, where: object, dtype: torch.dtype | None = None) -> None:
        """See that all are numbers, and such as a dtype can hold (None: whatever holds them).

        where: the file or folder that they are from, for the message.
        Raises: CheckpointError.
        """
        if self.broken:
            raise CheckpointError(
                f"{where}: holds something else than numbers ({self.broken_lines()[0]}): what wrote it had diverged or "
                f"failed; take an earlier checkpoint. `hanlin inspect --values {where}` lists all such tensors"
            )
        largest, name = self.largest
        if dtype is not None and not _is_number(_as_double(largest).to(dtype).item()):
            word = str(dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{where}: {name} has numbers up to {largest:.3g}, which {word} cannot hold; take bf16"
            )

    def tell_zeros(self, where: object) -> None:
        """Warn of weights without any value but 0: of biases that is usual, of others it is not."""
        if found := [name for name in sorted(self.zeros) if not name.endswith("bias")]:
            log.warning(
                "%s: %d of %d tensors hold nothing but zeros (%s); see that what wrote them had not failed",
                *(where, len(found), len(self.names), "; ".join(shorten(found, _SHOWN))),
            )

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
    for name in counted(tensors, "Looking at the weights", len(tensors)):
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
    report.refuse(where)
    return tensor


def cast(where: object, name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor in a dtype (None: its own); one of whole numbers, which is quantised, stays as it is.

    Raises: CheckpointError when it holds something else than numbers, or such as the dtype cannot hold.
    """
    report = ValueReport()
    report.add(name, tensor)
    report.refuse(where, dtype)
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


class Cast(TensorSubset):
    """Tensors in a dtype (None: each in its own); what is in them is noted in `report` on its way.

    exact: names of those that stay in their own dtype where this one would round them.
    Raises: CheckpointError, when a tensor is read, for numbers that the dtype cannot hold.
    """

    def __init__(
        self,
        where: object,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
        exact: Container[str] = (),
    ) -> None:
        super().__init__(tensors, tensors)
        self._where, self._dtype, self._exact = where, dtype, exact
        self.report = ValueReport()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = super().__getitem__(name)
        self.report.add(name, tensor)
        dtype = self._dtype_of(name, tensor)
        return tensor.to(dtype) if name in self.report.broken else cast(self._where, name, tensor, dtype)

    def meta(self, name: str) -> torch.Tensor:
        tensor = super().meta(name)
        return tensor.to(self._dtype_of(name, tensor))

    def _dtype_of(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        import torch

        if self._dtype is None or not tensor.is_floating_point():
            return tensor.dtype
        is_rounded = torch.promote_types(tensor.dtype, self._dtype) != self._dtype
        return tensor.dtype if is_rounded and name in self._exact else self._dtype


class Sound(TensorSubset):
    """Tensors that are refused (CheckpointError) when they are read and hold something else than numbers, or such as
    the dtype that they are for cannot hold (None: their own). report: on those that were read.
    """

    def __init__(self, where: object, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> None:
        super().__init__(tensors, tensors)
        self.where, self._dtype = where, dtype
        self.report = ValueReport()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = super().__getitem__(name)
        self.report.add(name, tensor)
        self.report.refuse(self.where, self._dtype)
        return tensor


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


def _as_double(value: float) -> torch.Tensor:
    import torch

    return torch.tensor(value, dtype=torch.float64)
