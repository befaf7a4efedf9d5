"""Weight files: one tensor at a time out of `.safetensors`, `.bin` and `.pt`, alone or in shards, and into them.

Files are memory-mapped. No code from a file is ever run: pickles are read with `weights_only`.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pickle
import re
import shutil
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5 * 10**9
"""A safetensors file grows to this size before the next one is begun (the hub's habit)."""

_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", "adapter.safetensors", "adapter_model.safetensors")
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_DTYPE_WORDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class Weights(Mapping[str, "torch.Tensor"]):
    """Tensors by name, each read when it is asked for; `files` are those that hold them."""

    files: tuple[Path, ...]

    def forget(self, name: str) -> None:
        """Give back the memory that reading `name` took; its tensor is read again when touched."""
        raise NotImplementedError


def open_weights(path: Path) -> Weights:
    """The tensors of a weights file, or of a folder that holds one or several shards with their index.

    Raises: CheckpointError naming the file when there is none, or when it is damaged or unsafe to read.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file or folder")
    return _open_file(path)


def find_weights(folder: Path) -> Path | None:
    """The one weights file (or the index of the shards) in a folder; None when there is none, or no clear one."""
    candidates = [folder / f"{name}{suffix}" for suffix in (".index.json", "") for name in _WEIGHT_NAMES]
    known = [path for path in candidates if path.is_file()]
    others = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _WEIGHT_ENDINGS]
    return known[0] if known else others[0] if len(others) == 1 else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises: CheckpointError.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); write or copy the file again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, this is a {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensor by tensor; never more than one of them is in memory for it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in tensors:
        tensor = tensors[name]
        word = _DTYPE_WORDS[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": word, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in tensors:
            file.write(_bytes_of(tensors[name]))
        file.flush()
        os.fsync(file.fileno())


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """`model.safetensors`, or numbered shards and their index when they would be larger than `shard_bytes`."""
    write_weights(folder / "model.safetensors", tensors, shard_bytes)


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int | None = None) -> None:
    """Write a file of the kind that its ending says; numbered shards and their index if it exceeds `shard_bytes`."""
    write = write_safetensors if path.suffix == ".safetensors" else write_pickle
    sizes = {name: tensors[name].nbytes for name in tensors}
    shards = [list(sizes)] if shard_bytes is None else _divide(sizes, shard_bytes)
    if len(shards) == 1:
        write(path, tensors)
        return
    place = {}
    for number, names in enumerate(shards, start=1):
        file = f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
        write(path.with_name(file), _Part(tensors, names))
        place |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": place}
    write_json(path.with_name(f"{path.name}.index.json"), index)


def write_pickle(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """An ordered dict by `torch.save`, as the originals write it; needs memory for what is not mapped from a file."""
    import torch

    whole = OrderedDict((name, _alone(tensors[name].detach())) for name in tensors)
    with path.open("wb") as file:
        torch.save(whole, file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def published(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `target` to write to; it becomes `target` in one step when all went well, else it vanishes.

    Raises: CheckpointError when `target` is there already and must not be overwritten.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target}: exists already; choose another target or ask for overwriting")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield beside / target.name
        _swap_in(beside / target.name, target, beside / "replaced")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap_in(new: Path, target: Path, replaced: Path) -> None:
    if target.exists():
        target.rename(replaced)
    try:
        new.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise


def _open_folder(folder: Path) -> Weights:
    path = find_weights(folder)
    if path is None:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        expected = f"{', '.join(_WEIGHT_NAMES[:2])} or one file {'/'.join(_WEIGHT_ENDINGS[:3])}"
        raise CheckpointError(f"{folder}: no weights; expected {expected}; found: {found}")
    return _Shards(path) if path.name.endswith(".index.json") else _open_file(path)


def _open_file(path: Path) -> Weights:
    if path.name.endswith(".index.json"):
        return _Shards(path)
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path)


class _Safetensors(Weights):
    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.files = (path,)
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}); copy it again") from error
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def forget(self, name: str) -> None:
        forget_pages(self[name])


class _Pickle(Weights):
    def __init__(self, path: Path) -> None:
        self.files = (path,)
        self._tensors, self._is_mapped = _load_pickle(path)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def forget(self, name: str) -> None:
        if self._is_mapped:
            forget_pages(self._tensors[name])


class _Shards(Weights):
    def __init__(self, index: Path) -> None:
        place = read_json(index).get("weight_map")
        if not isinstance(place, dict):
            raise CheckpointError(f"{index}: the key weight_map (tensor name -> file) is missing")
        shards = {file: index.parent / file for file in place.values()}
        if missing := [path.name for path in shards.values() if not path.is_file()]:
            raise CheckpointError(
                f"{index}: lists files that are not there: {', '.join(sorted(missing))}; copy them too"
            )
        opened = {file: _open_file(path) for file, path in shards.items()}
        lost = [f"{name} ({file})" for name, file in place.items() if name not in opened[file]]
        if lost:
            raise CheckpointError(f"{index}: lists tensors that are not in their file: {', '.join(lost[:5])}")
        self._place = {name: weights for weights in opened.values() for name in weights}
        self.files = (index, *shards.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._place[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def forget(self, name: str) -> None:
        self._place[name].forget(name)


class _Part(Mapping[str, "torch.Tensor"]):
    """Some of the tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: list[str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _load_pickle(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors, and whether they are mapped (files of torch before 1.6 cannot be)."""
    import torch

    try:
        is_mapped = zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(refused(path, error)) from None  # torch's own text advises to read it all the same
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(damaged(path, _first_line(error))) from error
    return _only_tensors(path, loaded), bool(is_mapped)


def _only_tensors(path: Path, loaded: object) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: names with tensors are expected, this holds a {type(loaded).__name__}")
    odd = [f"{name}: {type(value).__name__}" for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(f"{path}: names with tensors are expected; found {', '.join(odd[:5])}")
    return loaded


def refused(path: Path, error: pickle.UnpicklingError) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return damaged(path, "its beginning is not that of a pickle of tensors")
    return (
        f"{path}: holds {named[1]} beside tensors and is refused, since reading it could run code from the file; "
        "ask its author for safetensors"
    )


def damaged(path: Path, reason: str) -> str:
    return f"{path}: damaged or not a torch file, {path.stat().st_size:,} bytes ({reason}); copy it again"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that shares its storage with nothing: torch.save writes whole storages."""
    is_alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_alone else tensor.contiguous().clone()


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
