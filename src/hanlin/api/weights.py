"""Weights on disk: their family, and adapters on a base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from hanlin.adapters.adapter import Adapter
    from hanlin.models.family import Family


def located(path: Path) -> Path:
    """A file or folder of weights, also by the name of a model in a local cache.

    Raises: ConfigError where there is none, or not all of it.
    """
    from hanlin.core.hub import hint, locate

    if not (found := locate(path)).exists():
        raise ConfigError(f"there is no {path}{hint(path)}")
    return found


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


def model_of_adapter(adapter: Adapter, base: Path, family: Family) -> Any:
    """A model that has real tensors for the adapter only (the rest on the meta device).

    A quantised base is taken as plain numbers.

    Raises: CheckpointError.
    """
    import torch

    from hanlin.adapters.adapter import load_adapter
    from hanlin.formats.source import open_source, plain_values, read_config
    from hanlin.tuning.apply import allocate_additions, apply_tuning

    weights = open_source(base, family).weights
    config = read_config(base, family, {**plain_values(family), **adapter.config})
    dtypes = (weights.meta(name).dtype for name in weights)
    dtype = next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)  # packed weights have none
    with torch.device("meta"):
        model = family.model()(config).to(dtype)
    apply_tuning(model, adapter.settings, family)
    allocate_additions(model)
    load_adapter(model, adapter)
    return model


def merge_adapter(adapter: Adapter, base: Path, family: Family) -> Any:
    """The base's model with an adapter worked into its weights.

    Raises: CheckpointError.
    """
    from hanlin.formats.load import load_into
    from hanlin.formats.source import plain_values, read_config
    from hanlin.layers.label_head import keep_label_head

    model = model_of_adapter(adapter, base, family)
    # Its own configuration: a language model lacks the head for labels that the adapter may bring.
    load_into(model, base, family, config=read_config(base, family, plain_values(family)))
    adapter.settings.merge(model)
    keep_label_head(model)
    return model
