"""Weights between layouts: into a model, into our base folder, from one layout to another; always tensor by tensor.

Every name of theirs is used or dropped by a rule and every parameter of ours is filled, exactly once; anything else is
an error that lists both sides. This file knows no model: a family brings its `Format`s, its config and its model class.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from hanlin.core.errors import CheckpointError
from hanlin.formats.files import (
    Weights,
    open_weights,
    published,
    read_json,
    write_json,
    write_shards,
    write_weights,
)
from hanlin.formats.lazy import Joined, Lazy, forget, meta_of
from hanlin.formats.ranks import Partitions, RankWeights, find_ranks, write_ranks
from hanlin.formats.rules import Copies, Drop, Move, Rename, Rule, find_moves, rename

if TYPE_CHECKING:
    import torch
    from torch import nn

BASE = "base"
"""The name of our own layout: `config.json` with the family, `model.safetensors`, the tokenizer's files."""

_SHOWN = 8


@dataclass(frozen=True)
class Format:
    """One layout in which a family's weights are found.

    rules: config -> the two-way table of names (its names must not depend on the config, how it cuts tensors may);
    read_config: (their JSON values or {}, weights) -> values of our config, missing ones left out;
    write_config: our config -> their JSON values;
    config_files: where their JSON may lie beside the weights, best first (`*` allowed); the first is the one we write;
    weights_file: the name we write, its ending says the kind; shard_bytes: above it shards with an index are written
    instead (None: never); tokenizer_files: copied along where they are;
    refuse: raises CheckpointError for the JSON of a model that is often taken for one of the family;
    partitions: how the tensors are divided where each model-parallel rank has its own file (None: they never are);
    open: the weights at a path if they lie there in a way of files that only this layout has, else None;
    write: writes our config and their tensors into a folder, for so many ranks and as of an iteration, where that is
    not done as above;
    needed: values of our config that no default may stand for, since these files may lack them;
    soft_prompt: their name of the tensor with soft prompts, which lies among those of the model where it was tuned so.
    """

    title: str
    rules: Callable[[Any], Sequence[Rule]]
    read_config: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], dict[str, Any]]
    write_config: Callable[[Any], dict[str, Any]]
    config_files: tuple[str, ...] = ("config.json",)
    weights_file: str = "pytorch_model.bin"
    shard_bytes: int | None = None
    tokenizer_files: tuple[str, ...] = ()
    refuse: Callable[[Mapping[str, Any]], None] | None = None
    partitions: Partitions | None = None
    open: Callable[[Path], Weights | None] | None = None
    write: Callable[[Path, Any, Mapping[str, torch.Tensor], int, int], None] | None = None
    needed: tuple[str, ...] = ()
    soft_prompt: str | None = None


