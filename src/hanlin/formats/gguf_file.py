"""GGUF, the file of llama.cpp: metadata, then tensors, one in memory at a time. The package gguf does the work.

As llama.cpp's own conversion does it, vectors are in fp32 whatever the matrices are in, and a matrix whose rows are no
multiple of 32 stays in fp16 where the others are packed in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.core.os_errors import writable
from hanlin.formats.lazy import forget, meta_of

if TYPE_CHECKING:
    import torch

__all__ = ["PACKINGS", "write_gguf"]

PACKINGS = ("q8_0",)
"""32 numbers of a row as 8 bits each, with a scale in fp16: the error is at most half a scale, 1/254 of the largest."""

_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_OF_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BLOCK = 32
_LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}  # the scale is in fp16, for up to 127 of it


def write_gguf(
    path: Path,
    architecture: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    packing: str | None = None,
) -> None:
    """Write a file; packing: of the matrices, one of `PACKINGS` (None: each in the dtype that it has).

    values: metadata under its full names, "{arch}" standing for the architecture; a float is stored in fp32, a whole
    number in 32 bits without sign. tensors: by llama.cpp's names, with the shapes that torch gives them.
    Raises: DataError where the disk does not take it, CheckpointError for numbers that the packing cannot hold.
    """
    with writable(path):
        _write(path, architecture, values, tensors, packing)


def _write(
    path: Path, architecture: str, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], packing: str | None
) -> None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, architecture)
    kinds = {name: _kind(meta_of(tensors, name), packing) for name in tensors}
    matrices = [kind for name, kind in kinds.items() if meta_of(tensors, name).dim() > 1]
    main = packing.upper() if packing else max(set(matrices), key=matrices.count)
    writer.add_file_type(_FILE_TYPES[main])
    writer.add_quantization_version(2)
    for name, value in values.items():
        _add(writer, name.format(arch=architecture), value)
    for name, kind in kinds.items():
        meta, stored = meta_of(tensors, name), GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[stored]
        count = meta.numel() // block * size
        writer.add_tensor_info(name, tuple(meta.shape), np.dtype(np.float32), count, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, kind in kinds.items():
        numbers = tensors[name].detach().float().contiguous().numpy()
        largest = float(np.abs(numbers).max(initial=0))
        if largest > _LARGEST.get(kind, math.inf):
            raise CheckpointError(f"{name} has numbers up to {largest:.3g}, which {kind} cannot hold; take bf16")
        writer.write_tensor_data(quants.quantize(numbers, GGMLQuantizationType[kind]))
        forget(tensors, name)
    writer.close()


def _kind(tensor: torch.Tensor, packing: str | None) -> str:
    """The word of GGML for how a tensor is stored; tensor: its shape and dtype are looked at."""
    if tensor.dim() < 2:
        return "F32"
    if packing is None:
        return _OF_DTYPES[str(tensor.dtype).removeprefix("torch.")]
    return packing.upper() if tensor.shape[-1] % _BLOCK == 0 else "F16"


def _add(writer: Any, name: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(name, value)
