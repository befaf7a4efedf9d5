"""What lies at a path, told from the files themselves; the facts behind `hanlin inspect`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import BASE, FamilyFacts, check_fit, is_base, read_config, recognise, refuse_lookalikes
from hanlin.formats.files import Weights, open_weights, read_json

# What low-rank tuning and prefix tuning call what they add.
_ADDED = re.compile(r"lora_|^prefix\.|^transformer\.prefix_encoder\.")


@dataclass(frozen=True)
class Description:
    """kind: model or adapter; reason: what gave the layout away; problem: why it cannot be loaded, None if it can.

    family, layout: None where no family of ours knows the names; num_bytes: of the weight files;
    dtypes: how many parameters of each; config: of our family, in our names.
    """

    path: Path
    kind: str
    family: str | None
    layout: str | None
    reason: str
    num_tensors: int
    num_parameters: int
    num_layers: int
    num_bytes: int
    dtypes: dict[str, int]
    config: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def describe(path: Path, families: Iterable[FamilyFacts]) -> Description:
    """Say which layout of which family a file or folder is in, and whether it is whole.

    Raises: CheckpointError when there are no readable weights.
    """
    path = Path(path)
    weights = open_weights(path)
    if any(_ADDED.search(name) for name in weights):
        return _described(path, weights, "adapter", None, None, _adapter_reason(weights))
    family, layout, reason = _identify(path, weights, list(families))
    if family is None:
        return _described(path, weights, "model", None, None, reason)
    try:
        config = read_config(path, family)
        check_fit(path, family)
    except CheckpointError as error:
        return _described(path, weights, "model", family.name, layout, reason, problem=str(error))
    return _described(path, weights, "model", family.name, layout, reason, config=asdict(config))


def _identify(path: Path, weights: Weights, families: list[FamilyFacts]) -> tuple[FamilyFacts | None, str | None, str]:
    if is_base(path):
        name = read_json(path / "config.json")["family"]
        family = next((family for family in families if family.name == name), None)
        return family, BASE, f"config.json names the family {name}"
    for family in families:
        if layout := recognise(weights, family):
            return family, layout, f"tensors are called as there (first: {next(iter(weights))})"
    for family in families:
        try:
            refuse_lookalikes(path, family)
        except CheckpointError as error:
            return None, None, str(error)
    return None, None, f"no known family calls its tensors so (first: {', '.join(list(weights)[:3])})"


def _adapter_reason(weights: Weights) -> str:
    first = next(name for name in weights if _ADDED.search(name))
    if first.startswith("base_model.model."):
        return f"PEFT's names ({first})"
    if first.startswith("transformer.prefix_encoder."):
        return f"the original ChatGLM2's prefix ({first})"
    return f"the original CPM-Bee's delta ({first})" if ".lora.lora_" in first else f"our names ({first})"


def _described(
    path: Path, weights: Weights, kind: str, family: str | None, layout: str | None, reason: str, **facts: Any
) -> Description:
    dtypes: Counter[str] = Counter()
    for name in weights:
        dtypes[str(weights[name].dtype).removeprefix("torch.")] += weights[name].numel()
    layers = {match[1] for name in weights if (match := re.search(r"(?:^|\.)(\d+)\.", name))}
    return Description(
        path=path,
        kind=kind,
        family=family,
        layout=layout,
        reason=reason,
        num_tensors=len(weights),
        num_parameters=sum(dtypes.values()),
        num_layers=len(layers),
        num_bytes=sum(file.stat().st_size for file in weights.files),
        dtypes=dict(dtypes),
        **facts,
    )
