"""What the commands know about weights on disk: their family, and adapters on a base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError

if TYPE_CHECKING:
    from hanlin.core.settings import TuningSettings
    from hanlin.models.family import Family


def find_family(path: Path) -> Family:
    """The family of weights: as our config.json says, else the one that knows most of the tensors' names.

    Raises: CheckpointError.
    """
    from hanlin.formats.convert import is_base, refuse_lookalikes
    from hanlin.formats.files import read_json
    from hanlin.models.family import family_names, load_family

    if is_base(path):
        return load_family(read_json(path / "config.json")["family"])
    families = [load_family(name) for name in family_names()]
    known, errors = {}, []
    for family in families:
        try:
            known[family.name] = _num_known(path, family)
        except CheckpointError as error:
            errors.append(error)
    most = max(known.values(), default=0)
    best = [name for name, count in known.items() if count == most]
    if most and len(best) == 1:
        return load_family(best[0])
    for family in families:
        refuse_lookalikes(path, family)
    if errors and not most:
        raise errors[0]
    told = " or ".join(best) if most else "no known family"
    raise CheckpointError(f"{path}: its tensors are called as in {told}; give --family")


def _num_known(path: Path, family: Family) -> int:
    """How many of the tensors at a path the family has names for; 0 for files that none of its layouts lies in."""
    from hanlin.formats.convert import open_theirs, recognise
    from hanlin.formats.megatron import lies_in_ranks
    from hanlin.formats.rules import find_moves

    forms = family.formats.values()
    divided = [form for form in forms if form.partitions is not None or (form.open is not None and form.open(path))]
    if not divided and lies_in_ranks(path):
        return 0
    names = list(open_theirs(path, family))
    layout = recognise(names, family)
    rules = [] if layout is None else family.formats[layout].rules(family.config())
    return sum(len(move.sources) for move in find_moves(rules, names, "to_ours"))


def read_adapter(path: Path, base: Path, family: Family) -> tuple[Any, TuningSettings]:
    """A model that has real tensors for the adapter only (the rest on the meta device), and its settings.

    A quantised base is taken as plain numbers.

    Raises: CheckpointError.
    """
    import torch
    from torch import nn

    from hanlin.checkpoint.delta import load_adapter, read_adapter_settings
    from hanlin.formats.convert import added_parameters, plain_values, read_config
    from hanlin.formats.files import open_weights
    from hanlin.tuning.apply import apply_tuning

    settings = read_adapter_settings(path, family)
    weights = open_weights(base)
    with torch.device("meta"):
        model = family.model()(read_config(base, family, plain_values(family))).to(weights[next(iter(weights))].dtype)
    apply_tuning(model, settings, family)
    for name, parameter in added_parameters(model).items():
        module, _, last = name.rpartition(".")
        model.get_submodule(module).register_parameter(last, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    load_adapter(model, path, family)
    return model, settings


def merge_adapter(path: Path, base: Path, family: Family) -> Any:
    """The base's model with an adapter worked into its weights.

    Raises: CheckpointError.
    """
    from hanlin.formats.convert import load_into
    from hanlin.tuning.lora import merge_lora

    model, settings = read_adapter(path, base, family)
    if settings.method != "lora":
        raise CheckpointError(f"{path}: a {settings.method} cannot be worked into weights; use it as model.adapter")
    load_into(model, base, family)
    merge_lora(model)
    return model
