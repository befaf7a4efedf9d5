"""What the commands know about weights on disk: their family, and adapters on a base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from hanlin.models.family import Family
    from hanlin.recipe.settings import TuningSettings


def find_family(path: Path) -> Family:
    """The family of weights: as our config.json says, else the one that knows most of the tensors' names.

    Raises: CheckpointError.
    """
    from hanlin.core.files import read_json_object
    from hanlin.formats.source import is_base, likely_families, open_any, refuse_lookalikes
    from hanlin.models.family import built_in_family, family_names, load_family

    if is_base(path):
        name = read_json_object(path / "config.json")["family"]
        try:
            return built_in_family(name)
        except ConfigError:
            raise CheckpointError(
                f"{path / 'config.json'}: names the family {name!r}, which is none of {', '.join(family_names())}; "
                "if it is a model of your own, say where it is: --family FILE.py"
            ) from None
    families = [load_family(name) for name in family_names()]
    names = list(open_any(path, families))
    found = likely_families(names, families)
    if len(found) == 1:
        return found[0]
    for family in families:
        refuse_lookalikes(path, family)
    told = " or ".join(family.name for family in found) or "no known family"
    raise CheckpointError(f"{path}: its tensors are called as in {told} (first: {', '.join(names[:3])}); give --family")


def read_adapter(path: Path, base: Path, family: Family) -> tuple[Any, TuningSettings]:
    """A model that has real tensors for the adapter only (the rest on the meta device), and its settings.

    A quantised base is taken as plain numbers.

    Raises: CheckpointError.
    """
    import torch
    from torch import nn

    from hanlin.adapters.files import load_adapter, read_adapter_config, read_adapter_settings
    from hanlin.formats.load import added_parameters
    from hanlin.formats.source import open_source, plain_values, read_config
    from hanlin.tuning.apply import apply_tuning

    settings = read_adapter_settings(path, family)
    weights = open_source(base, family).weights
    config = read_config(base, family, {**plain_values(family), **read_adapter_config(path, family)})
    with torch.device("meta"):
        model = family.model()(config).to(weights[next(iter(weights))].dtype)
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
    from hanlin.formats.load import load_into
    from hanlin.formats.source import plain_values, read_config
    from hanlin.layers.label_head import keep_label_head
    from hanlin.tuning.lora import merge_lora

    model, settings = read_adapter(path, base, family)
    if settings.method != "lora":
        raise CheckpointError(f"{path}: a {settings.method} cannot be worked into weights; use it as model.adapter")
    # Its own configuration: a language model lacks the head for labels that the adapter may bring.
    load_into(model, base, family, config=read_config(base, family, plain_values(family)))
    merge_lora(model)
    keep_label_head(model)
    return model
