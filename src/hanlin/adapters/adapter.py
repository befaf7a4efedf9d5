"""What a tuning method trained, as it lies in files: `Adapter`; a layout of such files: `AdapterFormat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.extensions import is_imported
from hanlin.core.manifest import check_manifest
from hanlin.formats.format import FamilyFacts
from hanlin.formats.load import added_parameters
from hanlin.formats.values import refuse_broken
from hanlin.recipe.tuning import TUNING_METHODS, TuningMethod

if TYPE_CHECKING:
    import torch
    from torch import nn

_SHOWN = 8


@dataclass(frozen=True)
class Adapter:
    """An opened adapter.

    settings: with these `tuning.apply.apply_tuning` makes room for it in a model; tensors: by our names; format: the
    title of its layout; config: values of the model's configuration without which it has no place (its labels); base:
    what its files call the base that it was trained on, if they do; quantise: how that was packed in memory
    (`model.quantise`), if it was and its files say so.
    """

    path: Path
    format: str
    settings: TuningMethod
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    quantise: str | None = None


class SaveAdapter(Protocol):
    def __call__(
        self, model: nn.Module, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False
    ) -> None:
        """Raises: CheckpointError when the path exists, and for what the layout has no place for."""
        ...


@dataclass(frozen=True)
class ForBase:
    """The base for which other programs get an adapter.

    layout: in whose names of modules (None: the format's choice); name: where the base lies, as those programs are
    told, and files: the layout in which it lies there; quantise: see `Adapter`.
    """

    layout: str | None = None
    name: str | None = None
    files: str | None = None
    quantise: str | None = None


ANY_BASE = ForBase()


@dataclass(frozen=True)
class AdapterFormat:
    """One layout of adapters.

    title: for people; holds: whether a path that exists holds an adapter in it and no whole model; open: the adapter at
    a path for a base of this configuration (None: the family's default), None where it holds none in this layout
    (CheckpointError for a broken one); save: writes a model's;
    tensors: of a layout that keeps them among the tensors of their base: the model's by their names there; family: the
    name of the one family whose adapters lie so, if there is one;
    names_base: whether what is written names the modules of a base and the base itself; keeps_packing: whether it says
    how that was packed in memory. With any of the two its `save` takes a `ForBase`.
    """

    title: str
    holds: Callable[[Path], bool]
    open: Callable[[Path, FamilyFacts, Any], Adapter | None]
    save: SaveAdapter
    tensors: Callable[[nn.Module, FamilyFacts], dict[str, torch.Tensor]] | None = None
    family: str | None = None
    names_base: bool = False
    keeps_packing: bool = False

    def for_base(self, base: ForBase) -> AdapterFormat:
        """The same for a given base."""
        save: Callable[..., None] = self.save
        return replace(self, save=partial(save, base=base)) if self.names_base or self.keeps_packing else self


def read_settings(path: Path, values: Mapping[str, Any]) -> TuningMethod:
    """The settings of an adapter from their values.

    A method of the user's own is a Python file, which is run: an adapter may name it only after the recipe or the
    command line did.
    Raises: CheckpointError.
    """
    method = values.get(TUNING_METHODS.key)
    if isinstance(method, str) and method.endswith(".py") and not is_imported(Path(method)):
        raise CheckpointError(
            f"{path}: names the Python file {method}, which is not run because an adapter says so; if you trust it, "
            "name it yourself: --tuning FILE.py, or tuning.method of the recipe"
        )
    try:
        return TUNING_METHODS.make(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise CheckpointError(f"{path}: not the settings of an adapter ({problems})") from error


def load_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Fill the additions of a tuned model.

    Raises: CheckpointError naming what is missing, surplus, of another shape or no number, and files that changed.
    """
    import torch

    found, places = dict(adapter.tensors), added_parameters(model)
    _check_fit(adapter.path, found, places)
    check_manifest(adapter.path)
    with torch.no_grad():
        for name, parameter in places.items():
            parameter.copy_(refuse_broken(adapter.path, name, found[name]))


def _check_fit(path: Path, found: Mapping[str, torch.Tensor], places: Mapping[str, torch.Tensor]) -> None:
    problems = [
        *(f"missing: {name}" for name in places if name not in found),
        *(f"surplus: {name}" for name in found if name not in places),
        *(
            f"{name}: found {list(found[name].shape)}, expected {list(place.shape)}"
            for name, place in places.items()
            if name in found and found[name].shape != place.shape
        ),
    ]
    if problems:
        listed = "\n  ".join(shorten(problems, _SHOWN))
        raise CheckpointError(f"{path}: the adapter does not fit the model and the settings of tuning\n  {listed}")
