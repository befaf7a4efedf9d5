"""The files of what tuning added: our adapter folder, the originals' files, PEFT's folder.

Our folder: `adapter.safetensors` by our names and `adapter.json` with the tuning settings. Reading knows all of them:
CPM-Bee's delta, ChatGLM2's prefix (adapters/chatglm2_prefix.py), CPM-2's soft prompts (adapters/cpm2_prompts.py).
Each tensor of a file must find its place in the model, and each place its tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hanlin.adapters.chatglm2_prefix import (
    LABEL_VALUES,
    is_original_prefix,
    read_prefix_labels,
    read_prefix_values,
    save_original_prefix,
)
from hanlin.adapters.chatglm2_prefix import our_name as prefix_name
from hanlin.adapters.cpm2_prompts import NAME as SOFT_PROMPT
from hanlin.adapters.cpm2_prompts import find_prompts, save_prompt_file
from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import published, read_json_object, write_json
from hanlin.formats.files import open_weights, write_pickle, write_safetensors
from hanlin.formats.format import FamilyFacts
from hanlin.formats.load import added_parameters
from hanlin.formats.megatron import lies_in_ranks
from hanlin.formats.rules import Direction, rename
from hanlin.recipe.settings import TuningSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_SETTINGS = "adapter.json"
CONFIG = "config"
"""There: values of the model's configuration without which the adapter has no place."""
ADAPTER_FOLDER = "adapter"
"""Where in a base folder an adapter lies that was trained together with the base."""
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_SETTINGS = "adapter_config.json"
ORIGINAL_ALPHA = 16.0
"""The original's scripts fix it; the file does not say it."""

_PEFT_PREFIX = "base_model.model."
_SHOWN = 8


def save_adapter(model: nn.Module, settings: TuningSettings, folder: Path, *, overwrite: bool = False) -> None:
    """Write our adapter folder in one step.

    Raises: CheckpointError when the folder exists.
    """
    tensors = {name: parameter.detach() for name, parameter in added_parameters(model).items()}
    targets = _lora_targets(tensors) if settings.method == "lora" else []
    stated = settings.model_copy(update={"targets": tuple(targets)})
    with published(folder, "replace" if overwrite else "refuse") as beside:
        beside.mkdir()
        write_safetensors(beside / ADAPTER_WEIGHTS, tensors)
        write_json(beside / ADAPTER_SETTINGS, {**stated.model_dump(mode="json"), **_stated_labels(model)})


def read_adapter_config(path: Path, family: FamilyFacts) -> dict[str, Any]:
    """The values of the model's configuration that an adapter brings along: its labels, if it holds a head for such.

    Raises: CheckpointError.
    """
    if (stated := Path(path) / ADAPTER_SETTINGS).is_file():
        return read_json_object(stated).get(CONFIG, {})
    return read_prefix_labels(Path(path), family)


def read_adapter_settings(path: Path, family: FamilyFacts) -> TuningSettings:
    """The settings with which `tuning.apply_tuning` makes room for an adapter of any form.

    A file with soft prompts tells their number alone; places and masks are then those that a recipe gives.

    Raises: CheckpointError.
    """
    path = Path(path)
    if (stated := path / ADAPTER_SETTINGS).is_file():
        return _settings(stated, {name: value for name, value in read_json_object(stated).items() if name != CONFIG})
    if is_original_prefix(path):
        return _settings(path, read_prefix_values(path))
    if (prompts := find_prompts(path, family)) is not None:
        return _settings(path, {"method": "prompt", "prompt": {"length": len(prompts)}})
    tensors = _our_names(path, family)
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A")}
    if len(ranks) != 1:
        raise CheckpointError(f"{path}: one rank for all lora_A is expected, found {sorted(ranks) or 'no lora_A'}")
    alpha, dropout = ORIGINAL_ALPHA, 0.0
    if (stated := path / PEFT_SETTINGS).is_file():
        values = read_json_object(stated)
        alpha, dropout = values.get("lora_alpha", ORIGINAL_ALPHA), values.get("lora_dropout", 0.0)
    values = {
        "method": "lora",
        "rank": ranks.pop(),
        "alpha": alpha,
        "dropout": dropout,
        "targets": _lora_targets(tensors),
        "form": "original",  # OpenDelta and PEFT both add to the finished output
    }
    return _settings(path, values)


def load_adapter(model: nn.Module, path: Path, family: FamilyFacts) -> None:
    """Fill the additions of a tuned model from an adapter in any form.

    Raises: CheckpointError naming what is missing, surplus, or of another shape.
    """
    import torch

    path = Path(path)
    found, places = _our_names(path, family), added_parameters(model)
    _check_fit(path, found, places)
    with torch.no_grad():
        for name, parameter in places.items():
            parameter.copy_(found[name])