class FamilyFacts(Protocol):
    """What this file uses of a `models.family.Family`."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> type: ...
    @property
    def model(self) -> Callable[[], type]: ...
    @property
    def formats(self) -> Mapping[str, Any]: ...


Facts = TypeVar("Facts", bound=FamilyFacts)


@dataclass(frozen=True)
class Source:
    """Weights on disk in a known layout."""

    path: Path
    format: str
    weights: Weights
    values: dict[str, Any]


@dataclass(frozen=True)
class Translated(Lazy):
    """Tensors under the names of the other side, each made when it is asked for."""

    tensors: Mapping[str, torch.Tensor]
    moves: dict[str, Move]

    def __getitem__(self, name: str) -> torch.Tensor:
        move = self.moves[name]
        return move.run(tuple(self.tensors[source] for source in move.sources))[move.targets.index(name)]

    def meta(self, name: str) -> torch.Tensor:
        move = self.moves[name]
        return move.run(tuple(meta_of(self.tensors, source) for source in move.sources))[move.targets.index(name)]

    def forget(self, name: str) -> None:
        for source in self.moves[name].sources:
            forget(self.tensors, source)

    def twin(self, name: str) -> str:
        move = self.moves[name]
        return move.targets[0] if isinstance(move.rule, Copies) else name

    def __iter__(self) -> Iterator[str]:
        return iter(self.moves)

    def __len__(self) -> int:
        return len(self.moves)


def find_source(path: Path, family: FamilyFacts, from_: str | None = None) -> Source:
    """Open weights and tell their layout: the given one, our own by its config.json, else by the tensors' names.

    Raises: CheckpointError.
    """
    path = _home(Path(path))
    if is_base(path) and from_ in (None, BASE):
        return Source(path, BASE, open_weights(path), _base_values(path, family))
    weights = open_theirs(path, family)
    name = from_ or weights.layout or recognise(weights, family)
    if name is None or name not in family.formats:
        refuse_lookalikes(path, family)
        known = ", ".join([BASE, *family.formats])
        unlike = f"its tensors are called as in no layout of {family.name} (first: {_some(weights)})"
        raise CheckpointError(f"{path}: {unlike if name is None else f'it is not in layout {name!r}'}; known: {known}")
    return Source(path, name, weights, _their_values(path, family.formats[name]))


def open_theirs(path: Path, family: FamilyFacts) -> Weights:
    """The tensors at a path by their names; those of model-parallel ranks are merged.

    Raises: CheckpointError.
    """
    for form in family.formats.values():
        if form.open is not None and (weights := form.open(path)) is not None:
            return weights
    files = find_ranks(path)
    if not files:
        return open_weights(path)
    partitions = next((form.partitions for form in family.formats.values() if form.partitions is not None), None)
    if partitions is None:
        raise CheckpointError(f"{path}: divided over model-parallel ranks; no layout of {family.name} is")
    return RankWeights(files, partitions)


def refuse_lookalikes(path: Path, family: FamilyFacts) -> None:
    """See that the JSON beside weights is not that of a model which only passes for one of the family.

    Raises: CheckpointError saying what it is.
    """
    for form in family.formats.values():
        if form.refuse is not None and (values := _their_values(path, form)):
            form.refuse(values)


def is_base(path: Path) -> bool:
    """Whether this is a base folder of ours."""
    config = Path(path) / "config.json"
    return config.is_file() and "family" in read_json(config)


def _home(path: Path) -> Path:
    """The base folder of a weights file that lies in one."""
    return path.parent if path.name.startswith("model") and path.is_file() and is_base(path.parent) else path


def open_any(path: Path, families: Iterable[FamilyFacts]) -> Weights:
    """The tensors at a path by their names, whichever family they are of.

    Raises: CheckpointError.
    """
    found = [form.open for family in families for form in family.formats.values() if form.open is not None]
    for opens in dict.fromkeys(found):  # each once, in the order of the families
        if (weights := opens(path)) is not None:
            return weights
    files = find_ranks(path)
    return RankWeights(files, {}) if files else open_weights(path)


def likely_families(names: Iterable[str], families: Iterable[Facts]) -> list[Facts]:
    """The families that know most of the names: several where these do not tell them apart, none where none does.

    So the GPT-2 and the T5 of one program are told apart, which have most of their names in common.
    """
    names = list(names)
    known = [(max(_num_known(names, family).values(), default=0), family) for family in families]
    most = max((count for count, _ in known), default=0)
    return [family for count, family in known if most and count == most]


def recognise(names: Iterable[str], family: FamilyFacts) -> str | None:
    """The layout whose rules know most of the names."""
    known = _num_known(list(names), family)
    best = max(known, key=lambda name: known[name], default=None)
    return best if best is not None and known[best] else None


def _num_known(names: Sequence[str], family: FamilyFacts) -> dict[str, int]:
    """How many of the names each layout has rules for."""
    return {
        layout: sum(len(move.sources) for move in find_moves(form.rules(family.config()), names, "to_ours"))
        for layout, form in family.formats.items()
    }


def read_config(
    path: Path, family: FamilyFacts, changes: Mapping[str, Any] | None = None, from_: str | None = None
) -> Any:
    """The config of weights on disk: from the JSON beside them, completed from the tensors' shapes.

    changes: single values that win over both.

    Raises: CheckpointError.
    """
    path = _home(Path(path))
    if is_base(path) and from_ in (None, BASE):
        return _make_config(path, family, {**_base_values(path, family), **(changes or {})})
    return _config_of(find_source(path, family, from_), family, changes)


def plain_values(family: FamilyFacts) -> dict[str, int]:
    """The config values with which weights are plain numbers, though they may be quantised in their file."""
    return {"bits": 0} if "bits" in {field.name for field in fields(family.config)} else {}


def load_into(
    model: nn.Module,
    path: Path,
    family: FamilyFacts,
    *,
    from_: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    wanted: Callable[[str], bool] | None = None,
    config: Any = None,
) -> None:
    """Fill a model's parameters from weights in any layout of the family, one parameter at a time.

    A parameter on the meta device is made on `device`, with `dtype` (None: as in the file). What a tuning method added
    to the model (`added` of its modules) is not looked for.
    wanted: our name of a tensor -> whether to fill it (None: all of them); the model may then lack some of the others.
    config: that of the weights, where the model has another head than they (None: the model's).

    Raises: CheckpointError naming missing and surplus tensors, and those of another shape.
    """
    source = find_source(path, family, from_)
    is_whole = wanted is None and config is None
    config = config or getattr(model, "config", None) or _config_of(source, family, None)
    parameters = base_parameters(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    translated = _to_ours(source, family, config, shapes if is_whole else _shapes(family, config))
    for name, parameter in parameters.items():
        if wanted is None or wanted(name):
            _fill(model, name, parameter, translated[name], dtype, device)
            translated.forget(name)


def open_ours(path: Path, family: FamilyFacts, *, from_: str | None = None, config: Any = None) -> Translated:
    """The tensors of weights on disk under our names, each read when it is asked for; `forget` gives its memory back.

    For who wants some of them, in an order of their own: a part of the layers, an expert of a mixture.
    config: that of the model they are for (None: as it is on disk).
    Raises: CheckpointError as `load_into` would.
    """
    source = find_source(path, family, from_)
    config = config or _config_of(source, family, None)
    return _to_ours(source, family, config, _shapes(family, config))


def check_fit(path: Path, family: FamilyFacts, changes: Mapping[str, Any] | None = None) -> None:
    """See that weights on disk are whole and fit their config, without loading them.

    Raises: CheckpointError as `load_into` would.
    """
    source = find_source(path, family)
    config = _config_of(source, family, changes)
    _to_ours(source, family, config, _shapes(family, config))


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model without those that a tuning method added."""
    added = added_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if name not in added}


