"""What weights of a model lie at a path, told from the files themselves; the facts behind `hanlin inspect`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object
from hanlin.formats.files import Weights
from hanlin.formats.format import BASE, FamilyFacts
from hanlin.formats.load import check_fit
from hanlin.formats.source import (
    is_base,
    likely_families,
    open_any,
    open_source,
    open_theirs,
    recognise,
    refuse_lookalikes,
)


@dataclass(frozen=True)
class Description:
    """What weights are. reason: what gave the layout away; problem: why it cannot be loaded, None if it can.

    family, layout: None where no family of ours knows the names; lying: how the tensors lie in files, where that is
    worth a word; num_prompts: soft prompts beside the tensors of a model; num_bytes: of the weight files;
    dtypes: how many parameters of each; config: of our family, in our names; remark: what was told of the model from
    clues in its folder, and why.
    """

    path: Path
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
    lying: str = ""
    iteration: int | None = None
    num_prompts: int = 0
    remark: str = ""


def describe(path: Path, families: Iterable[FamilyFacts]) -> Description:
    """Say which layout of which family a file or folder is in, and whether it is whole.

    Raises: CheckpointError when there are no readable weights.
    """
    path, families = Path(path), list(families)
    weights = open_any(path, families)
    prompts = {form.soft_prompt for family in families for form in family.formats.values()} & weights.keys()
    family, layout, reason = _identify(path, weights, families)
    if family is None:
        return _described(path, weights, None, None, reason)
    whole = weights if layout == BASE else open_theirs(path, family)
    facts: dict[str, Any] = {"num_prompts": sum(len(whole.meta(name)) for name in prompts)}
    try:
        source = open_source(path, family)
        config = source.config()
        facts["remark"] = source.remark
        check_fit(path, family)
    except CheckpointError as error:
        return _described(path, whole, family.name, layout, reason, problem=str(error), **facts)
    return _described(path, whole, family.name, layout, reason, config=asdict(config), **facts)


def _identify(path: Path, weights: Weights, families: list[FamilyFacts]) -> tuple[FamilyFacts | None, str | None, str]:
    if is_base(path):
        name = read_json_object(path / "config.json")["family"]
        family = next((family for family in families if family.name == name), None)
        return family, BASE, f"config.json names the family {name}"
    known = likely_families(weights, families)
    if len(known) == 1:
        layout = weights.layout or recognise(weights, known[0])
        return known[0], layout, f"tensors are called as there (first: {next(iter(weights))})"
    if known:
        return None, None, f"tensors are called as in {' and '.join(family.name for family in known)}; give the family"
    for family in families:
        try:
            refuse_lookalikes(path, family)
        except CheckpointError as error:
            return None, None, str(error)
    return None, None, f"no known family calls its tensors so (first: {', '.join(list(weights)[:3])})"


def _described(
    path: Path, weights: Weights, family: str | None, layout: str | None, reason: str, **facts: Any
) -> Description:
    dtypes: Counter[str] = Counter()
    for name in weights:
        tensor = weights.meta(name)
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    layers = {match[1] for name in weights if (match := re.search(r"(?:^|\.)(\d+)\.", name))}
    return Description(
        path=path,
        family=family,
        layout=layout,
        reason=reason,
        num_tensors=len(weights),
        num_parameters=sum(dtypes.values()),
        num_layers=len(layers),
        num_bytes=sum(file.stat().st_size for file in weights.files),
        dtypes=dict(dtypes),
        lying=weights.lying,
        iteration=weights.iteration,
        **facts,
    )
