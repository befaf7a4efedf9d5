"""Checkpoints of the Megatron program that CPM-1 was pretrained with, in all ways its files can lie.

| form | files under DIR, which has a tracker file |
|---|---|
| megatron | `iter_0000010/mp_rank_00/model_optim_rng.pt` (or `release/...`): nested dicts, and arguments |
| deepspeed | `global_step10/mp_rank_00_model_states.pt`: the same nested dicts |
| pipeline | `global_step10/layer_02-model_00-model_states.pt`: one file per layer and tensor rank, of DeepSpeed |

Rows of fused linears stand head by head, `[heads, parts, head_dim]`, since checkpoint version 2; those of older ones
are put into that order here. Surprising: the original forgets the version in DeepSpeed's files and then reads its own
rows in the order of version 0; such files are read as version 2, which is how they were written.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.files import Weights
from hanlin.formats.lazy import Lazy, TensorSubset, forget_pages
from hanlin.formats.ranks import (
    TRACKER,
    Partitions,
    deepspeed_state,
    divide_tensor,
    load_state,
    merge_pieces,
    tracked_folder,
)
from hanlin.formats.torch_file import write_torch_files

if TYPE_CHECKING:
    import torch

VERSION = 2.0
_PLAIN, _STEPS = "model_optim_rng.pt", "latest"
_PLAIN_RANK = re.compile(r"mp_rank_(\d+)")
_STATE_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ANY_RANK = re.compile(r"mp_rank_\d+(_\d+)?_model_states\.pt")
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_FIRST_LAYER = 2
"""Number of the first block in the pipeline's list, after the embedding and a transposition."""

FlatTensors = dict[str, "torch.Tensor"]
MegatronForm = Literal["megatron", "deepspeed", "pipeline"]
FORMS: dict[MegatronForm, str] = {
    "megatron": f"iter_XXXXXXX/mp_rank_XX/{_PLAIN}",
    "deepspeed": "DeepSpeed's global_stepN/mp_rank_XX_model_states.pt",
    "pipeline": "layer files of DeepSpeed's pipeline, global_stepN/layer_XX-model_XX-model_states.pt",
}


@dataclass(frozen=True)
class Rank:
    """One tensor rank's share; version: of the order of fused rows; arguments: those of the program, where stored."""

    tensors: FlatTensors
    version: float = VERSION
    arguments: dict[str, Any] = field(default_factory=dict)
    iteration: int | None = None


