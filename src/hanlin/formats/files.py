"""Weight files: one tensor at a time out of `.safetensors`, `.bin` and `.pt`, alone or in shards, and into them.

Files are memory-mapped. No code from a file is ever run: pickles are read with `weights_only`.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import check_readable, check_regular, has_file, read_json_object, write_json
from hanlin.core.manifest import check_complete
from hanlin.formats.lazy import Lazy, TensorSubset, bytes_of, forget, forget_pages, meta_of
from hanlin.formats.torch_file import MAX_TENSORS, write_torch_files
from hanlin.formats.training_file import check_single, mapped, open_training_file, wrapper_of
from hanlin.formats.whereabouts import explain_missing, is_state

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5 * 10**9
"""A safetensors file grows to this size before the next one is begun (the hub's habit)."""

_OF_ADAPTERS = ("adapter.safetensors", "adapter_model.safetensors", "adapter_model.bin")
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", *_OF_ADAPTERS)
TORCH_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHT_ENDINGS = (".safetensors", *TORCH_ENDINGS, ".gguf")
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


class Weights(Lazy):
    """Tensors by name, each read when it is asked for; `files` are those that hold them.

    layout: the name of the layout where the way of files alone tells it; lying: how the files lie, where that is worth
    a word; iteration: of the training program, and arguments: those it was given, where they are stored; hint: what to
    look at first when the tensors do not fit their model.
    """

    files: tuple[Path, ...]
    layout: str | None = None
    lying: str = ""
    iteration: int | None = None
    hint: str = ""
    arguments: Mapping[str, Any] = MappingProxyType({})


def open_weights(path: Path) -> Weights:
    """The tensors of a weights file, or of a folder that holds one or several shards with their index.

    Raises: CheckpointError naming the file when there is none, or when it is damaged or unsafe to read.
    """
    path = Path(path)
    check_regular(path, CheckpointError)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    weights = _open_folder(path) if path.is_dir() else _open_file(path)
    while prefix := wrapper_of(weights):
        weights = _Unwrapped(weights, prefix)
    return weights


def find_weights(folder: Path) -> Path | None:
    """The one weights file (or the index of the shards) in a folder; None when there is none, or no clear one."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _WEIGHT_ENDINGS and has_file(path)]
    others = [path for path in files if not is_state(path.name)]
    return find_named_weights(folder) or (others[0] if len(others) == 1 else None)


def find_named_weights(folder: Path) -> Path | None:
    """The weights file in a folder, or the index of the shards, that has one of the usual names."""
    candidates = [folder / f"{name}{suffix}" for suffix in (".index.json", "") for name in _WEIGHT_NAMES]
    return next((path for path in candidates if has_file(path)), None)


def read_shard_index(index: Path) -> dict[str, str]:
    """Tensor -> file, of shards that all lie beside their index.

    Raises: CheckpointError.
    """
    place = read_json_object(index).get("weight_map")
    if not isinstance(place, dict):
        raise CheckpointError(f"{index}: the key weight_map (tensor name -> file) is missing")
    if odd := [file for file in place.values() if not isinstance(file, str) or Path(file).name != file]:
        raise CheckpointError(f"{index}: names {odd[0]!r:.100}; the files of an index lie in its own folder")
    files = sorted(set(place.values()))
    if missing := [file for file in files if not os.path.isfile(index.parent / file)]:  # whatever the name
        raise CheckpointError(f"{index}: lists files that are not there: {', '.join(shorten(missing))}; copy them too")
    return place


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensor by tensor; never more than one of them is in memory for it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in tensors:
        tensor = meta_of(tensors, name)
        word = _DTYPE_WORDS[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": word, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in tensors:
            file.write(bytes_of(tensors[name]))
            forget(tensors, name)
        file.flush()
        os.fsync(file.fileno())


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """`model.safetensors`, or numbered shards and their index when they would be larger than `shard_bytes`."""
    write_weights(folder / "model.safetensors", tensors, shard_bytes)


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int | None = None) -> None:
    """Write a file of the kind that its ending says; numbered shards and their index if it exceeds `shard_bytes`."""
    write = write_safetensors if path.suffix == ".safetensors" else write_pickle
    sizes = {name: meta_of(tensors, name).nbytes for name in tensors}
    shards = [list(sizes)] if shard_bytes is None else _divide(sizes, shard_bytes)
    if len(shards) == 1:
        write(path, tensors)
        return
    place = {}
    for number, names in enumerate(shards, start=1):
        file = f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
        write(path.with_name(file), TensorSubset(tensors, names))
        place |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": place}
    write_json(path.with_name(f"{path.name}.index.json"), index)


def write_pickle(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """An ordered dict of `torch.save`, as the originals write it; never more than one tensor is in memory for it."""
    write_torch_files([path], tensors, lambda _, tensor: [tensor], lambda _, flat: OrderedDict(flat))


def _open_folder(folder: Path) -> Weights:
    check_complete(folder)
    path = find_weights(folder)
    if path is None:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        expected = f"{', '.join(_WEIGHT_NAMES[:2])} or one file {'/'.join(_WEIGHT_ENDINGS[:3])}"
        raise CheckpointError(
            f"{folder}: no weights; {explain_missing(folder) or f'expected {expected}; found: {found}'}"
        )
    return _Shards(path) if path.name.endswith(".index.json") else _open_file(path)


def _open_file(path: Path) -> Weights:
    if path.name.endswith(".index.json"):
        return _Shards(path)
    if path.suffix == ".gguf":
        raise CheckpointError(f"{path}: a GGUF file, which is written and not read; take the weights it was made of")
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path)


class _Safetensors(Weights):
    def __init__(self, path: Path) -> None:
        self.files = (path,)
        check_readable(path)
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}); copy it again") from error
        self._names = list(self._file.keys())
        if len(self._names) > MAX_TENSORS:
            raise CheckpointError(f"{path}: lists {len(self._names):,} tensors, more than any model has; not read")

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
        opened = open_training_file(path)
        check_single(opened)
        self.iteration = opened.iteration
        self.lying = f"the tensors lie under the key {opened.key}" if opened.key else ""
        self._tensors = mapped(opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def meta(self, name: str) -> torch.Tensor:
        return self._tensors.meta(name)

    def forget(self, name: str) -> None:
        self._tensors.forget(name)


class _Shards(Weights):
    def __init__(self, index: Path) -> None:
        place = read_shard_index(index)
        shards = {file: index.parent / file for file in place.values()}
        opened = {file: _open_file(path) for file, path in shards.items()}
        lost = [f"{name} ({file})" for name, file in place.items() if name not in opened[file]]
        if lost:
            raise CheckpointError(f"{index}: lists tensors that are not in their file: {', '.join(shorten(lost, 5))}")
        self._place = {name: weights for weights in opened.values() for name in weights}
        self.files = (index, *shards.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._place[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def meta(self, name: str) -> torch.Tensor:
        return self._place[name].meta(name)

    def forget(self, name: str) -> None:
        self._place[name].forget(name)


class _Unwrapped(Weights):
    """Weights whose names all begin with what a wrapper of the model put there."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.files, self.lying, self.iteration = weights.files, weights.lying, weights.iteration
        self._weights, self._prefix = weights, prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[f"{self._prefix}{name}"]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def meta(self, name: str) -> torch.Tensor:
        return self._weights.meta(f"{self._prefix}{name}")

    def forget(self, name: str) -> None:
        self._weights.forget(f"{self._prefix}{name}")


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
