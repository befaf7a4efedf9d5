"""Files of weights that are read once for their hash and for what is in them: ahead of loading, or while they load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hanlin.core.errors import CheckpointError
from hanlin.core.manifest import MANIFEST, check_manifest
from hanlin.core.remembered import (
    HOME_CACHE,
    MIN_REMEMBERED_BYTES,
    SHA256,
    keep,
    recalled,
    remembered,
    sha256_of,
    state_of,
)
from hanlin.formats.lazy import bytes_of
from hanlin.formats.values import Sound, ValueReport

if TYPE_CHECKING:
    import torch

__all__ = ["known_values", "passing_unread", "sha256_and_values", "unread_files"]

_QUESTION = "values of a file, 1"
_PIECE_BYTES = 1 << 24
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""The words of safetensors, and torch's."""
_IS_NO_SAFETENSORS = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class _Laid:
    """How tensors lie in a file, one behind the other: what stands before them, and name, dtype and bytes of each."""

    header: bytes
    tensors: list[tuple[str, str, int]]

    @classmethod
    def read(cls, stream: BinaryIO, file_size: int) -> _Laid:
        """Raises: ValueError, KeyError, TypeError, AttributeError for what is no safetensors file without gaps."""
        start = stream.read(8)
        header = stream.read(min(int.from_bytes(start, "little"), file_size))
        listed = {name: facts for name, facts in json.loads(header).items() if name != "__metadata__"}
        tensors, place = [], 0
        for name, facts in sorted(listed.items(), key=lambda one: one[1]["data_offsets"]):
            begin, end = facts["data_offsets"]
            if begin != place:
                raise ValueError(f"{name}: does not begin where the one before it ends")
            tensors.append((name, _DTYPES[facts["dtype"]], end - begin))
            place = end
        return cls(start + header, tensors)

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(size for _, _, size in self.tensors)


# --- ahead ---


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
        except _IS_NO_SAFETENSORS:  # the hash tells what is wrong
            return sha256_of(path)
    return digests[0] if digests else sha256_of(path)


def known_values(files: Sequence[Path]) -> ValueReport | None:
    """What was seen in all of some files; None where one was not read so, or was changed since."""
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

    report = ValueReport()
    with path.open("rb") as stream:
        laid = _Laid.read(stream, path.stat().st_size)
        digest = hashlib.sha256(laid.header)
        for name, word, size in laid.tensors:
            content = bytearray(size)
            if stream.readinto(content) != size:
                raise ValueError(f"{name}: cut")
            digest.update(content)
            dtype = getattr(torch, word)
            report.add(name, torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype))
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest(), report


# --- while they load ---


def unread_files(folder: Path) -> list[Path]:
    """The files of a base folder that `passing_unread` compares with the manifest: large, and never read here."""
    files = sorted(folder.absolute().glob("*.safetensors")) if (folder / MANIFEST).is_file() else []
    if sum(file.stat().st_size for file in files) < MIN_REMEMBERED_BYTES:
        return []
    return [file for file in files if recalled(HOME_CACHE, [file], SHA256) is None and _laid(file) is not None]


def passing_unread(folder: Path | None, tensors: Sound, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of those names, each of which may be forgotten when the next is asked for.

    Those of files that nobody has read come in the order in which they lie there, with the other tensors between them:
    their bytes are hashed on the way, and what was found is remembered.
    folder: the base folder whose tensors they are; None: nothing is hashed.
    Raises: CheckpointError, at the end, for a folder that is not as its manifest says; as soon as something is read
    that holds no numbers.
    """
    wanted, digests = dict.fromkeys(names), dict[Path, str]()
    try:
        for file in [] if folder is None else unread_files(folder):
            laid, state = _laid(file), state_of([file])
            if laid is None or any(name not in tensors for name, _, _ in laid.tensors):
                continue
            digest = hashlib.sha256(laid.header)
            with ThreadPoolExecutor(1) as thread:
                for name, _, _ in laid.tensors:
                    tensor = tensors[name]
                    hashed = thread.submit(digest.update, bytes_of(tensor))
                    if name in wanted:
                        del wanted[name]
                        yield name, tensor
                    hashed.result()
                    tensors.forget(name)
            digests[file] = digest.hexdigest()
            keep(HOME_CACHE, [file], SHA256, state, digests[file])
            keep(HOME_CACHE, [file], _QUESTION, state, _part(tensors.report, laid).as_json())
        for name in wanted:
            yield name, tensors[name]
            tensors.forget(name)
    except CheckpointError:
        if folder is not None:
            check_manifest(folder)  # what was changed since it was written is told so
        raise
    if folder is not None and digests:
        check_manifest(folder, lambda file: digests.get(file) or sha256_of(file))


def _laid(file: Path) -> _Laid | None:
    """None for what is no whole safetensors file: its hash is taken of the file as it is."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            laid = _Laid.read(stream, size)
    except _IS_NO_SAFETENSORS:
        return None
    return laid if laid.num_bytes == size else None


def _part(report: ValueReport, laid: _Laid) -> ValueReport:
    """What of a report without broken tensors is of one file."""
    own = {name for name, _, _ in laid.tensors}
    return ValueReport(own, {}, report.zeros & own, report.largest if report.largest[1] in own else (0.0, ""))