def added_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a tuning method added: those that a module lists as its `added`."""
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "added", ())
    }
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def save_base(
    folder: Path,
    family: FamilyFacts,
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Any = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a base folder in one step; tensors: by our names (of a model: its `base_parameters`).

    Raises: CheckpointError when the folder exists.
    """
    with published(folder, overwrite) as beside:
        beside.mkdir()
        write_json(beside / "config.json", {"family": family.name, **asdict(config)})
        write_shards(beside, tensors)
        if tokenizer is not None:
            tokenizer.save(beside)


def convert(
    source: Path,
    family: FamilyFacts,
    from_: str | None,
    to: str,
    target: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
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
    opened = find_source(source, family, from_)
    config = _config_of(opened, family, {**plain_values(family), **(changes or {})})
    ours = _to_ours(opened, family, config, _shapes(family, config))
    if to != BASE and to not in family.formats:
        raise CheckpointError(f"there is no layout {to!r}; known layouts: {', '.join([BASE, *family.formats])}")
    if ranks != 1 and (to == BASE or not _is_divided(family.formats[to])):
        raise CheckpointError(f"the layout {to!r} is not divided over ranks; leave the number of ranks out")
    with published(target, overwrite) as beside:
        beside.mkdir()
        if to == BASE:
            write_json(beside / "config.json", {"family": family.name, **asdict(config)})
            write_shards(beside, ours)
        else:
            form, number = family.formats[to], iteration or opened.weights.iteration or 1
            write_json(beside / form.config_files[0], form.write_config(config))
            _write_theirs(beside, form, config, Joined(_to_theirs(form, config, ours), more or {}), ranks, number)
        _bring_tokenizer(opened.path, beside, family, tokenizer)


def _is_divided(form: Format) -> bool:
    return form.partitions is not None or form.write is not None


def _to_theirs(form: Format, config: Any, ours: Mapping[str, torch.Tensor]) -> Translated:
    moves = find_moves(form.rules(config), ours, "to_theirs")
    assert sum(len(move.sources) for move in moves) == len(ours), "the rules must know every parameter"
    return Translated(ours, {target: move for move in moves for target in move.targets})


def _write_theirs(
    folder: Path, form: Format, config: Any, theirs: Mapping[str, torch.Tensor], ranks: int, iteration: int
) -> None:
    if form.write is not None:
        form.write(folder, config, theirs, ranks, iteration)
    elif form.partitions is not None:
        write_ranks(folder, theirs, form.partitions, ranks, iteration)
    else:
        write_weights(folder / form.weights_file, theirs, form.shard_bytes)


def _bring_tokenizer(source: Path, folder: Path, family: FamilyFacts, tokenizer: Any) -> None:
    if tokenizer is not None:
        tokenizer.save(folder)
        return
    beside = source if source.is_dir() else source.parent
    for name in {name for form in family.formats.values() for name in form.tokenizer_files}:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)


