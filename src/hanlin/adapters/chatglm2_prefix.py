"""The prefix checkpoint of the original ChatGLM2: `pytorch_model.bin` with the trained keys only, and a `config.json`.

The original reads neither the length nor the projection from it and needs both again as flags; we read them.
ChatGLM3's scripts write the same table in other forms, which are read as well: among the tensors of a whole model, or
under its bare names (`embedding.weight`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.adapters.labels import LABEL_VALUES
from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.core.manifest import published_folder
from hanlin.formats.files import find_weights, open_weights, write_pickle
from hanlin.formats.format import FamilyFacts
from hanlin.formats.load import added_parameters
from hanlin.formats.rules import rename
from hanlin.formats.source import open_theirs, read_config

if TYPE_CHECKING:
    import torch
    from torch import nn

_THEIRS = "transformer.prefix_encoder."
_STARTS = (_THEIRS, "prefix_encoder.")
_OURS = "prefix."
_HEAD = "classifier_head."
"""A head for labels, which the original trains beside the prefix."""
_TABLE = "embedding.weight"
_PROJECTION = "trans.0.weight"
_PARTS = (_TABLE, _PROJECTION, "trans.0.bias", "trans.2.weight", "trans.2.bias")


def _holds(path: Path) -> bool:
    """Whether a file or folder holds the original's prefix and nothing else (a whole model may hold one as well)."""
    if path.is_dir() and find_weights(path) is None:
        return False
    names = list(open_weights(path))
    start = _start_of(names)
    return start is not None and all(name.startswith(_HEAD) or name.removeprefix(start) in _PARTS for name in names)


def _start_of(names: Collection[str]) -> str | None:
    """What the names of a prefix begin with, which the originals' scripts cut in two ways; None where there is none."""
    for start in _STARTS:
        if any(name.startswith(start) for name in names):
            return start
    return "" if names and set(names) <= set(_PARTS) else None


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if path.is_dir() and find_weights(path) is None:
        return None
    weights = open_theirs(path, family)
    if (start := _start_of(list(weights))) is None:
        return None
    # A whole model has a head of its own, which is not the adapter's.
    names = [name for name in weights if name.startswith(start) or (_holds(path) and name.startswith(_HEAD))]
    tensors = {_our_name(name, start, family): weights[name] for name in names}
    return Adapter(path, PREFIX.title, read_settings(path, _settings(path, tensors)), tensors, _labels(path, family))


def _settings(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The tuning settings that the tensors (by our names) tell; a `config.json` beside them must agree.

    Raises: CheckpointError.
    """
    if f"{_OURS}{_TABLE}" not in tensors:
        raise CheckpointError(f"{path}: {_STARTS[0]}{_TABLE} is missing; copy the whole checkpoint")
    length, has_projection = len(tensors[f"{_OURS}{_TABLE}"]), f"{_OURS}{_PROJECTION}" in tensors
    config = path / "config.json"
    values = read_json_object(config) if config.is_file() else {}
    # That of a base (null) says nothing of a prefix that was put beside it.
    if (stated := values.get("pre_seq_len")) is not None:
        is_projected = bool(values.get("prefix_projection", has_projection))
        if (stated, is_projected) != (length, has_projection):
            raise CheckpointError(
                f"{config}: says pre_seq_len {stated} and prefix_projection {is_projected}, but the tensors have "
                f"{length} and {has_projection}; these files do not belong together"
            )
    # The original drops a tenth of the prefix in training.
    return {"method": "prefix", "length": length, "projection": has_projection, "dropout": 0.1}


def _labels(path: Path, family: FamilyFacts) -> dict[str, Any]:
    """The values of the model's configuration that the head for labels beside a prefix comes from; {} without one.

    Raises: CheckpointError.
    """
    if not (path / "config.json").is_file():
        return {}  # a recipe may name the labels
    if not _holds(path) or not any(name.startswith(_HEAD) for name in open_weights(path)):
        return {}
    config = read_config(path, family, from_="original")
    return {name: getattr(config, name) for name in LABEL_VALUES}


def _our_name(name: str, start: str, family: FamilyFacts) -> str:
    if not name.startswith(_HEAD):
        return _OURS + name.removeprefix(start)
    known = (rename(form.rules(family.config()), name, "to_ours") for form in family.formats.values())
    return next(filter(None, known), name)


def _save(model: Any, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False) -> None:
    from hanlin.layers.label_head import label_parameters

    tensors = {
        f"{_THEIRS}{name.removeprefix(_OURS)}": parameter.detach().float()
        for name, parameter in _prefix_parameters(model).items()
    }
    rules = family.formats["original"].rules(model.config)
    tensors |= {
        rename(rules, name, "to_theirs") or name: model.get_parameter(name).detach().float()
        for name in label_parameters(model)
    }
    values = family.formats["original"].write_config(model.config)
    values["pre_seq_len"] = len(tensors[f"{_THEIRS}{_TABLE}"])
    values["prefix_projection"] = f"{_THEIRS}{_PROJECTION}" in tensors
    with published_folder(path, overwrite=overwrite) as beside:
        write_json(beside / "config.json", values)
        write_pickle(beside / "pytorch_model.bin", tensors)


def _prefix_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in added_parameters(model).items() if name.startswith(_OURS)}


PREFIX = AdapterFormat("the original ChatGLM2's folder of a prefix", _holds, _open, _save, family="chatglm2")
