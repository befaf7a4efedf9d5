"""PEFT's `adapter_config.json` of a LoRA, as versions 0.2 to 0.21 write it: what its keys make of the tensors."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.lora_names import MERGE_THERE
from hanlin.adapters.lora_parts import has_ending
from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import has_file, read_json_object
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.files import open_weights
from hanlin.formats.rules import Rule

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
TABLE = "prompt_embeddings"
LORA, IA3, PREFIX_TUNING = "LORA", "IA3", "PREFIX_TUNING"
PROMPT_KINDS = ("PROMPT_TUNING", "P_TUNING")
"""Both keep the vectors that stand before a text; how the second made them is worked into these."""
COMMON_KEYS = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("runtime_config", "task_type"),
)
"""What PEFT writes into any adapter_config.json, and what changes nothing."""
_BEGINNINGS = "corda_config eva_config loftq_config megatron_core qalora_group_size"
_PLAIN = r"(?:[\w^$|-]|\\?\.|\([\w.|\\-]*\))*"
_SIMPLE = re.compile(rf"(?=.{{0,300}}$){_PLAIN}(?:(?:\.\*|\\d\+){_PLAIN}){{0,3}}")
"""What a key of a pattern may look like: expressions from a file must not search for ever."""
_SLOW = re.compile(r"\)[*+{]|\\\d|(?:[*+{].*){4}")
"""In an expression for modules: groups that repeat, references back, or more than three searches."""
_ALL = "all-linear"

_KEYS = ConfigKeys(
    read=(
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern"),
        *("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules"),
    ),
    harmless=(
        *COMMON_KEYS,
        # How the base's weight lies in the file; A and B do not depend on it.
        "fan_in_fan_out",
        # Version 0.2: how to add, not what.
        "merge_weights",
        # How A and B began, where that left the base alone.
        *_BEGINNINGS.split(),
    ),
    # Other ways to begin (PiSSA, OLoRA, LoftQ) take something out of the base, which the adapter then needs.
    neutral={"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None)},
)
_REASONS = {
    "lora_bias": "lora_B has a trained bias",
    "layer_replication": "its model has blocks of the base several times",
    "megatron_config": "its tensors are one rank's of Megatron",
    "trainable_token_indices": "rows of the embedding were trained",
    "target_parameters": "it adds to tensors that are no linear's",
    "enable_lora": "version 0.2 keeps parts of a fused linear in a form of its own",
    "alora_invocation_tokens": "it acts behind certain tokens only",
    "arrow_config": "it chooses among several adapters",
    "use_qalora": "it pools the inputs of A",
    "use_bdlora": "its A and B are divided into blocks",
    "lora_ga_config": "it took something out of the base",
}
"""Keys that are refused unless they are switched off, and why."""
_NAMES = (str, list, type(None))
_KINDS = {
    "r": (int, float),
    "use_rslora": (bool, type(None)),
    "use_dora": (bool, type(None)),
    "layers_pattern": _NAMES,
    "modules_to_save": _NAMES,
    "layers_to_transform": (int, list, type(None)),
}
"""What is read as it stands, and the types of its values."""


def peft_type(path: Path) -> str | None:
    """PEFT's word for its method of tuning; None where a path is no adapter folder of it."""
    file = path / SETTINGS
    return str(read_json_object(file).get("peft_type", LORA)) if has_file(file) else None


def stated_base(stated: Mapping[str, Any]) -> str | None:
    """What an adapter_config.json calls the base that the adapter was trained on, if it does."""
    name = stated.get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def read_table(path: Path, keys: ConfigKeys) -> tuple[dict[str, Any], torch.Tensor]:
    """The values of the adapter_config.json in a folder, and the one tensor of prefix and prompt tuning.

    Raises: CheckpointError.
    """
    stated, weights = read_json_object(path / SETTINGS), open_weights(path)
    keys.check(stated, str(path / SETTINGS))
    if list(weights) != [TABLE]:
        raise CheckpointError(f"{path}: one tensor {TABLE} is expected, found {', '.join(list(weights)[:3])}")
    table = weights[TABLE]
    if (length := stated.get("num_virtual_tokens", len(table))) != len(table):
        raise CheckpointError(
            f"{path / SETTINGS}: num_virtual_tokens is {length}, but {TABLE} has {len(table)} rows; these files do "
            "not belong together"
        )
    return stated, table


def read_lora_config(path: Path) -> dict[str, Any]:
    """The values of the adapter_config.json in a folder.

    Raises: CheckpointError for what is not computed here, and why.
    """
    file = path / SETTINGS
    stated = read_json_object(file)
    for name, reason in _REASONS.items():
        if stated.get(name) not in (None, False, [], {}, ()):
            raise CheckpointError(f"{file}: {name} is {stated[name]!r:.40}: {reason}, which is not read; {MERGE_THERE}")
    _KEYS.check(stated, str(file))
    for name, kinds in _KINDS.items():
        if name in stated and type(stated[name]) not in kinds:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise CheckpointError(f"{file}: {name} is {stated[name]!r:.40}, expected {expected}")
    if type(stated.get("lora_alpha")) not in (int, float) or not stated["lora_alpha"]:
        raise CheckpointError(f"{file}: lora_alpha is {stated.get('lora_alpha')!r}, expected a number other than 0")
    return stated


