"""Weights from one layout to another, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.files import published, write_json
from hanlin.core.manifest import check_manifest, published_folder
from hanlin.core.progress import progress
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
    packing: str | None = None,
    options: Any = None,
) -> Converted:
    """Rewrite weights from one layout (None: told from the files) as the folder `target` in layout `to`.

    source: where they lie, or what was opened or put together already (`held_source`);
    changes: config values that win over the source's; tokenizer: written along (None: the source's files are copied);
    ranks: model-parallel ranks to divide the tensors over, where the layout can; iteration: of the training program,
    for its file names (None: the source's, else 1); more: tensors written along under these names of theirs (soft
    prompts), to every rank; dtype: of the plain numbers that are written (None: the source's); packing: of matrices;
    options: of the family's samples, where other programs are told how questions are written (None: as by default).

    Raises: CheckpointError; the target is whole or not there at all.
    """
    form = _layout(family, to)
    _check_form(form, to, ranks, packing)
    opened = open_source(source, family, from_)
    config = opened.config({**plain_values(family), **(changes or {})})
    bits = getattr(opened.config(changes), "bits", 0)
    dtype = _dtype_of(opened.weights) if dtype is None and bits else dtype  # of the scales: unpacking computes in fp32
    check_manifest(opened.path)
    found = _ours(opened, family, config, changes or {})
    with progress("Converting weights", _size_of(found)) as told, _target(target, form, overwrite) as (place, beside):
        ours = Cast(opened.path, _Counted(found, told), dtype)
        _bring_tokenizer(opened.path, beside, family, tokenizer)
        if form is None:
            write_base(place, family, config, ours)
        else:
            number = iteration or opened.weights.iteration or 1
            _write(place, beside, form, config, ours, _Details(more or {}, ranks, number, packing, options))
    return Converted(packing or stored_dtype(ours), ours.report, bits)


def _size_of(weights: Lazy) -> int:
    return sum(weights.meta(name).nbytes for name in weights)


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


class _Counted(TensorSubset):
    """Tensors; told is how many bytes of them have been read."""

    def __init__(self, tensors: Lazy, advance: Callable[[float], None]) -> None:
        super().__init__(tensors, tensors)
        self._advance = advance

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = super().__getitem__(name)
        self._advance(tensor.nbytes)
        return tensor


class _FirstRows(TensorSubset):
    """Tensors of which those are cut that have more rows than their shape says."""

    def __init__(self, tensors: Lazy, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(tensors, tensors)
        self._shapes = shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        return super().__getitem__(name)[: self._shapes[name][0]]

    def meta(self, name: str) -> torch.Tensor:
        return super().meta(name)[: self._shapes[name][0]]


def _layout(family: FamilyFacts, name: str) -> Format | None:
    """The layout of a family that is called so; None: our own.

    Raises: CheckpointError.
    """
    known = ", ".join([BASE, *family.formats])
    if reason := family.unwritable.get(name):
        raise CheckpointError(f"{family.name} is not written as {name}: {reason}; known layouts: {known}")
    if name != BASE and name not in family.formats:
        raise CheckpointError(f"there is no layout {name!r}; known layouts: {known}")
    return family.formats.get(name)


def _check_form(form: Format | None, name: str, ranks: int, packing: str | None) -> None:
    """Raises: CheckpointError for what the layout cannot do, ConfigError where its library is missing."""
    if ranks != 1 and (form is None or not _is_divided(form)):
        raise CheckpointError(f"the layout {name!r} is not divided over ranks; leave the number of ranks out")
    if packing is not None and (form is None or packing not in form.packings):
        raise CheckpointError(f"the layout {name!r} holds plain numbers, no {packing}; take fp32, bf16 or fp16")
    if form is not None and form.library is not None and find_spec(form.library) is None:
        raise ConfigError(
            f"--to {name} needs the package {form.library}; install it: pip install 'hanlin[{form.library}]'"
        )


@contextmanager
def _target(target: Path, form: Format | None, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """The folder or the file to write, which becomes `target`, and the folder in which the writer finds the tokenizer's
    own files: the same one, if they stay.
    """
    with ExitStack() as stack:
        if form is not None and form.is_file:
            place = stack.enter_context(published(target, "replace" if overwrite else "refuse"))
        else:
            place = stack.enter_context(published_folder(target, overwrite=overwrite))
        if form is None or form.pack is None:
            yield place, place
        else:
            own = Path(stack.enter_context(TemporaryDirectory()))
            yield place if form.is_file else place / form.weights_file, own


def _is_divided(form: Format) -> bool:
    return form.partitions is not None or form.write is not None


@dataclass(frozen=True)
class _Details:
    """What of `convert` only the layouts of others ask for."""

    more: Mapping[str, torch.Tensor]
    ranks: int
    iteration: int
    packing: str | None
    options: Any


def _write(
    place: Path, beside: Path, form: Format, config: Any, ours: Mapping[str, torch.Tensor], details: _Details
) -> None:
    """place: the folder or file; beside: the folder that has the tokenizer's own files."""
    folder = place.parent if form.pack is not None else place
    if form.pack is None:
        _write_theirs(folder, form, config, ours, details)
    else:
        form.write_config(config)  # refuses what the other program does not compute
        form.pack(place, beside, config, to_theirs(form, config, ours), details.packing, details.options)
    if form.companions is not None:
        form.companions(folder, config, details.options)


def _write_theirs(folder: Path, form: Format, config: Any, ours: Mapping[str, torch.Tensor], details: _Details) -> None:
    stated = {} if form.dtype_key is None else {form.dtype_key: stored_dtype(ours)}
    write_json(folder / form.config_files[0], {**form.write_config(config), **stated})
    theirs = Joined(to_theirs(form, config, ours), details.more)
    if form.write is not None:
        form.write(folder, config, theirs, details.ranks, details.iteration)
    elif form.partitions is not None:
        write_ranks(folder, theirs, form.partitions, details.ranks, details.iteration)
    else:
        write_weights(folder / form.weights_file, theirs, form.shard_bytes)


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
