"""Our adapter folder: `adapter.safetensors` by our names, and `adapter.json` with the settings of the tuning method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import ANY_BASE, Adapter, AdapterFormat, ForBase, read_settings
from hanlin.adapters.labels import stated_labels
from hanlin.core.errors import CheckpointError
from hanlin.core.files import has_file, read_json_object, write_json
from hanlin.core.manifest import published_folder
from hanlin.formats.files import open_weights, write_safetensors
from hanlin.formats.format import FamilyFacts
from hanlin.formats.load import added_parameters
from hanlin.models.family import family_names

if TYPE_CHECKING:
    from torch import nn

    from hanlin.recipe.tuning import TuningMethod

WEIGHTS = "adapter.safetensors"
SETTINGS = "adapter.json"
CONFIG = "config"
"""There: values of the model's configuration without which the adapter has no place."""
FAMILY = "family"
"""There: whose layers it changes; others may have some of the same names and shapes."""
QUANTISE = "quantise"
"""There: how the base was packed in memory that it was trained on, where it was."""
ADAPTER_FOLDER = "adapter"
"""Where in a base folder an adapter lies that was trained together with the base."""
_TITLE = "our adapter folder"


def save_adapter(
    model: nn.Module,
    settings: TuningMethod,
    folder: Path,
    *,
    family: str | None = None,
    overwrite: bool = False,
    quantise: str | None = None,
) -> None:
    """Write our adapter folder in one step; family: the model's; quantise: see `Adapter`.

    Raises: CheckpointError when the folder exists.
    """
    tensors = {name: parameter.detach() for name, parameter in added_parameters(model).items()}
    stated = settings.resolved(tensors).model_dump(mode="json")
    labels = stated_labels(model)
    told = {FAMILY: family, CONFIG: labels, QUANTISE: quantise}
    facts = {name: value for name, value in told.items() if value}
    with published_folder(folder, overwrite=overwrite) as beside:
        write_safetensors(beside / WEIGHTS, tensors)
        write_json(beside / SETTINGS, {**stated, **facts})


def _holds(path: Path) -> bool:
    return has_file(path / SETTINGS)


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    values = read_json_object(path / SETTINGS)
    labels, quantise, trained = values.pop(CONFIG, {}), values.pop(QUANTISE, None), values.pop(FAMILY, None)
    if trained != family.name and {trained, family.name} <= {*family_names()}:  # a user's own may be renamed
        raise CheckpointError(f"{path}: was trained on a model of {trained}, and this one is of {family.name}")
    return Adapter(path, _TITLE, read_settings(path / SETTINGS, values), open_weights(path), labels, quantise=quantise)


def _save(
    model: nn.Module,
    settings: Any,
    path: Path,
    family: FamilyFacts,
    *,
    overwrite: bool = False,
    base: ForBase = ANY_BASE,
) -> None:
    save_adapter(model, settings, path, family=family.name, overwrite=overwrite, quantise=base.quantise)


FOLDER = AdapterFormat(_TITLE, _holds, _open, _save, keeps_packing=True)