def _their_values(path: Path, form: Format) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    own = [] if path.is_dir() else [path.with_suffix(".json")]
    found = [*own, *(file for pattern in form.config_files for file in sorted(folder.glob(pattern)))]
    return next((read_json(file) for file in found if file.is_file()), {})


def _base_values(path: Path, family: FamilyFacts) -> dict[str, Any]:
    values = read_json(path / "config.json")
    if (found := values.pop("family")) != family.name:
        raise CheckpointError(f"{path}: holds a model of the family {found!r}; {family.name!r} is asked for")
    return values


def _config_of(source: Source, family: FamilyFacts, changes: Mapping[str, Any] | None) -> Any:
    values = {**source.values, **(changes or {})}
    if source.format != BASE:
        form = family.formats[source.format]
        try:
            values = {**form.read_config(source.values, source.weights), **(changes or {})}
        except CheckpointError as error:
            raise CheckpointError(f"{source.path}: {error}") from error
        if missing := [name for name in form.needed if name not in values]:
            raise CheckpointError(
                f"{source.path}: the files do not tell {' and '.join(missing)}; give them: --config "
                f"{missing[0]}=... of convert, model.config of a recipe, or {form.config_files[0]} beside the weights"
            )
    return _make_config(source.path, family, values)


def _make_config(path: Path, family: FamilyFacts, values: dict[str, Any]) -> Any:
    known = [field.name for field in fields(family.config)]
    if unknown := [name for name in values if name not in known]:
        raise CheckpointError(f"{path}: unknown config values {_with_nearest(unknown, known)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    defaults, kinds = asdict(family.config()), get_type_hints(family.config)
    for name, value in values.items():
        if get_origin(kinds[name]) is Literal and value not in (choices := get_args(kinds[name])):
            known = ", ".join(map(str, choices))
            raise CheckpointError(f"{path}: config value {name}: {value!r} is none of {known}")
        if not _is_like(value, defaults[name]):
            wanted = type(defaults[name]).__name__
            raise CheckpointError(f"{path}: config value {name}: {value!r} is not of the type {wanted}")
    return family.config(**values)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has its default's type; a whole number may stand for a float, a bool for nothing else."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _shapes(family: FamilyFacts, config: Any) -> dict[str, tuple[int, ...]]:
    import torch

    with torch.device("meta"):
        model = family.model()(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _to_ours(source: Source, family: FamilyFacts, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Translated:
    """The source's tensors under our names, checked against the parameters' names and shapes."""
    rules: Sequence[Rule] = [Rename(name, name) for name in shapes]
    if source.format != BASE:
        rules = family.formats[source.format].rules(config)
    moves = find_moves(rules, source.weights, "to_ours")
    translated = Translated(source.weights, {target: move for move in moves for target in move.targets})
    _check_names(source, rules, moves, translated, shapes)
    _check_shapes(source, translated, shapes)
    _check_copies(source, moves)
    return translated


def _check_names(
    source: Source, rules: Sequence[Rule], moves: Sequence[Move], translated: Translated, shapes: Mapping[str, object]
) -> None:
    useful = {name for move in moves if not move.targets or set(move.targets) & set(shapes) for name in move.sources}
    surplus = [name for name in source.weights if name not in useful]
    lacking = [name for name in shapes if name not in translated.moves]
    missing = list(dict.fromkeys(_their_name(rules, name) for name in lacking))
    if not surplus and not missing:
        return
    lines = [f"{source.path}: the tensors do not fit the model ({source.format} layout)"]
    if missing:
        lines.append(f"  missing, {len(missing)}: {_with_nearest(missing, surplus)}")
    if surplus:
        lines.append(f"  surplus, {len(surplus)}: {_with_nearest(surplus, missing)}")
    lines.append("  Compare the config beside the weights with the file; `hanlin inspect` shows what it holds.")
    raise CheckpointError("\n".join(lines))


def _their_name(rules: Sequence[Rule], ours: str) -> str:
    """The tensor of theirs that ours comes from, also when it is one of several parts of it."""
    parts = [Rename(rule.theirs[0], part) for rule in rules for part in rule.ours]
    return rename(parts, ours, "to_theirs") or ours


def _check_shapes(source: Source, translated: Translated, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = []
    for name, expected in shapes.items():
        found = tuple(translated.meta(name).shape)
        if found != expected:
            their_names = ", ".join(translated.moves[name].sources)
            wrong.append(f"  {their_names}: found {list(found)}, expected {list(expected)}")
    if wrong:
        more = [f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        listed = "\n".join([*wrong[:_SHOWN], *more])
        raise CheckpointError(f"{source.path}: tensors of another shape than the config says\n{listed}")


def _check_copies(source: Source, moves: Sequence[Move]) -> None:
    for move in moves:
        if isinstance(move.rule, Drop) and move.rule.same_as is not None:
            dropped, kept = move.sources[0], move.rule.same_as
            if not source.weights[dropped].equal(source.weights[kept]):
                raise CheckpointError(f"{source.path}: {dropped} must be a copy of {kept} in this family, but differs")


def _fill(
    model: nn.Module, name: str, parameter: nn.Parameter, tensor: torch.Tensor, dtype: torch.dtype | None, device: Any
) -> None:
    import torch
    from torch import nn

    if not parameter.is_meta:
        with torch.no_grad():
            parameter.copy_(tensor)
        return
    kept = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype  # quantised ones stay packed
    copy = torch.empty(tensor.shape, dtype=kept, device=device).copy_(tensor)
    owner, _, last = name.rpartition(".")
    model.get_submodule(owner).register_parameter(last, nn.Parameter(copy, parameter.requires_grad))


def _some(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3])


def _with_nearest(names: Sequence[str], others: Sequence[str]) -> str:
    shown = []
    for name in names[:_SHOWN]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        shown.append(f"{name} (nearest: {near[0]})" if near else name)
    return ", ".join(shown) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
