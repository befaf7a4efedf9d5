"""PEFT's adapter folder of prompt tuning: vectors that stand before the embedded tokens of a text, as ours do in a
decoder whose samples have one place for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hanlin.adapters.adapter import ANY_BASE, Adapter, AdapterFormat, ForBase, read_settings
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.peft import about_base, known_to_peft, write_folder
from hanlin.adapters.peft_config import (
    COMMON_KEYS,
    PROMPT_KINDS,
    TABLE,
    peft_type,
    read_table,
    stated_base,
)
from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.format import FamilyFacts, Format

_TITLE = "PEFT's adapter folder of prompt tuning"
_OURS = "soft_prompt.weight"
_ENCODER = ("dropout", "hidden_size", "num_layers", "reparameterization_type")
_KEYS = ConfigKeys(
    read=("num_virtual_tokens",),
    # The sizes are those of the table; how its first values came about, and an encoder, are worked into it.
    harmless=(
        *COMMON_KEYS,
        *("token_dim", "num_attention_heads", "num_layers", *(f"encoder_{part}" for part in _ENCODER)),
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    ),
    neutral={"num_transformer_submodules": (1, None)},
)


def _holds(path: Path) -> bool:
    return peft_type(path) in PROMPT_KINDS


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    _layout(family, None)
    stated, table = read_table(path, _KEYS)
    settings = read_settings(path, {"method": "prompt", "length": len(table)})
    return Adapter(path, _TITLE, settings, {_OURS: table}, base=stated_base(stated))


def _layout(family: FamilyFacts, layout: str | None) -> tuple[str, Format]:
    """See `known_to_peft`.

    Raises: CheckpointError also for an encoder-decoder.
    """
    name, form = known_to_peft(family, layout)
    if form.peft != "CAUSAL_LM":
        raise CheckpointError(
            f"soft prompts of {family.name} are not the same in PEFT: there they stand before the encoder's text, and "
            "all of it sees them. Use our adapter folder, or the original's file"
        )
    return name, form


def _save(
    model: Any,
    settings: Any,
    path: Path,
    family: FamilyFacts,
    *,
    overwrite: bool = False,
    base: ForBase = ANY_BASE,
) -> None:
    refuse_labels(model)
    layout, form = _layout(family, base.layout)
    if not settings.is_seen:
        raise CheckpointError("tuning.is_seen is false: in PEFT a text always sees its prompts; use our adapter folder")
    if settings.borders((1.0, 0.0, 0.0))[0] != settings.length:
        raise CheckpointError("tuning.ratios: in PEFT all prompts stand in front of a text; use our adapter folder")
    table = model.soft_prompt.weight.detach().float().contiguous()
    config = {
        "peft_type": PROMPT_KINDS[0],
        "num_virtual_tokens": len(table),
        "token_dim": table.shape[1],
        "num_layers": model.config.num_layers,
        "num_attention_heads": model.config.num_heads,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    write_folder(path, {TABLE: table}, config | about_base(base, layout, form), overwrite=overwrite)


PEFT_PROMPT_TUNING = AdapterFormat(_TITLE, _holds, _open, _save, names_base=True)
