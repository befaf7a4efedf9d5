"""Matrices of fp32 models whose numbers half precision has, held in two bytes each where a CPU only answers.

Published weights are fp16 mostly; in fp32 they take twice the memory, and a row or a few are multiplied as fast as the
matrix comes from memory. FBGEMM's kernel reads fp16 and computes in fp32: nothing is rounded but sums.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

_ENGINES = ("x86", "fbgemm")  # of torch.backends.quantized, with FBGEMM's kernels for fp16


class HalfWeight(torch.Tensor):
    """A frozen fp32 matrix `[out, in]`, exactly, as FBGEMM packs it. It shows its shape and dtype to those who ask, and
    its numbers to any operation, for which they are unpacked; `multiply` reads them as they lie. It cannot be written.

    rows: the same in fp16 `[out, in]`, where rows are looked up as well; None: they are unpacked.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportPrivateImportUsage, reportAssignmentType]

    packed: Any
    rows: torch.Tensor | None

    @staticmethod
    def __new__(cls, packed: Any, shape: torch.Size, rows: torch.Tensor | None = None) -> HalfWeight:
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=torch.device("cpu"))
        made.packed, made.rows = packed, rows
        return made

    @classmethod
    def of(cls, weight: torch.Tensor, *, has_rows: bool = False) -> HalfWeight:
        packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), None)
        return cls(packed, weight.shape, weight.half() if has_rows else None)

    def multiply(self, input: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`functional.linear` by this matrix. Beside other rows the sums of a row may be rounded otherwise."""
        if not input.numel():
            return input.new_zeros(*input.shape[:-1], self.shape[0])
        found = torch.ops.quantized.linear_dynamic_fp16.default(input.float(), self.packed)
        return found if bias is None else found.add_(bias)

    def numbers(self) -> torch.Tensor:
        """As a plain tensor, a new one."""
        if self.rows is not None:
            return self.rows.float()
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].packed, args[0].shape, args[0].rows)
        if func is torch.ops.aten.embedding.default and args[0].rows is not None:
            return functional.embedding(args[1], args[0].rows).float()
        assert not func._schema.is_mutable, f"{func} would write into weights that are packed"
        plain_args, plain_kwargs = tree_map_only(cls, cls.numbers, (args, kwargs or {}))
        return func(*plain_args, **plain_kwargs)


def fits_half(weight: torch.Tensor) -> bool:
    """Whether this machine has the kernel, and half precision every number of the fp32 matrix."""
    has_kernel = platform.machine() in ("x86_64", "AMD64") and torch.backends.quantized.engine in _ENGINES
    # Most that do not fit show it in the first row.
    return has_kernel and all(part.half().float().equal(part) for part in (weight[:1], weight))
