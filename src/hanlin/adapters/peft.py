"""PEFT's adapter folder of a LoRA, for a model of transformers, or one whose code lies beside the original's weights.

PEFT drops tensors of modules that it does not find, and says so in a warning at most. So what is written names the
linears of exactly one layout, fused ones as they are there, and what is read must name what its tensors belong to.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import ANY_BASE, Adapter, AdapterFormat, ForBase, read_settings
from hanlin.adapters.labels import is_label_parameter, refuse_labels
from hanlin.adapters.lora_names import (
    MAGNITUDE,
    MERGE_THERE,
    PEFT_PREFIX,
    Additions,
    low_rank_of,
    read_additions,
    rules_of,
    tensors_of,
)
from hanlin.adapters.lora_parts import LowRank, join, parts_of_linears, shortest_endings, their_modules
from hanlin.adapters.peft_config import (
    IA3,
    LORA,
    PREFIX_TUNING,
    PROMPT_KINDS,
    SETTINGS,
    WEIGHTS,
    check_modules,
    check_whole,
    lora_factor,
    peft_type,
    read_lora_config,
    stated_base,
)
from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import write_json
from hanlin.core.manifest import published_folder
from hanlin.formats.files import write_safetensors
from hanlin.formats.format import FamilyFacts, Format
from hanlin.formats.source import plain_values
from hanlin.formats.translate import shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

_TITLE = "PEFT's adapter folder of a LoRA"
_FIRST = "huggingface"
"""The layout in whose names an adapter is written where none is asked for."""


def _holds(path: Path) -> bool:
    return peft_type(path) not in (None, IA3, PREFIX_TUNING, *PROMPT_KINDS)


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    if (kind := peft_type(path)) != LORA:
        known = f"{', '.join((LORA, IA3, PREFIX_TUNING, *PROMPT_KINDS[:-1]))} and {PROMPT_KINDS[-1]}"
        raise CheckpointError(
            f"{path / SETTINGS}: peft_type is {kind!r}; {known} are read. Merge it into its base where it was trained, "
            "if it can be merged"
        )
    additions, stated = read_additions(path), read_lora_config(path)
    if additions is None:
        raise CheckpointError(f"{path}: no lora_A among its tensors; copy the whole adapter")
    check_modules(path, stated, (pair.theirs for pair in additions.pairs))
    check_whole(path, stated, additions.others, rules_of(family, config))
    factors = {pair.theirs: lora_factor(path, stated, pair.theirs, len(pair.inner)) for pair in additions.pairs}
    _check_magnitudes(path, stated, additions, family, config)
    settings, pairs = _as_one(additions.ours(family, config), factors, is_rslora=bool(stated.get("use_rslora")))
    tensors = tensors_of(pairs)
    found = read_settings(path, {**settings, "dropout": stated.get("lora_dropout", 0.0)}).resolved(tensors)
    if config is not None:
        found = found.model_copy(update={"targets": _targets(pairs, family, config)})
    tensors |= _head(path, additions, family, config)
    return Adapter(path, _TITLE, found, tensors, base=stated_base(stated))


def _check_magnitudes(
    path: Path, stated: Mapping[str, Any], additions: Additions, family: FamilyFacts, config: Any
) -> None:
    """Raises: CheckpointError where the magnitudes of a DoRA are not those that the configuration says, or mean rows of
    another length here.
    """
    is_dora = bool(stated.get("use_dora"))
    if odd := [pair.theirs for pair in additions.pairs if (pair.magnitude is not None) is not is_dora]:
        has = "no " if is_dora else ""
        raise CheckpointError(
            f"{path / SETTINGS}: use_dora is {is_dora}, but there is {has}{MAGNITUDE} for {', '.join(shorten(odd, 3))}"
        )
    if is_dora:
        import torch

        with torch.device("meta"):
            _refuse_scales(family.model()(config or family.config()))


def _refuse_scales(model: nn.Module) -> None:
    """Raises: CheckpointError for linears with a factor of their own, which PEFT's DoRA does not know."""
    if any(getattr(module, "scale", 1.0) != 1.0 for module in model.modules()):
        raise CheckpointError(
            "a DoRA of this family is not the same in PEFT: its linears multiply what they have computed by a factor, "
            "which PEFT leaves out of the lengths of rows. Use our adapter folder, or a LoRA without dora"
        )


