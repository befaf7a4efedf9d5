"""Weights from one layout to another, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.core.files import write_json
from hanlin.core.manifest import check_manifest, published_folder
from hanlin.core.tokenizer import Tokenizer
from hanlin.formats.files import Weights, write_weights
from hanlin.formats.format import BASE, FamilyFacts, Format
from hanlin.formats.lazy import Joined, Lazy, TensorSubset
from hanlin.formats.load import write_base
from hanlin.formats.ranks import write_ranks
from hanlin.formats.source import Source, open_source, plain_values
from hanlin.formats.translate import shapes_of, to_ours, to_theirs
from hanlin.formats.values import Cast, ValueReport, stored_dtype

if TYPE_CHECKING:
    import torch


_ROWS = "vocab_size"


@dataclass(frozen=True)
class Converted:
    """What there is to say of weights that were written.

    dtype: of the plain numbers; values: what was found in them; bits: of the source's quantised ones, which are plain
    numbers or packed anew in the target (0: it had none).
    """

    dtype: str
    values: ValueReport
    bits: int = 0


def convert(  # noqa: PLR0913 a command: what to read, what to write, and its switches
    source: Path | Source,
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
    dtype: torch.dtype | None = None,
) -> Converted:
    """Rewrite weights from one layout (None: told from the files) as the folder `target` in layout `to`.

    source: where they lie, or what was opened or put together already (`held_source`);
    changes: config values that win over the source's; tokenizer: written along (None: the source's files are copied);
    ranks: model-parallel ranks to divide the tensors over, where the layout can; iteration: of the training program,
    for its file names (None: the source's, else 1); more: tensors that are written along under these names of theirs
    (soft prompts), to every rank; dtype: of the plain numbers that are written (None: the source's).

    Raises: CheckpointError; the target is whole or not there at all.
    """
    _check_layout(family, to)
    opened = open_source(source, family, from_)
    config = opened.config({**plain_values(family), **(changes or {})})
    bits = getattr(opened.config(changes), "bits", 0)
    if dtype is None and bits:
        dtype = _dtype_of(opened.weights)  # of the scales, since what is unpacked is computed in fp32
    ours = Cast(opened.path, _ours(opened, family, config, changes or {}), dtype)
    check_manifest(opened.path)
    if ranks != 1 and (to == BASE or not _is_divided(family.formats[to])):
        raise CheckpointError(f"the layout {to!r} is not divided over ranks; leave the number of ranks out")
    with published_folder(target, overwrite=overwrite) as beside:
        _bring_tokenizer(opened.path, beside, family, tokenizer)
        if to == BASE:
            write_base(beside, family, config, ours)
        else:
            number = iteration or opened.weights.iteration or 1
            _write_theirs(beside, family.formats[to], config, ours, more or {}, ranks, number)
    return Converted(stored_dtype(ours), ours.report, bits)


def _ours(opened: Source, family: FamilyFacts, config: Any, changes: Mapping[str, Any]) -> Lazy:
    """The source's tensors by our names; without the last rows of the vocabulary, where fewer are asked for."""
    shapes = shapes_of(family, config)
    if _ROWS not in changes:
        return to_ours(opened, family, config, shapes)
    others = {name: value for name, value in changes.items() if name != _ROWS}
    own = opened.config({**plain_values(family), **others})
    if getattr(own, _ROWS) <= changes[_ROWS]:
        return to_ours(opened, family, config, shapes)
    return _FirstRows(to_ours(opened, family, own, shapes_of(family, own)), shapes)


class _FirstRows(TensorSubset):
    """Tensors of which those are cut that have more rows than their shape says."""

    def __init__(self, tensors: Lazy, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(tensors, tensors)
        self._shapes = shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        return super().__getitem__(name)[: self._shapes[name][0]]

    def meta(self, name: str) -> torch.Tensor:
        return super().meta(name)[: self._shapes[name][0]]


def _check_layout(family: FamilyFacts, name: str) -> None:
    known = [BASE, *family.formats]
    if reason := family.unwritable.get(name):
        raise CheckpointError(f"{family.name} is not written as {name}: {reason}; known layouts: {', '.join(known)}")
    if name not in known:
        raise CheckpointError(f"there is no layout {name!r}; known layouts: {', '.join(known)}")


def _is_divided(form: Format) -> bool:
    return form.partitions is not None or form.write is not None


def _write_theirs(
    folder: Path,
    form: Format,
    config: Any,
    ours: Mapping[str, torch.Tensor],
    more: Mapping[str, torch.Tensor],
    ranks: int,
    iteration: int,
) -> None:
    stated = {} if form.dtype_key is None else {form.dtype_key: stored_dtype(ours)}
    write_json(folder / form.config_files[0], {**form.write_config(config), **stated})
    theirs = Joined(to_theirs(form, config, ours), more)
    if form.write is not None:
        form.write(folder, config, theirs, ranks, iteration)
    elif form.partitions is not None:
        write_ranks(folder, theirs, form.partitions, ranks, iteration)
    else:
        write_weights(folder / form.weights_file, theirs, form.shard_bytes)
    if form.companions is not None:
        form.companions(folder, config)


def _dtype_of(tensors: Mapping[str, torch.Tensor]) -> torch.dtype | None:
    import torch

    word = stored_dtype(tensors)
    return getattr(torch, word) if word else None


def held_source(path: Path, family: FamilyFacts, config: Any, tensors: Mapping[str, torch.Tensor]) -> Source:
    """Weights in memory, by our names; path: where the files lie from which they were made."""
    return Source(path, family, BASE, asdict(config), lambda: _Held(tensors))


class _Held(Weights):
    """Tensors in memory."""

    files = ()

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _bring_tokenizer(source: Path, folder: Path, family: FamilyFacts, tokenizer: Tokenizer | None = None) -> None:
    """Write the tokenizer into a folder, or copy the files of one that lie beside weights (`source`), as they are."""
    if tokenizer is not None:
        tokenizer.save(folder)
        return
    beside = source if source.is_dir() else source.parent
    for name in {name for form in family.formats.values() for name in form.tokenizer_files}:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