def save_original_delta(
    model: nn.Module, settings: TuningSettings, path: Path, family: FamilyFacts, *, overwrite: bool = False
) -> None:
    """Write the additions as the original's delta file (`.pt`); it reads them with alpha 16, so B is adjusted to that.

    The dtype is that of the base weights. The original's scripts expect rank 8.
    A prefix is written as the folder of the original ChatGLM2, soft prompts as a file with CPM-2's name of them.
    """
    if settings.method == "prefix":
        save_original_prefix(model, path, family, overwrite=overwrite)
        return
    if settings.method == "prompt":
        save_prompt_file(model, path, family, overwrite=overwrite)
        return
    _refuse_labels(model)
    tensors = {}
    for name, tensor in _bypassing(model, settings).items():
        module, _, matrix = name.rpartition(".")
        dtype = model.get_parameter(f"{module}.weight").dtype
        adjusted = tensor * (settings.alpha / ORIGINAL_ALPHA) if matrix == "lora_B" else tensor
        tensors[f"{_their_module(module, family, 'original')}.lora.{matrix}"] = adjusted.to(dtype)
    with published(path, "replace" if overwrite else "refuse") as beside:
        write_pickle(beside, tensors)


def save_peft(
    model: nn.Module, settings: TuningSettings, folder: Path, family: FamilyFacts, *, overwrite: bool = False
) -> None:
    """Write PEFT's adapter folder for the model in Hugging Face's naming.

    Raises: CheckpointError for a prefix and for soft prompts, and when the folder exists.
    """
    if settings.method != "lora":
        raise CheckpointError(f"PEFT's folder of a {settings.method} is not written; choose the original's layout")
    _refuse_labels(model)
    tensors, modules = {}, []
    for name, tensor in _bypassing(model, settings).items():
        module, _, matrix = name.rpartition(".")
        modules.append(_their_module(module, family, "huggingface"))
        tensors[f"{_PEFT_PREFIX}{modules[-1]}.{matrix}.weight"] = tensor
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    with published(folder, "replace" if overwrite else "refuse") as beside:
        beside.mkdir()
        write_safetensors(beside / PEFT_WEIGHTS, tensors)
        write_json(beside / PEFT_SETTINGS, config)


def is_adapter(path: Path) -> bool:
    """Whether a path holds an adapter in one of the forms, and not a whole model."""
    path = Path(path)
    if any((path / name).is_file() for name in (ADAPTER_SETTINGS, PEFT_SETTINGS)):
        return True
    if not path.exists() or lies_in_ranks(path):
        return False
    if path.is_file():
        names = list(open_weights(path))
        # No model is a single tensor; soft prompts are.
        if len(names) == 1 or any("lora_" in name for name in names):
            return True
    return is_original_prefix(path)


def _lora_targets(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[-2] for name in names if name.endswith((".lora_A", ".lora_B"))})


def _stated_labels(model: Any) -> dict[str, Any]:
    """What the model's head for labels, which is in the adapter, comes from; {} for a language model."""
    from hanlin.layers.label_head import label_parameters

    is_there = bool(label_parameters(model))
    return {CONFIG: {name: getattr(model.config, name) for name in LABEL_VALUES}} if is_there else {}


def _refuse_labels(model: nn.Module) -> None:
    if _stated_labels(model):
        raise CheckpointError(
            "this adapter holds a head for labels, for which the foreign layouts of a LoRA have no place; work both "
            "into the base: `hanlin convert BASE NEW_FOLDER --merge ADAPTER`"
        )


def _settings(path: Path, values: Mapping[str, Any]) -> TuningSettings:
    try:
        return TuningSettings(**values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise CheckpointError(f"{path}: not the settings of an adapter ({problems})") from error


def _our_names(path: Path, family: FamilyFacts) -> dict[str, torch.Tensor]:
    if not (path / ADAPTER_SETTINGS).is_file() and (prompts := find_prompts(path, family)) is not None:
        return {SOFT_PROMPT: prompts}
    weights = open_weights(path)
    is_ours = (path / ADAPTER_SETTINGS).is_file()
    return {name if is_ours else _our_name(name, family): weights[name] for name in weights}


def _our_name(name: str, family: FamilyFacts) -> str:
    """Whichever of the namings -> `<our module>.lora_A`; a name of none of them stays as it is."""
    if name == SOFT_PROMPT:
        return name
    if of_prefix := prefix_name(name):
        return of_prefix
    plain = name.removeprefix(_PEFT_PREFIX)
    for form in family.formats.values():  # a head for labels, which is a whole tensor
        if whole := rename(form.rules(family.config()), plain, "to_ours"):
            return whole
    module, _, matrix = name.removeprefix(_PEFT_PREFIX).removesuffix(".weight").rpartition(".")
    module = module.removesuffix(".lora")
    return f"{_renamed(module, family, list(family.formats), 'to_ours')}.{matrix}"


def _their_module(module: str, family: FamilyFacts, form: str) -> str:
    return _renamed(module, family, [form] if form in family.formats else [], "to_theirs")


def _renamed(module: str, family: FamilyFacts, forms: list[str], direction: Direction) -> str:
    """A module is called as its weight is."""
    for form in forms:
        if found := rename(family.formats[form].rules(family.config()), f"{module}.weight", direction):
            return found.removesuffix(".weight")
    return module


def _bypassing(model: nn.Module, settings: TuningSettings) -> dict[str, torch.Tensor]:
    """The additions as matrices that bypass the linear's factor, which both foreign forms take for granted."""
    tensors = {name: parameter.detach() for name, parameter in added_parameters(model).items()}
    if settings.form == "original":
        return tensors
    return {
        name: tensor * model.get_submodule(name.rpartition(".")[0]).scale if name.endswith("lora_B") else tensor  # pyright: ignore[reportOperatorIssue]
        for name, tensor in tensors.items()
    }


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