def _as_one(
    pairs: Mapping[str, LowRank], factors: Mapping[str, float], *, is_rslora: bool
) -> tuple[dict[str, Any], dict[str, LowRank]]:
    """Settings, and additions of one rank with one factor, that compute what PEFT computes with a rank and a factor for
    each module: smaller ones are filled up with zeros, and B takes over by how much a factor is another.

    factors: by what the additions of a module of theirs are multiplied.
    """
    rank = max(len(pair.inner) for pair in pairs.values())
    factor = max(factors[pair.theirs] for pair in pairs.values())
    found = {}
    for name, pair in pairs.items():
        outer = pair.outer if factors[pair.theirs] == factor else pair.outer * (factors[pair.theirs] / factor)
        found[name] = replace(pair, inner=_filled(pair.inner, rank, 0), outer=_filled(outer, rank, 1))
    # PEFT adds to the finished output.
    kinds = {"rslora": is_rslora, "dora": any(pair.magnitude is not None for pair in found.values())}
    alpha = factor * (math.sqrt(rank) if is_rslora else rank)
    return {"method": "lora", "rank": rank, "alpha": _number(alpha), "form": "original", **kinds}, found


def _filled(tensor: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    import torch

    if tensor.shape[dim] == size:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((tensor, tensor.new_zeros(shape)), dim)


def _targets(pairs: Iterable[str], family: FamilyFacts, config: Any) -> tuple[str, ...]:
    """Ends of the names of those linears of ours that have an addition, which may be those of some blocks only."""
    linears = [name.removesuffix(".weight") for name, shape in shapes_of(family, config).items() if len(shape) > 1]
    return tuple(shortest_endings(set(pairs), linears))


def _head(path: Path, additions: Additions, family: FamilyFacts, config: Any) -> dict[str, torch.Tensor]:
    """The head for labels, which is trained whole beside a LoRA.

    Raises: CheckpointError for anything else that was trained whole.
    """
    whole = additions.whole(family, config)
    if odd := [name for name in whole if not is_label_parameter(name)]:
        raise CheckpointError(
            f"{path}: tensors of the base were trained whole ({', '.join(shorten(odd))}; see modules_to_save in "
            f"{SETTINGS}), which is not read; {MERGE_THERE}"
        )
    return whole


def _save(
    model: Any,
    settings: Any,
    path: Path,
    family: FamilyFacts,
    *,
    overwrite: bool = False,
    base: ForBase = ANY_BASE,
) -> None:
    layout, form = form_in_peft(model, family, base.layout)
    pairs = _theirs(model, settings, layout, form)
    if settings.dora:
        _refuse_scales(model)
    known = their_modules(form.rules(model.config), [name for name, _ in model.named_parameters()])
    config = {
        "peft_type": LORA,
        **_ranks(pairs, settings.factor, is_rslora=settings.rslora),
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "lora_dropout": settings.dropout,
        "target_modules": shortest_endings({pair.theirs for pair in pairs}, known),
        "bias": "none",
        "fan_in_fan_out": all(pair.stands_transposed for pair in pairs),
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    tensors = {_name_there(name): one for name, one in tensors_of({pair.theirs: pair for pair in pairs}).items()}
    write_folder(path, tensors, config | about_base(base, layout, form), overwrite=overwrite)


def _name_there(name: str) -> str:
    """Of an addition's tensor by our last part of its name."""
    module, _, matrix = name.rpartition(".")
    return f"{PEFT_PREFIX}{module}.{MAGNITUDE if matrix == 'lora_magnitude' else f'{matrix}.weight'}"


def write_folder(
    path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Write an adapter folder of PEFT."""
    with published_folder(path, overwrite=overwrite) as beside:
        write_safetensors(beside / WEIGHTS, tensors)
        write_json(beside / SETTINGS, config)


def about_base(base: ForBase, layout: str, form: Format) -> dict[str, Any]:
    """What every adapter_config.json says of the model that the adapter is for."""
    named = _name_of_base(base, layout)
    return {"task_type": form.peft, "base_model_name_or_path": named, "inference_mode": True}


def _name_of_base(base: ForBase, layout: str) -> str | None:
    """What an adapter calls its base, if that is in the layout whose names it has; said if it is not."""
    if base.files in (None, layout):
        return base.name
    log.warning(
        "the adapter names no base, since that in %s is in the layout %s and not %s; name it to PEFT yourself, or give "
        "--base in that layout",
        *(base.name, base.files, layout),
    )
    return None


def form_in_peft(model: Any, family: FamilyFacts, layout: str | None) -> tuple[str, Format]:
    """`known_to_peft` for the adapter of a model.

    Raises: CheckpointError also for a head for labels, and for a configuration that no model there computes.
    """
    refuse_labels(model)
    name, form = known_to_peft(family, layout)
    form.write_config(replace(model.config, **plain_values(family)))
    return name, form


def known_to_peft(family: FamilyFacts, layout: str | None) -> tuple[str, Format]:
    """A layout of the family whose tensors are called as in a model that PEFT can work on, and its name.

    Raises: CheckpointError where there is none.
    """
    known = {name: form for name, form in family.formats.items() if form.peft is not None}
    if not known:
        raise CheckpointError(
            f"PEFT works on models of transformers, and transformers has none for {family.name}: an adapter in PEFT's "
            "folder would find no module there. Write --to adapter, or work it into the base: "
            "`hanlin convert BASE NEW_FOLDER --merge ADAPTER`"
        )
    wanted = layout or (_FIRST if _FIRST in known else next(iter(known)))
    if wanted not in known:
        raise CheckpointError(
            f"--layout {wanted}: PEFT knows no model of {family.name} whose tensors are called so; known: "
            f"{', '.join(known)}"
        )
    return wanted, known[wanted]


def _theirs(model: nn.Module, settings: Any, layout: str, form: Format) -> list[LowRank]:
    """The additions of a model as those to the linears of a layout.

    Raises: CheckpointError for a linear that is none there.
    """
    from torch import nn

    pairs = low_rank_of(model, settings)
    num_rows = {name: module.out_features for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    rules = form.rules(model.config)
    if lost := sorted(pairs.keys() - parts_of_linears(num_rows, rules)):
        raise CheckpointError(
            f"the layout {layout!r} has no linear that holds {', '.join(shorten(lost))}, so an addition to it cannot "
            "be written there; work it into the base: `hanlin convert BASE NEW_FOLDER --merge ADAPTER`"
        )
    return join(pairs, num_rows, rules)


def _ranks(pairs: list[LowRank], factor: float, *, is_rslora: bool) -> dict[str, Any]:
    """Rank and alpha: the largest for all, others by name. All have one factor, as vLLM takes for granted."""

    def alpha(rank: int) -> float:
        return _number(factor * (math.sqrt(rank) if is_rslora else rank))

    ranks = {pair.theirs: len(pair.inner) for pair in pairs}
    largest = max(ranks.values())
    found: dict[str, Any] = {"r": largest, "lora_alpha": alpha(largest)}
    for rank in sorted(set(ranks.values()) - {largest}):
        for ending in shortest_endings({name for name in ranks if ranks[name] == rank}, ranks):
            found.setdefault("rank_pattern", {})[ending] = rank
            found.setdefault("alpha_pattern", {})[ending] = alpha(rank)
    return found


def _number(value: float) -> float:
    """Whole where it is, up to rounding: PEFT calls its alpha an int."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


PEFT = AdapterFormat(_TITLE, _holds, _open, _save, names_base=True)