def lora_factor(path: Path, stated: Mapping[str, Any], module: str, rank: int) -> float:
    """By what PEFT multiplies the addition of a module.

    Raises: CheckpointError where the rank is not the stated one.
    """
    wanted = _of_pattern(path, stated, "rank_pattern", module, stated.get("r", rank))
    if wanted != rank:
        raise CheckpointError(f"{path / SETTINGS}: says rank {wanted} for {module}, whose lora_A has {rank} rows")
    alpha = _of_pattern(path, stated, "alpha_pattern", module, stated["lora_alpha"])
    return alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank)


def _of_pattern(path: Path, stated: Mapping[str, Any], name: str, module: str, otherwise: float) -> float:
    """The value of the first key of PEFT's pattern that is the end of a module's name, or fits it as an expression.

    Raises: CheckpointError for what is no pattern.
    """
    pattern = stated.get(name) or {}
    if not isinstance(pattern, Mapping) or not all(type(value) in (int, float) for value in pattern.values()):
        raise CheckpointError(f"{path / SETTINGS}: {name} is {pattern!r:.60}, expected modules and a number for each")
    for key, value in pattern.items():
        if not _SIMPLE.fullmatch(key):
            raise CheckpointError(
                f"{path / SETTINGS}: {name}: {key!r:.40} is no name of modules as PEFT's are; name them, or "
                "write them with dots, .* and \\d+ (three times at most)"
            )
        if _compiled(path, name, rf"(.*\.)?({key})$").match(module):
            return value
    return otherwise


def check_modules(path: Path, stated: Mapping[str, Any], modules: Iterable[str]) -> None:
    """See that the configuration names every module to which a file has an addition; PEFT drops one that it does not.

    Raises: CheckpointError.
    """
    modules = list(modules)
    for name, is_wanted in (("target_modules", True), ("exclude_modules", False)):
        odd = [module for module in modules if _names(path, name, stated.get(name), module) is (not is_wanted)]
        _refuse(path, name, stated, odd)
    if (layers := stated.get("layers_to_transform")) not in (None, []):
        layers = layers if isinstance(layers, list) else [layers]
        odd = [module for module in modules if _layer(path, stated.get("layers_pattern"), module) not in layers]
        _refuse(path, "layers_to_transform", stated, odd)


def _refuse(path: Path, name: str, stated: Mapping[str, Any], odd: Sequence[str]) -> None:
    if odd:
        raise CheckpointError(
            f"{path / SETTINGS}: by its {name} ({stated[name]!r:.60}) there is no addition to "
            f"{', '.join(shorten(odd, 3))}, but the file has one, which PEFT would drop without a word. Correct "
            f"{name}, or take those tensors out"
        )


def _names(path: Path, name: str, value: Any, module: str) -> bool | None:
    """Whether a list of names, or an expression, names a module; None where it is not stated, or not compared."""
    if value in (None, [], "", _ALL):
        return None
    if isinstance(value, list):
        return any(has_ending(module, str(ending)) for ending in value)
    if not isinstance(value, str):
        raise CheckpointError(f"{path / SETTINGS}: {name} is {value!r:.40}, expected names or an expression")
    if len(value) > 300 or _SLOW.search(value):
        log.warning("%s: %s is not compared, since it may search for ever; its tensors tell", path / SETTINGS, name)
        return None
    return bool(_compiled(path, name, value).fullmatch(module))


def _layer(path: Path, patterns: Any, module: str) -> int | None:
    """The number of the block that a module is in: the first in its name, or that behind one of the patterns."""
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns or [r"[^.]*"]
    for pattern in map(str, patterns):
        if not (pattern == r"[^.]*" or _SIMPLE.fullmatch(pattern)):
            raise CheckpointError(f"{path / SETTINGS}: layers_pattern: {pattern!r:.40} is no name of blocks")
        if found := _compiled(path, "layers_pattern", rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.").match(module):
            return int(found["number"])
    return None


def check_whole(
    path: Path, stated: Mapping[str, Any], others: Collection[str], layouts: Iterable[Sequence[Rule]]
) -> None:
    """Compare `modules_to_save` with the tensors of a file that are no additions; all by their names.

    Raises: CheckpointError for a module that is named and a part of the model, but not in the file.
    """
    known = {theirs.rpartition(".")[0] for rules in layouts for rule in rules for theirs in rule.theirs}
    there = {name.rpartition(".")[0] for name in others}
    given = stated.get("modules_to_save") or ()
    for wanted in [given] if isinstance(given, str) else given:
        is_part = any(has_ending(module, str(wanted)) for module in known)
        if is_part and not any(has_ending(module, str(wanted)) for module in there):
            raise CheckpointError(
                f"{path}: modules_to_save of {SETTINGS} says that {wanted} was trained whole, but no tensor of it is "
                "there; copy the whole adapter"
            )


def _compiled(path: Path, name: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise CheckpointError(f"{path / SETTINGS}: {name}: {expression!r:.40} is no expression ({error})") from None
