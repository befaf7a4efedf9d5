"""Weights from one layout to another, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.core.files import write_json
from hanlin.core.manifest import check_manifest, published_folder
from hanlin.core.tokenizer import Tokenizer
from hanlin.formats.files import write_shards, write_weights
from hanlin.formats.format import BASE, FamilyFacts, Format
from hanlin.formats.lazy import Joined
from hanlin.formats.ranks import write_ranks
from hanlin.formats.source import open_source, plain_values
from hanlin.formats.translate import shapes_of, to_ours, to_theirs

if TYPE_CHECKING:
    import torch


def convert(  # noqa: PLR0913 a command: what to read, what to write, and its switches
    source: Path,
    family: FamilyFacts,
    from_: str | None,
    to: str,
    target: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
    ranks: int = 1,
    iteration: int | None = None,
    more: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Rewrite weights from one layout (None: told from the files) as the folder `target` in layout `to`.

    changes: config values that win over the source's; tokenizer: written along (None: the source's files are copied);
    ranks: model-parallel ranks to divide the tensors over, where the layout can; iteration: of the training program,
    for its file names (None: the source's, else 1); more: tensors that are written along under these names of theirs
    (soft prompts), to every rank.

    Raises: CheckpointError; the target is whole or not there at all.
    """
    opened = open_source(source, family, from_)
    config = opened.config({**plain_values(family), **(changes or {})})
    ours = to_ours(opened, family, config, shapes_of(family, config))
    check_manifest(opened.path)
    if to != BASE and to not in family.formats:
        raise CheckpointError(f"there is no layout {to!r}; known layouts: {', '.join([BASE, *family.formats])}")
    if ranks != 1 and (to == BASE or not _is_divided(family.formats[to])):
        raise CheckpointError(f"the layout {to!r} is not divided over ranks; leave the number of ranks out")
    with published_folder(target, overwrite=overwrite) as beside:
        if to == BASE:
            write_json(beside / "config.json", {"family": family.name, **asdict(config)})
            write_shards(beside, ours)
        else:
            form, number = family.formats[to], iteration or opened.weights.iteration or 1
            write_json(beside / form.config_files[0], form.write_config(config))
            _write_theirs(beside, form, config, Joined(to_theirs(form, config, ours), more or {}), ranks, number)
        _bring_tokenizer(opened.path, beside, family, tokenizer)


def _is_divided(form: Format) -> bool:
    return form.partitions is not None or form.write is not None


def _write_theirs(
    folder: Path, form: Format, config: Any, theirs: Mapping[str, torch.Tensor], ranks: int, iteration: int
) -> None:
    if form.write is not None:
        form.write(folder, config, theirs, ranks, iteration)
    elif form.partitions is not None:
        write_ranks(folder, theirs, form.partitions, ranks, iteration)
    else:
        write_weights(folder / form.weights_file, theirs, form.shard_bytes)


def _bring_tokenizer(source: Path, folder: Path, family: FamilyFacts, tokenizer: Tokenizer | None) -> None:
    if tokenizer is not None:
        tokenizer.save(folder)
        return
    beside = source if source.is_dir() else source.parent
    for name in {name for form in family.formats.values() for name in form.tokenizer_files}:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
