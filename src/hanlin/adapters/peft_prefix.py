"""PEFT's adapter folder of prefix tuning: one table of the keys and values of all blocks, as ours has it.

A prefix that was trained through a projection is saved there as what the projection makes of it. PEFT puts the table
into the cache, so transformers counts it in the positions, which ours are not moved by: where positions turn queries
and keys, the keys of the prefix are turned by as much; a table of positions leaves no way to say it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import ANY_BASE, Adapter, AdapterFormat, ForBase, read_settings
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.peft import about_base, known_to_peft, write_folder
from hanlin.adapters.peft_config import (
    COMMON_KEYS,
    PREFIX_TUNING,
    SETTINGS,
    TABLE,
    peft_type,
    read_table,
    stated_base,
)
from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.format import FamilyFacts, Format

if TYPE_CHECKING:
    import torch
    from torch import nn

_TITLE = "PEFT's adapter folder of prefix tuning"
_OURS = "prefix.embedding.weight"
_SIZES = ("token_dim", "num_attention_heads")
_KEYS = ConfigKeys(
    read=("num_virtual_tokens", *_SIZES),
    # Its projection, if it had one, is worked into the table.
    harmless=(*COMMON_KEYS, "num_layers", "encoder_hidden_size", "prefix_projection", "init_weights"),
    neutral={"num_transformer_submodules": (1, None)},
)


def _holds(path: Path) -> bool:
    return peft_type(path) == PREFIX_TUNING


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    stated, table = read_table(path, _KEYS)
    _, form = _layout(family, None)
    heads, width = (stated.get(name) for name in ("num_attention_heads", "token_dim"))
    if type(heads) is not int or type(width) is not int or heads < 1 or width < heads:
        raise CheckpointError(f"{path / SETTINGS}: num_attention_heads is {heads!r:.20} and token_dim {width!r:.20}")
    head_dim = width // heads
    config = config or replace(family.config(), head_dim=head_dim)
    if head_dim != config.head_dim or table.shape[1] % (2 * width):
        raise CheckpointError(
            f"{path / SETTINGS}: keys of {head_dim} numbers and rows of {table.shape[1]} in {TABLE} do not fit a base "
            f"with heads of {config.head_dim}"
        )
    settings = read_settings(path, {"method": "prefix", "length": len(table)})
    tensors = {_OURS: _turned(form, config, table, width, -len(table))}
    return Adapter(path, _TITLE, settings, tensors, base=stated_base(stated))


def _turned(form: Format, config: Any, table: torch.Tensor, width: int, distance: int) -> torch.Tensor:
    """The table with its keys moved by a distance; width: numbers of one block's keys."""
    import torch

    assert form.prefix_keys is not None, form
    slots = table.double().unflatten(-1, (-1, 2, width // config.head_dim, config.head_dim))
    keys = form.prefix_keys(config, slots[:, :, 0], distance)
    return torch.stack((keys, slots[:, :, 1]), dim=2).flatten(1).to(table.dtype)


def _layout(family: FamilyFacts, layout: str | None) -> tuple[str, Format]:
    """The layout of a model that takes our prefix from PEFT, and its name.

    Raises: CheckpointError where there is none.
    """
    _, first = known_to_peft(family, layout)
    if first.peft == "SEQ_2_SEQ_LM":
        raise CheckpointError(
            f"a prefix of {family.name} is not the same in PEFT: there it stands in the decoder alone, here before the "
            "encoder's attention and the look at the encoder too. Use our adapter folder"
        )
    known = {name: form for name, form in family.formats.items() if form.prefix_keys is not None}
    if not known:
        raise CheckpointError(
            f"a prefix of {family.name} is not the same in PEFT: there it moves the positions of the text, here it "
            "does not. Use our adapter folder"
        )
    if layout not in (None, *known):
        raise CheckpointError(
            f"--layout {layout}: its code takes no prefix from PEFT; known: {', '.join(known)}. `--to original` writes "
            "the original's own file"
        )
    return next((name, form) for name, form in known.items() if layout in (None, name))


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
    table = projected(model)
    width = table.shape[1] // (2 * len(model.prefix.places))
    config = {
        "peft_type": PREFIX_TUNING,
        "num_virtual_tokens": len(table),
        "num_layers": len(model.prefix.places),
        "num_attention_heads": width // model.prefix.head_dim,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    tensors = {TABLE: _turned(form, model.config, table, width, len(table))}
    write_folder(path, tensors, config | about_base(base, layout, form), overwrite=overwrite)


def projected(model: nn.Module) -> Any:
    """The keys and values `[length, width]` that a model's prefix stands for."""
    import torch

    encoder: Any = model.prefix
    with torch.no_grad():
        table = encoder.embedding.weight
        return (table if encoder.trans is None else encoder.trans(table)).detach().float().cpu().contiguous()


PEFT_PREFIX_TUNING = AdapterFormat(_TITLE, _holds, _open, _save, names_base=True)
