"""Files of training programs: the tensors of a model among everything else that is kept to go on with the training.

The tensors may be all of the file or lie under a key, by flat names or in nested dicts (Megatron). What lies beside
them is read with an allow-list of harmless classes; of it we use how many files belong together, the iteration, and the
program's arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.torch_file import Flat, MappedTensors, TorchFile, load_torch_file

_KEYS = ("module", "model", "state_dict", "model_state_dict")
"""Under which programs keep the tensors: DeepSpeed, Megatron, and what people write themselves."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers of a model put before all names: data parallelism, torch.compile."""
_NUM_RANKS = ("model_parallel_size", "tensor_model_parallel_size")
_SHOWN = 5


@dataclass(frozen=True)
class TrainingFile:
    """An opened file.

    tensors: of the model, or of its share on one rank, by flat names; key: under which they lie, None where they are
    all of the file; others: what lies beside them.
    """

    file: TorchFile
    tensors: Flat
    key: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the program, where they are stored."""
        stored = self.others.get("args")
        return dict(vars(stored)) if isinstance(stored, argparse.Namespace) else {}

    @property
    def iteration(self) -> int | None:
        return _whole(self.others.get("iteration"))

    @property
    def num_ranks(self) -> int | None:
        """How many model-parallel ranks share the tensors of a layer, where the file says it."""
        arguments = self.arguments
        stated = [self.others.get("mp_world_size"), *(arguments.get(name) for name in _NUM_RANKS)]
        return next((number for value in stated if (number := _whole(value))), None)


def open_training_file(path: Path, ignored: Sequence[str] = ()) -> TrainingFile:
    """Open a file of `torch.save` that holds the tensors of a model.

    ignored: full names of further classes whose values may lie beside the tensors; nothing is made of them.

    Raises: CheckpointError for one that holds none, or would run code, or is damaged.
    """
    file = load_torch_file(path, has_states=True, ignored=ignored)
    content = file.content
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: names with tensors are expected, this holds a {type(content).__name__}")
    key = next((key for key in _KEYS if isinstance(content.get(key, 0), dict | None)), None)
    if key is None:
        return TrainingFile(file, _unwrapped(_flat(path, content, depth=1)))
    others = {str(name): value for name, value in content.items() if name != key}
    return TrainingFile(file, _unwrapped(_flat(path, content[key] or {}, f"under {key}: ")), key, others)


def wrapper_of(names: Iterable[str]) -> str:
    """What a wrapper of the model put before all of the names; '' for nothing."""
    names = list(names)
    return next((prefix for prefix in _WRAPPERS if names and all(name.startswith(prefix) for name in names)), "")


def check_set(opened: Sequence[TrainingFile], rank_file: Callable[[int], str]) -> None:
    """See that files of ranks, in their order from rank 0, are of one checkpoint and all of it.

    rank_file: number of a rank -> the name of its file, below the folder of the checkpoint.
    Raises: CheckpointError naming the files that are missing, or do not belong to the others.
    """
    paths = [one.file.path for one in opened]
    for one in opened:
        _check_any(one)
    _check_alike("iteration", {path: one.iteration for path, one in zip(paths, opened, strict=True)})
    _check_alike("number of ranks", {path: one.num_ranks for path, one in zip(paths, opened, strict=True)})
    stated = next((one.num_ranks for one in opened if one.num_ranks is not None), len(opened))
    if stated > len(opened):
        lost = [rank_file(rank) for rank in range(len(opened), min(stated, len(opened) + _SHOWN))]
        more = ", ..." if stated > len(opened) + _SHOWN else ""
        raise CheckpointError(
            f"{paths[0]}: is one of {stated} files that belong together, as it says itself, but only {len(opened)} "
            f"{'is' if len(opened) == 1 else 'are'} there: {', '.join(lost)}{more} missing; copy them too"
        )
    if stated < len(opened):
        raise CheckpointError(
            f"{paths[0]}: is one of {stated} that belong together, as it says itself, but {len(opened)} files lie "
            f"there; keep those of one checkpoint: {', '.join(rank_file(rank) for rank in range(stated))}"
        )
    _check_shapes(opened)


def check_single(one: TrainingFile) -> None:
    """See that a file of any name is no share of a model alone.

    Raises: CheckpointError.
    """
    _check_any(one)
    if (one.num_ranks or 1) > 1:
        raise CheckpointError(
            f"{one.file.path}: holds the share of one of {one.num_ranks} model-parallel ranks, as it says itself; put "
            "all of them into one folder, as mp_rank_00_model_states.pt, mp_rank_01_model_states.pt, ..., and name that"
        )


def _check_any(one: TrainingFile) -> None:
    if not one.tensors:
        listed = ", ".join(shorten(sorted([*one.others, *filter(None, [one.key])]), _SHOWN)) or "nothing"
        raise CheckpointError(
            f"{one.file.path}: holds no tensors of a model (found: {listed}); a pipeline keeps them in the layer_*.pt "
            "beside it, ZeRO's third stage in shares of the optimizer (its zero_to_fp32.py joins them)"
        )


def _check_alike(what: str, values: Mapping[Path, int | None]) -> None:
    stated = {path: value for path, value in values.items() if value is not None}
    if len(set(stated.values())) > 1:
        told = ", ".join(f"{value} in {path.parent.name}/{path.name}" for path, value in stated.items())
        first = next(iter(stated))
        raise CheckpointError(
            f"{first.parent}: the files of the ranks are not of one checkpoint: {what} {told}; copy one set"
        )


def _check_shapes(opened: Sequence[TrainingFile]) -> None:
    """Every rank holds a share of the same shape, or the same tensor."""
    first = opened[0]
    for one in opened[1:]:
        path = one.file.path
        if odd := sorted(one.tensors.keys() ^ first.tensors.keys()):
            listed = ", ".join(shorten(odd, _SHOWN))
            raise CheckpointError(f"{path}: has other tensors than {first.file.path.name}: {listed}")
        for name, tensor in first.tensors.items():
            if tensor.shape != one.tensors[name].shape:
                raise CheckpointError(
                    f"{path}: {name} is {list(one.tensors[name].shape)}, but {list(tensor.shape)} in "
                    f"{first.file.path.parent.name}/{first.file.path.name}; ranks hold equal shares, so these are "
                    "files of different checkpoints; copy one set"
                )


def mapped(*opened: TrainingFile) -> MappedTensors:
    """The tensors of some files together, each checked when it is first read."""
    return MappedTensors([(one.file, one.tensors) for one in opened])


def _flat(path: Path, nested: Mapping[Any, Any], where: str = "", *, depth: int = 8) -> Flat:
    """Tensors in nested dicts by their path of names, with dots between.

    Raises: CheckpointError for what is no tensor.
    """
    import torch

    flat: Flat = {}
    odd = []
    for name, value in nested.items():
        if isinstance(value, torch.Tensor):
            flat[str(name)] = value
        elif isinstance(value, dict) and depth > 1:
            inner = _flat(path, value, f"{where}{name}.", depth=depth - 1)
            flat |= {f"{name}.{rest}": tensor for rest, tensor in inner.items()}
        else:
            odd.append(f"{where}{name}: {type(value).__name__}")
    if odd:
        raise CheckpointError(f"{path}: names with tensors are expected; found {', '.join(shorten(odd, _SHOWN))}")
    return flat


def _unwrapped(tensors: Flat) -> Flat:
    while prefix := wrapper_of(tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
