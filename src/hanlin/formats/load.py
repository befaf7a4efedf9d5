"""Weights into a model, one parameter at a time, and out of it into a base folder of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.files import write_json
from hanlin.core.manifest import check_manifest, published_folder
from hanlin.core.parameters import set_parameter
from hanlin.core.progress import progress
from hanlin.core.remembered import HOME_CACHE, MIN_REMEMBERED_BYTES, remembered
from hanlin.core.tokenizer import Tokenizer
from hanlin.formats.files import write_shards
from hanlin.formats.fingerprint import Fingerprint
from hanlin.formats.format import BASE, DTYPE_KEY, FamilyFacts
from hanlin.formats.lazy import Lazy
from hanlin.formats.read_once import known_values
from hanlin.formats.source import Source, open_source
from hanlin.formats.translate import shapes_of, to_ours
from hanlin.formats.values import Sound, ValueReport, count_values, stored_dtype

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_into(
    model: nn.Module,
    path: Path | Source,
    family: FamilyFacts,
    *,
    dtype: torch.dtype | None = None,
    wanted: Callable[[str], bool] | None = None,
    config: Any = None,
    fingerprint: Fingerprint | None = None,
) -> None:
    """Fill a model's parameters from weights in any layout of the family, one parameter at a time.

    A parameter on the meta device is made on the CPU, with `dtype` (None: as in the file). What a tuning method added
    to the model (`added` of its modules) is not looked for.
    wanted: our name of a tensor -> whether to fill it (None: all of them); the model may then lack some of the others.
    config: that of the weights, where the model has another head than they (None: the model's).
    fingerprint: takes every tensor into account as it is kept.

    Raises: CheckpointError naming missing and surplus tensors, those of another shape, one that holds something else
    than numbers, or such as `dtype` cannot hold, and, where all are wanted, files that are not as their manifest says.
    """
    source = open_source(path, family)
    is_whole = wanted is None and config is None
    config = config or getattr(model, "config", None) or source.config()
    parameters = base_parameters(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    translated = to_ours(source, family, config, shapes if is_whole else shapes_of(family, config))
    if wanted is None:
        check_manifest(source.path)
    sound = Sound(source.path, translated, dtype)
    asked = {name: parameter for name, parameter in parameters.items() if wanted is None or wanted(name)}
    with progress("Loading weights", sum(parameter.numel() for parameter in asked.values())) as advance:
        for name, parameter in asked.items():
            tensor = sound[name]
            tensor = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
            kept = _load_parameter(model, name, parameter, tensor)
            if fingerprint is not None:
                fingerprint.add(name, kept)
            translated.forget(name)
            advance(parameter.numel())
    if fingerprint is not None:
        fingerprint.wait()
    sound.report.tell_zeros(source.path)


def open_ours(
    path: Path | Source, family: FamilyFacts, *, config: Any = None, dtype: torch.dtype | None = None
) -> Sound:
    """The tensors of weights on disk under our names, each read when it is asked for; `forget` gives its memory back.

    For who wants some of them, in an order of their own: a part of the layers, an expert of a mixture.
    config: that of the model they are for (None: as it is on disk); dtype: which is to hold them (None: their own).
    Raises: CheckpointError as `load_into` would, also when a tensor is read that holds something else than numbers.
    """
    source = open_source(path, family)
    config = config or source.config()
    return Sound(source.path, to_ours(source, family, config, shapes_of(family, config)), dtype)


def look_at_values(source: Source, config: Any) -> ValueReport:
    """What is in the tensors of weights by our names, for a model of this configuration; what `load_into` would meet.

    They are read for it, if `sha256_and_values` has not seen them; what was found in large ones is remembered until one
    of their files changes.
    Raises: CheckpointError as `open_ours`.
    """
    tensors = to_ours(source, source.family, config, shapes_of(source.family, config))
    files = source.weights.files
    if not is_large(files):
        return count_values(tensors)
    known = known_values([file for file in files if file.suffix == ".safetensors"]) if source.format == BASE else None
    if known is not None and known.names == set(tensors):
        return known
    question = json.dumps(["values", 1, source.family.name, source.format, asdict(config)], default=str)
    return ValueReport.of(remembered(HOME_CACHE, files, question, lambda: count_values(tensors).as_json()))


def is_large(files: Sequence[Path]) -> bool:
    """Whether reading files is worth avoiding."""
    return sum(file.stat().st_size for file in files) >= MIN_REMEMBERED_BYTES


def check_fit(path: Path, family: FamilyFacts) -> Lazy:
    """See that weights on disk are whole and fit their config, without loading them; the tensors by our names.

    Raises: CheckpointError as `load_into` would.
    """
    source = open_source(path, family)
    config = source.config()
    return to_ours(source, family, config, shapes_of(family, config))


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model without those that a tuning method added."""
    added = added_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if name not in added}


def added_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a tuning method added: those that a module lists as its `added`."""
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "added", ())
    }
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def save_base(
    folder: Path,
    family: FamilyFacts,
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a base folder in one step; tensors: by our names (of a model: its `base_parameters`).

    Raises: CheckpointError when the folder exists.
    """
    with published_folder(folder, overwrite=overwrite) as beside:
        write_base(beside, family, config, tensors)
        if tokenizer is not None:
            tokenizer.save(beside)


def write_base(folder: Path, family: FamilyFacts, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write what makes a folder a base folder: the configuration, with the dtype of the weights, and these."""
    values = {"family": family.name, DTYPE_KEY: stored_dtype(tensors), **asdict(config)}
    write_json(folder / "config.json", values)
    write_shards(folder, tensors)


def _load_parameter(model: nn.Module, name: str, parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor as the model keeps it."""
    import torch

    if not parameter.is_meta:
        with torch.no_grad():
            return parameter.copy_(tensor)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    set_parameter(model, name, copy, requires_grad=parameter.requires_grad)
    return copy
