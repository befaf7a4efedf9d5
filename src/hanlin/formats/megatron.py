"""Checkpoints of the Megatron program that CPM-1 was pretrained with, in all ways its files can lie.

| files | under DIR, which has a tracker file |
|---|---|
| plain | `iter_0000010/mp_rank_00/model_optim_rng.pt` (or `release/...`): nested dicts, with the program's arguments |
| DeepSpeed | `global_step10/mp_rank_00_model_states.pt`: the same nested dicts |
| DeepSpeed pipeline | `global_step10/layer_02-model_00-model_states.pt`: one file per layer and tensor rank |

Rows of fused linears stand head by head, `[heads, parts, head_dim]`, since checkpoint version 2; those of older ones
are put into that order here. Surprising: the original forgets the version in DeepSpeed's files and then reads its own
rows in the order of version 0; such files are read as version 2, which is how they were written.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.files import Weights, forget_pages
from hanlin.formats.ranks import TRACKER, Partitions, find_ranks, load_state, partition_of

if TYPE_CHECKING:
    import torch

VERSION = 2.0
_PLAIN, _STEPS = "model_optim_rng.pt", "latest"
_PLAIN_RANK = re.compile(r"mp_rank_(\d+)")
_STATE_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_FIRST_LAYER = 2
"""Number of the first block in the pipeline's list, after the embedding and a transposition."""

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Rank:
    """One tensor rank's share; version: of the order of fused rows; arguments: those of the program, where stored."""

    tensors: Tensors
    version: float = VERSION
    arguments: dict[str, Any] = field(default_factory=dict)


class MegatronWeights(Weights):
    """The tensors of all tensor ranks, merged when they are asked for; fused rows are in the order of version 2.

    fused: ending of a fused tensor's name -> how many linears it holds.
    """

    def __init__(
        self, files: Sequence[Path], ranks: Sequence[Rank], partitions: Partitions, fused: Mapping[str, int]
    ) -> None:
        self.files = tuple(files)
        self.arguments = ranks[0].arguments
        self._ranks, self._partitions, self._fused = ranks, partitions, fused
        for number, rank in enumerate(ranks):
            if odd := sorted(rank.tensors.keys() ^ ranks[0].tensors.keys()):
                raise CheckpointError(f"{files[0].parent}: rank {number} has other tensors: {', '.join(odd[:5])}")

    def __getitem__(self, name: str) -> torch.Tensor:
        parts = next((parts for ending, parts in self._fused.items() if name.endswith(ending)), None)
        pieces = [
            rank.tensors[name] if parts is None else self._in_order(rank.tensors[name], parts, rank.version)
            for rank in self._ranks
        ]
        partition = partition_of(name, self._partitions)
        if len(pieces) > 1 and partition is not None:
            return partition.merge(pieces)
        if any(not piece.equal(pieces[0]) for piece in pieces[1:]):
            raise CheckpointError(f"{self.files[0].parent}: {name} must be the same on all ranks, but differs")
        return pieces[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks[0].tensors)

    def __len__(self) -> int:
        return len(self._ranks[0].tensors)

    def forget(self, name: str) -> None:
        for rank in self._ranks:
            forget_pages(rank.tensors[name])

    def _in_order(self, fused: torch.Tensor, parts: int, version: float) -> torch.Tensor:
        if version >= VERSION:
            return fused
        if "num_attention_heads" not in self.arguments:
            raise CheckpointError(f"{self.files[0]}: of version {version}, but the number of heads is not stored")
        heads = self.arguments["num_attention_heads"] // len(self._ranks)
        size = len(fused) // (heads * parts)
        if version >= 1:  # [heads, head_dim, parts]
            return fused.unflatten(0, (heads, size, parts)).transpose(1, 2).flatten(0, 2)
        return fused.unflatten(0, (parts, heads, size)).transpose(0, 1).flatten(0, 2)


def open_megatron(path: Path, partitions: Partitions, fused: Mapping[str, int]) -> MegatronWeights | None:
    """The weights at a path: the folder with the tracker, that of an iteration, or a file in it; None for other ones.

    Raises: CheckpointError.
    """
    folder = _iteration(Path(path))
    if folder is None:
        return None
    by_rank = _plain_files(folder) or _layer_files(folder) or _state_files(folder)
    if not by_rank:
        return None
    lost = [rank for rank in range(max(by_rank) + 1) if rank not in by_rank]
    if lost:
        raise CheckpointError(f"{folder}: nothing of tensor rank {', '.join(map(str, lost))}; copy its files too")
    ranks = [_load(by_rank[rank]) for rank in sorted(by_rank)]
    if any(rank is None for rank in ranks):
        return None
    files = [file for rank in sorted(by_rank) for file in by_rank[rank]]
    return MegatronWeights(files, [rank for rank in ranks if rank is not None], partitions, fused)


def lies_in_ranks(path: Path) -> bool:
    """Whether a path holds files of model-parallel ranks or of layers, of whichever program."""
    return bool(find_ranks(path)) or _iteration(Path(path)) is not None


