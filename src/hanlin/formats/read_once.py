"""A file of weights that is hashed and looked at while it is read once, before it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hanlin.core.remembered import HOME_CACHE, recalled, remembered, sha256_of
from hanlin.formats.values import ValueReport

__all__ = ["known_values", "sha256_and_values"]

_QUESTION = "values of a file, 1"
_PIECE_BYTES = 1 << 24
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""The words of safetensors, and torch's."""


def sha256_and_values(path: Path) -> str:
    """The sha256 of a file; what is in its tensors, by the file's names, is remembered for `known_values`.

    Of one that is no whole safetensors file nothing but the hash is told.
    """
    digests: list[str] = []

    def look() -> dict[str, Any]:
        digest, report = _read(path)
        digests.append(digest)
        return report.as_json()

    if path.suffix == ".safetensors":
        try:
            remembered(HOME_CACHE, [path], _QUESTION, look)
        except (ValueError, KeyError, TypeError, AttributeError):  # the hash tells what is wrong
            return sha256_of(path)
    return digests[0] if digests else sha256_of(path)


def known_values(files: Sequence[Path]) -> ValueReport | None:
    """What `sha256_and_values` saw in all of some files; None where one was not read so, or was changed since."""
    whole = ValueReport()
    for file in files:
        known = recalled(HOME_CACHE, [file], _QUESTION)
        if known is None:
            return None
        whole.join(ValueReport.of(known))
    return whole


def _read(path: Path) -> tuple[str, ValueReport]:
    """One tensor in memory at a time.

    Raises: ValueError, KeyError, TypeError, AttributeError for what is no whole safetensors file.
    """
    import torch

    digest, report = hashlib.sha256(), ValueReport()
    with path.open("rb") as stream:
        start = stream.read(8)
        header = stream.read(min(int.from_bytes(start, "little"), path.stat().st_size))
        digest.update(start + header)
        listed = {name: facts for name, facts in json.loads(header).items() if name != "__metadata__"}
        for name, facts in sorted(listed.items(), key=lambda one: one[1]["data_offsets"]):
            begin, end = facts["data_offsets"]
            if begin != stream.tell() - len(start) - len(header):
                raise ValueError(f"{name}: does not begin where the one before it ends")
            content = bytearray(end - begin)
            if stream.readinto(content) != len(content):
                raise ValueError(f"{name}: cut")
            digest.update(content)
            dtype = getattr(torch, _DTYPES[facts["dtype"]])
            report.add(name, torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype))
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest(), report
