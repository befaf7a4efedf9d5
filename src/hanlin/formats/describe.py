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
from hanlin.formats.lazy import Joined, Lazy, TensorSubset
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
from hanlin.formats.values import ValueReport, count_values

_SHOWN = 6


@dataclass(frozen=True)
class Description:
    """What weights are. reason: what gave the layout away; problem: why it cannot be loaded, None if it can.

    family, layout: None where no family of ours knows the names; lying: how the tensors lie in files, where that is
    worth a word; num_prompts: soft prompts beside the tensors of a model; num_bytes: of the weight files;
    num_tensors: in the files; dtypes: how many parameters of each, copies of one counted once; shapes: of the first
    tensors, whole ones; config: of our family, in our names; remark: what was told
    of the model from clues in its folder, and why; values: what is in the tensors, where that was asked for.
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
    shapes: dict[str, list[int]] = field(default_factory=dict)
    values: ValueReport | None = None


def describe(path: Path, families: Iterable[FamilyFacts], *, reads_values: bool = False) -> Description:
    """Say which layout of which family a file or folder is in, and whether it is whole.

    reads_values: look at all numbers too, which reads the files once.

    Raises: CheckpointError when there are no readable weights.
    """
    path, families = Path(path), list(families)
    weights = open_any(path, families)
    prompts = {form.soft_prompt for family in families for form in family.formats.values()} & weights.keys()
    family, layout, reason = _identify(path, weights, families)
    whole = weights if family is None or layout == BASE else open_theirs(path, family)
    facts: dict[str, Any] = {"values": count_values(whole) if reads_values else None}
    if family is None:
        return _described(path, whole, whole, None, None, reason, **facts)
    facts["num_prompts"] = sum(len(whole.meta(name)) for name in prompts)
    try:
        source = open_source(path, family)
        config = source.config()
        facts["remark"] = source.remark
        ours = check_fit(path, family)
    except CheckpointError as error:
        return _described(path, whole, whole, family.name, layout, reason, problem=str(error), **facts)
    prompt_tensors = TensorSubset(whole, [name for name in whole if name in prompts])
    once = Joined(ours, prompt_tensors)
    return _described(path, whole, once, family.name, layout, reason, config=asdict(config), **facts)


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
    path: Path, weights: Weights, once: Lazy, family: str | None, layout: str | None, reason: str, **facts: Any
) -> Description:
    """once: the same tensors, of which each is there once."""
    dtypes: Counter[str] = Counter()
    for name in once:
        tensor = once.meta(name)
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
        shapes={name: list(weights.meta(name).shape) for name in list(weights)[:_SHOWN]},
        **facts,
    )