def write_megatron(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    partitions: Partitions,
    arguments: Mapping[str, Any],
    *,
    ranks: int = 1,
    iteration: int = 1,
) -> None:
    """Write the plain form, which the original loads with `--no-load-optim --no-load-rng`.

    arguments: what the original compares with its own, and `make_vocab_size_divisible_by`: to a multiple of that and
    the number of ranks the rows of the word embedding are filled up with zeros.
    Raises: CheckpointError when a tensor cannot be divided evenly.
    """
    import torch

    padded = _Padded(tensors, arguments["make_vocab_size_divisible_by"] * ranks)
    rows = next(len(padded[name]) for name in padded if name.endswith(_Padded.ending))
    stored = argparse.Namespace(**arguments, padded_vocab_size=rows, model_parallel_size=ranks)
    for rank in range(ranks):
        flat = {name: _share(name, padded[name], partitions, ranks, rank) for name in padded}
        state = {"args": stored, "checkpoint_version": VERSION, "iteration": iteration, "model": _nested(flat)}
        file = folder / f"iter_{iteration:07d}" / f"mp_rank_{rank:02d}" / _PLAIN
        file.parent.mkdir(parents=True)
        with file.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
    (folder / TRACKER).write_text(str(iteration), encoding="utf-8")


class _Padded(Mapping[str, "torch.Tensor"]):
    """Tensors of which the word embedding has a number of rows that is a multiple."""

    ending = "word_embeddings.weight"

    def __init__(self, tensors: Mapping[str, torch.Tensor], multiple: int) -> None:
        self._tensors, self._multiple = tensors, multiple

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        tensor = self._tensors[name].detach()
        missing = -len(tensor) % self._multiple if name.endswith(self.ending) else 0
        return torch.cat((tensor, tensor.new_zeros(missing, tensor.shape[1]))) if missing else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _share(name: str, tensor: torch.Tensor, partitions: Partitions, ranks: int, rank: int) -> torch.Tensor:
    partition = partition_of(name, partitions)
    if partition is None:
        return tensor.clone()
    try:
        return partition.divide(tensor, ranks)[rank]
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None


# --- where the files lie ---


def _iteration(path: Path) -> Path | None:
    """The folder of an iteration."""
    if path.is_file():
        return path.parent.parent if path.name == _PLAIN else path.parent if _LAYER.fullmatch(path.name) else None
    if not path.is_dir():
        return None
    if _plain_files(path) or _layer_files(path) or _state_files(path):
        return path
    folders = [path / tag for tag in _tags(path)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _tags(folder: Path) -> Iterator[str]:
    """The names of iteration folders that the tracker files of a checkpoint may mean."""
    if (folder / TRACKER).is_file():
        tag = (folder / TRACKER).read_text(encoding="utf-8").strip()
        yield f"iter_{int(tag):07d}" if tag.isdecimal() else "release"
    if (folder / _STEPS).is_file():
        tag = (folder / _STEPS).read_text(encoding="utf-8").strip()
        if tag and Path(tag).name == tag:
            yield tag


def _plain_files(folder: Path) -> dict[int, list[Path]]:
    matches = {entry / _PLAIN: _PLAIN_RANK.fullmatch(entry.name) for entry in folder.iterdir()}
    return {int(match[1]): [file] for file, match in matches.items() if match and file.is_file()}


def _state_files(folder: Path) -> dict[int, list[Path]]:
    matches = {entry: _STATE_RANK.fullmatch(entry.name) for entry in folder.iterdir()}
    return {int(match[1]): [file] for file, match in matches.items() if match}


def _layer_files(folder: Path) -> dict[int, list[Path]]:
    files: dict[int, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if match := _LAYER.fullmatch(entry.name):
            files.setdefault(int(match[2]), []).append(entry)
    return files


# --- what the files hold ---


def _load(files: Sequence[Path]) -> Rank | None:
    """One rank's tensors; None when these are files of another program."""
    if _LAYER.fullmatch(files[0].name):
        return Rank({name: tensor for file in files for name, tensor in _layer_tensors(file).items()})
    state = load_state(files[0], [argparse.Namespace])
    is_plain = files[0].name == _PLAIN
    model = state.get("model" if is_plain else "module")
    if not isinstance(model, dict) or "language_model" not in model:
        return None
    arguments = state.get("args", argparse.Namespace())
    version = state.get("checkpoint_version", 0 if is_plain else VERSION)
    return Rank(_flat(files[0], model), float(version), dict(vars(arguments)))


def _layer_tensors(file: Path) -> Tensors:
    """The tensors of a pipeline's layer by the names of the whole model."""
    import torch

    state = load_state(file)
    match = _LAYER.fullmatch(file.name)
    assert match is not None, file
    if odd := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{file}: {', '.join(odd[:5])}: no tensor")
    if "word_embeddings.weight" in state:
        prefix = "embedding"
    else:
        is_last = set(state) <= {"weight", "bias"}
        prefix = "transformer." + ("final_layernorm" if is_last else f"layers.{int(match[1]) - _FIRST_LAYER}")
    return {f"language_model.{prefix}.{name}": tensor for name, tensor in state.items()}


def _flat(file: Path, nested: Mapping[str, Any], prefix: str = "") -> Tensors:
    import torch

    flat: Tensors = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(file, value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            flat[f"{prefix}{name}"] = value
        else:
            raise CheckpointError(f"{file}: {prefix}{name} is a {type(value).__name__}, no tensor")
    return flat


def _nested(flat: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    embedding: dict[str, Any] = {}
    transformer: dict[str, torch.Tensor] = {}
    for name, tensor in flat.items():
        _, part, rest = name.split(".", 2)
        if part == "embedding":
            table, leaf = rest.rsplit(".", 1)
            embedding[table] = {leaf: tensor}
        else:
            transformer[rest] = tensor
    return {"language_model": {"embedding": embedding, "transformer": transformer}}
