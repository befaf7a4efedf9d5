"""Tensors by name that are made when they are asked for, and the memory that they take while they are mapped."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Lazy(Mapping[str, "torch.Tensor"]):
    """Tensors by name, each read or computed anew whenever it is asked for."""

    def __contains__(self, name: object) -> bool:
        return any(name == own for own in self)  # a Mapping would read the tensor for it

    def meta(self, name: str) -> torch.Tensor:
        """A tensor's shape and dtype, on the meta device; no data are read where that can be avoided."""
        return self[name].to("meta")

    def forget(self, name: str) -> None:
        """Give back the memory that reading `name` took; its tensor is read again when touched."""

    def twin(self, name: str) -> str:
        """The first name of the tensor that `name` is only another name of."""
        return name


class TensorSubset(Lazy):
    """Some of the tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> None:
        self._tensors, self._names = tensors, dict.fromkeys(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def meta(self, name: str) -> torch.Tensor:
        return meta_of(self._tensors, name)

    def forget(self, name: str) -> None:
        forget(self._tensors, name)

    def twin(self, name: str) -> str:
        return twin_of(self._tensors, name)


class Joined(TensorSubset):
    """The tensors of both mappings, whose names differ."""

    def __init__(self, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
        super().__init__(first, [*first, *second])
        self._second = second

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._holder(name)[name]

    def meta(self, name: str) -> torch.Tensor:
        return meta_of(self._holder(name), name)

    def forget(self, name: str) -> None:
        forget(self._holder(name), name)

    def twin(self, name: str) -> str:
        return twin_of(self._holder(name), name)

    def _holder(self, name: str) -> Mapping[str, torch.Tensor]:
        return self._second if name in self._second else self._tensors


def meta_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Shape and dtype of a tensor of any mapping, on the meta device."""
    return tensors.meta(name) if isinstance(tensors, Lazy) else tensors[name].to("meta")


def forget(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Give back the memory of a tensor where it can be read again."""
    if isinstance(tensors, Lazy):
        tensors.forget(name)


def twin_of(tensors: Mapping[str, torch.Tensor], name: str) -> str:
    return tensors.twin(name) if isinstance(tensors, Lazy) else name


def bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def is_copy(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same shape and numbers, also where these are NaN."""
    if first.equal(second):
        return True
    same_kind = first.shape == second.shape and first.dtype == second.dtype
    return same_kind and bytes_of(first) == bytes_of(second)


def forget_pages(tensor: torch.Tensor) -> None:
    """Let the system take back the pages of a mapped tensor.

    Read pages of a mapping count as the process's memory as long as the mapping stands; without this, loading would
    look (and in a container with a limit, be) twice as large as the weights. Whole pages inside the tensor only.
    """
    if not sys.platform.startswith("linux"):
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