class MegatronWeights(Weights):
    """The tensors of all tensor ranks, merged when they are asked for; fused rows are in the order of version 2.

    fused: ending of a fused tensor's name -> how many linears it holds.
    """

    def __init__(
        self, files: Sequence[Path], ranks: Sequence[Rank], partitions: Partitions, fused: Mapping[str, int]
    ) -> None:
        self.files = tuple(files)
        form = _form_of(files[0])
        self.layout = form
        self.lying = f"{FORMS[form]}: {len(ranks)} tensor rank{'s' if len(ranks) > 1 else ''}, {len(files)} files"
        self.iteration = ranks[0].iteration
        self.arguments = ranks[0].arguments
        self._ranks, self._partitions, self._fused = ranks, partitions, fused
        for number, rank in enumerate(ranks):
            if odd := sorted(rank.tensors.keys() ^ ranks[0].tensors.keys()):
                raise CheckpointError(
                    f"{files[0].parent}: rank {number} has other tensors: {', '.join(shorten(odd, 5))}"
                )

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._merged(name, [rank.tensors[name] for rank in self._ranks])

    def meta(self, name: str) -> torch.Tensor:
        return self._merged(name, [rank.tensors[name].to("meta") for rank in self._ranks])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks[0].tensors)

    def __len__(self) -> int:
        return len(self._ranks[0].tensors)

    def forget(self, name: str) -> None:
        for rank in self._ranks:
            forget_pages(rank.tensors[name])

    def _merged(self, name: str, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = next((parts for ending, parts in self._fused.items() if name.endswith(ending)), None)
        if parts is not None:
            versions = [rank.version for rank in self._ranks]
            pieces = [self._in_order(piece, parts, version) for piece, version in zip(pieces, versions, strict=True)]
        return merge_pieces(name, pieces, self._partitions, self.files[0].parent)

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
    """Whether a path holds files of model-parallel ranks, of layers or of experts, of whichever program."""
    return _iteration(Path(path)) is not None or tracked_folder(Path(path), _ANY_RANK) is not None


def write_megatron(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    partitions: Partitions,
    arguments: Mapping[str, Any],
    *,
    form: MegatronForm = "megatron",
    ranks: int = 1,
    iteration: int = 1,
) -> None:
    """Write one of the forms, which the original loads with `--no-load-optim --no-load-rng`.

    arguments: what the original compares with its own, and `make_vocab_size_divisible_by`: to a multiple of that and
    the number of ranks the rows of the word embedding are filled up with zeros.
    Raises: CheckpointError when a tensor cannot be divided evenly.
    """
    padded = _Padded(tensors, arguments["make_vocab_size_divisible_by"] * ranks)
    inner = folder / (f"iter_{iteration:07d}" if form == "megatron" else f"global_step{iteration}")
    inner.mkdir(parents=True)

    def share(name: str, whole: torch.Tensor) -> list[torch.Tensor]:
        return divide_tensor(name, whole, partitions, ranks)

    if form == "megatron":
        rows = next(len(padded.meta(name)) for name in padded if name.endswith(_Padded.ending))
        stored = argparse.Namespace(**arguments, padded_vocab_size=rows, model_parallel_size=ranks)
        head = {"args": stored, "checkpoint_version": VERSION, "iteration": iteration}
        files = [inner / f"mp_rank_{rank:02d}" / _PLAIN for rank in range(ranks)]
        for file in files:
            file.parent.mkdir()
        write_torch_files(files, padded, share, lambda _, flat: {**head, "model": _nested(flat)})
    elif form == "deepspeed":
        files = _state_paths(inner, ranks)
        write_torch_files(files, padded, share, lambda _, flat: deepspeed_state(_nested(flat), ranks, iteration))
    else:
        _write_layers(inner, padded, share, ranks)
        state = deepspeed_state(None, ranks, iteration)
        write_torch_files(_state_paths(inner, ranks), TensorSubset(padded, []), share, lambda *_: state)
    if form != "megatron":
        (folder / _STEPS).write_text(inner.name, encoding="utf-8")
    (folder / TRACKER).write_text(str(iteration), encoding="utf-8")


def _state_paths(folder: Path, ranks: int) -> list[Path]:
    return [folder / f"mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks)]


def _write_layers(
    folder: Path, tensors: Lazy, share: Callable[[str, torch.Tensor], list[torch.Tensor]], ranks: int
) -> None:
    """One file for each rank of the embedding, of every block, and of the last norm."""
    layers: dict[int, dict[str, str]] = {}
    count = sum(name.endswith(".input_layernorm.weight") for name in tensors)
    for name in tensors:
        number, inside = _place_in_pipeline(name, count)
        layers.setdefault(number, {})[name] = inside
    for number, names in sorted(layers.items()):
        files = [folder / f"layer_{number:02d}-model_{rank:02d}-model_states.pt" for rank in range(ranks)]
        write_torch_files(
            files,
            TensorSubset(tensors, names),
            share,
            lambda _, flat, names=names: {names[name]: tensor for name, tensor in flat.items()},
        )


def _place_in_pipeline(name: str, num_layers: int) -> tuple[int, str]:
    """The number of the layer that holds a tensor, and its name there."""
    _, part, rest = name.split(".", 2)
    if part == "embedding":
        return 0, rest
    if rest.startswith("final_layernorm."):
        return _FIRST_LAYER + num_layers + 1, rest.removeprefix("final_layernorm.")
    _, number, inside = rest.split(".", 2)
    return _FIRST_LAYER + int(number), inside


class _Padded(TensorSubset):
    """FlatTensors of which the word embedding has a number of rows that is a multiple."""

    ending = "word_embeddings.weight"

    def __init__(self, tensors: Mapping[str, torch.Tensor], multiple: int) -> None:
        super().__init__(tensors, tensors)
        self._multiple = multiple

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._filled_up(name, super().__getitem__(name).detach())

    def meta(self, name: str) -> torch.Tensor:
        return self._filled_up(name, super().meta(name))

    def _filled_up(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        missing = -len(tensor) % self._multiple if name.endswith(self.ending) else 0
        return torch.cat((tensor, tensor.new_zeros(missing, tensor.shape[1]))) if missing else tensor


# --- where the files lie ---


def _iteration(path: Path) -> Path | None:
    """The folder of an iteration."""
    if path.is_file():
        lies_here = _LAYER.fullmatch(path.name) or _STATE_RANK.fullmatch(path.name)
        return path.parent.parent if path.name == _PLAIN else path.parent if lies_here else None
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


def _form_of(file: Path) -> MegatronForm:
    return "megatron" if file.name == _PLAIN else "pipeline" if _LAYER.fullmatch(file.name) else "deepspeed"


# --- what the files hold ---


def _load(files: Sequence[Path]) -> Rank | None:
    """One rank's tensors; None when these are files of another program."""
    if _LAYER.fullmatch(files[0].name):
        step = re.search(r"\d+$", files[0].parent.name)
        tensors = {name: tensor for file in files for name, tensor in _layer_tensors(file).items()}
        return Rank(tensors, iteration=int(step[0]) if step else None)
    state = load_state(files[0])
    is_plain = files[0].name == _PLAIN
    model = state.get("model" if is_plain else "module")
    if not isinstance(model, dict) or "language_model" not in model:
        return None
    arguments = state.get("args", argparse.Namespace())
    version = state.get("checkpoint_version", 0 if is_plain else VERSION)
    return Rank(_flat(files[0], model), float(version), dict(vars(arguments)), state.get("iteration"))


def _layer_tensors(file: Path) -> FlatTensors:
    """The tensors of a pipeline's layer by the names of the whole model."""
    import torch

    state = load_state(file)
    match = _LAYER.fullmatch(file.name)
    assert match is not None, file
    if odd := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{file}: {', '.join(shorten(odd, 5))}: no tensor")
    if "word_embeddings.weight" in state:
        prefix = "embedding"
    else:
        is_last = set(state) <= {"weight", "bias"}
        prefix = "transformer." + ("final_layernorm" if is_last else f"layers.{int(match[1]) - _FIRST_LAYER}")
    return {f"language_model.{prefix}.{name}": tensor for name, tensor in state.items()}


def _flat(file: Path, nested: Mapping[str, Any], prefix: str = "") -> FlatTensors:
    import torch

    flat: FlatTensors = {}
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
