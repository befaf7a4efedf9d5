"""Weights on disk: which layout they are in, their tensors by their own names, and the config of their model.

This file knows no model: a family brings its `Format`s, its config and its model class.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import has_file, read_json_object
from hanlin.core.manifest import check_complete, check_manifest
from hanlin.formats.files import Weights, open_weights
from hanlin.formats.format import BASE, DTYPE_KEY, FamilyFacts, Format
from hanlin.formats.ranks import RankWeights, find_ranks
from hanlin.formats.rules import find_moves

Facts = TypeVar("Facts", bound=FamilyFacts)

_SHOWN = 8  # names in a message
_DTYPES = ("", "float64", "float32", "float16", "bfloat16")  # that a base folder may say its weights have


@dataclass(frozen=True)
class Source:
    """Weights on disk in a known layout (`format`) of a family; values: what the JSON beside them says."""

    path: Path
    family: FamilyFacts
    format: str
    values: dict[str, Any]
    open: Callable[[], Weights]

    @cached_property
    def weights(self) -> Weights:
        """The tensors by their own names. Files are opened when this is first asked for.

        Raises: CheckpointError.
        """
        return self.open()

    @property
    def remark(self) -> str:
        """What was told of the model from clues in its folder, and why; empty where its files say all.

        Raises: CheckpointError.
        """
        if self.format == BASE:
            return ""
        tell = self.family.formats[self.format].remark
        told = [] if tell is None else [tell(self.values, self.weights)]
        idle = "among its tensors is what a tuning method trained; name these files as model.adapter too to use it"
        return "; ".join([*told, *(f"{name} {idle}" for name in self.tuned_names[:1])])

    @property
    def tuned_names(self) -> list[str]:
        """The tensors among those of the model that a tuning method has added: an adapter may be opened from them."""
        if self.format == BASE:
            return []
        form = self.family.formats[self.format]
        return [
            name
            for name in self.weights
            if name == form.soft_prompt or (form.prefix is not None and name.startswith(form.prefix))
        ]

    def config(self, changes: Mapping[str, Any] | None = None) -> Any:
        """The config of the weights: from the JSON beside them, completed from the tensors' shapes.

        changes: single values that win over both.
        Raises: CheckpointError.
        """
        try:
            return _config_of(self, changes or {})
        except CheckpointError as error:
            try:
                check_manifest(self.path)
            except CheckpointError as damage:
                raise CheckpointError(f"{error} ({damage})") from None
            raise


def open_source(path: Path | Source, family: FamilyFacts, from_: str | None = None) -> Source:
    """Open weights and tell their layout: the given one, our own by its config.json, else by the tensors' names.

    path: what is opened already is taken as it is.
    Raises: CheckpointError.
    """
    if isinstance(path, Source):
        return path
    path = _home(Path(path))
    check_complete(path)
    if is_base(path) and from_ in (None, BASE):
        return Source(path, family, BASE, _base_values(path, family), lambda: open_weights(path))
    weights = open_theirs(path, family)
    name = from_ or weights.layout or recognise(weights, family)
    if name is None or name not in family.formats:
        refuse_lookalikes(path, family)
        known = ", ".join([BASE, *family.formats])
        unlike = f"its tensors are called as in no layout of {family.name} (first: {_some(weights)})"
        raise CheckpointError(f"{path}: {unlike if name is None else f'it is not in layout {name!r}'}; known: {known}")
    return Source(path, family, name, _their_values(path, family.formats[name]), lambda: weights)


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
    if partitions is None and len(files) > 1:
        raise CheckpointError(f"{path}: divided over model-parallel ranks; no layout of {family.name} is")
    return RankWeights(files, partitions or {})


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
    return has_file(config) and "family" in read_json_object(config)


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
    path: Path | Source, family: FamilyFacts, changes: Mapping[str, Any] | None = None, from_: str | None = None
) -> Any:
    """The config of weights on disk; see `Source.config`.

    Raises: CheckpointError.
    """
    return open_source(path, family, from_).config(changes)


def _config_of(source: Source, changes: Mapping[str, Any]) -> Any:
    values, family = {**source.values, **changes}, source.family
    if source.format != BASE:
        form = family.formats[source.format]
        try:
            values = {**form.read_config(source.values, source.weights), **changes}
            form.config_keys.check({**source.weights.arguments, **source.values}, _config_name(source.path, form))
        except CheckpointError as error:
            raise CheckpointError(f"{source.path}: {error}") from error
        if form.head_rows is not None:
            values = _with_head_size(source.path, values, changes, form.head_rows(source.weights))
        if missing := [name for name in form.needed if name not in values]:
            raise CheckpointError(
                f"{source.path}: the files do not tell {' and '.join(missing)}; give them: --config "
                f"{missing[0]}=... of convert, model.config of a recipe, or {form.config_files[0]} beside the weights"
            )
    return _make_config(source.path, family, values)


def _with_head_size(path: Path, values: dict[str, Any], changes: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The number and the size of heads, where one of them is told; what is asked for wins over what was read.

    rows: of all heads together.
    Raises: CheckpointError when they do not come out even.
    """
    told = changes if {"num_heads", "head_dim"} & changes.keys() else values
    known = [name for name in ("num_heads", "head_dim") if isinstance(told.get(name), int) and told[name] > 0]
    if len(known) != 1:
        return values
    other = "head_dim" if known == ["num_heads"] else "num_heads"
    if rows % told[known[0]]:
        raise CheckpointError(f"{path}: {known[0]} {told[known[0]]} does not divide the {rows} rows of all heads")
    return {**values, other: rows // told[known[0]]}


def _make_config(path: Path, family: FamilyFacts, values: dict[str, Any]) -> Any:
    known = [field.name for field in fields(family.config)]
    if unknown := [name for name in values if name not in known]:
        raise CheckpointError(f"{path}: unknown config values {with_nearest(unknown, known)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    defaults, kinds = asdict(family.config()), get_type_hints(family.config)
    for name, value in values.items():
        if get_origin(kinds[name]) is Literal and value not in (choices := get_args(kinds[name])):
            known = ", ".join(map(str, choices))
            raise CheckpointError(f"{path}: config value {name}: {value!r} is none of {known}")
        if not _is_like(value, defaults[name]):
            wanted = type(defaults[name]).__name__
            raise CheckpointError(f"{path}: config value {name}: {value!r} is not of the type {wanted}")
    if problems := implausible_values(values, defaults):
        told = "; ".join(f"{name}: {text}" for name, text in problems.items())
        raise CheckpointError(f"{path}: config value {told}")
    return family.config(**values)


def implausible_values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Numbers of a config that no model has, by name, with what is wrong with them.

    A model of a giant shape would take all memory before anything is read; a dropout of 2 would end the first step.
    """
    problems = {name: _implausible(name, value, defaults.get(name)) for name, value in values.items()}
    return {name: f"{text}; found {values[name]!r}" for name, text in problems.items() if text}


def _implausible(name: str, value: Any, default: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    limit = 10_000 if name.startswith("num_") else 100_000_000
    if not abs(value) <= limit:  # nor is what is no number
        return f"no model has more than {limit:,}"
    is_size = name.startswith(("num_", "max_")) or name.endswith(("_size", "_dim", "_multiple"))
    # A default of 0 means that there is none of them (experts).
    if is_size and value <= 0 and value != default:
        return "must be greater than 0"
    if "dropout" in name and not 0 <= value < 1:
        return "a share of at least 0 and less than 1 is expected"
    if name.endswith("_share") and not 0 < value <= 1:
        return "a share of more than 0 and at most 1 is expected"
    if name.endswith(("_base", "_divisor")) and value <= 0:
        return "must be greater than 0"
    return "must not be less than 0" if name.endswith(("_eps", "_std")) and value < 0 else ""


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has its default's type; a whole number may stand for a float, a bool for nothing else."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def plain_values(family: FamilyFacts) -> dict[str, int]:
    """The config values with which weights are plain numbers, though they may be quantised in their file."""
    return {"bits": 0} if "bits" in {field.name for field in fields(family.config)} else {}


def _their_values(path: Path, form: Format) -> dict[str, Any]:
    file = _config_file(path, form)
    return {} if file is None else read_json_object(file)


def _config_name(path: Path, form: Format) -> str:
    """What a message calls the place of a config, or of the arguments in the weights."""
    file = _config_file(path, form)
    return f"the arguments in the weights (a {form.config_files[0]} beside them wins)" if file is None else file.name


def _config_file(path: Path, form: Format) -> Path | None:
    folder = path if path.is_dir() else path.parent
    own = [] if path.is_dir() else [path.with_suffix(".json")]
    found = [*own, *(file for pattern in form.config_files for file in sorted(folder.glob(pattern)))]
    return next((file for file in found if has_file(file)), None)


def _base_values(path: Path, family: FamilyFacts) -> dict[str, Any]:
    values = read_json_object(path / "config.json")
    if (found := values.pop("family")) != family.name:
        raise CheckpointError(f"{path}: holds a model of the family {found!r}; {family.name!r} is asked for")
    dtype = values.pop(DTYPE_KEY, "")
    if dtype not in _DTYPES:
        raise CheckpointError(f"{path}: config value {DTYPE_KEY}: {dtype!r} is none of {', '.join(_DTYPES[1:])}")
    return values


def _some(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3])


def with_nearest(names: Sequence[str], others: Sequence[str]) -> str:
    listed = shorten([name or repr(name) for name in names], _SHOWN)
    for number, name in enumerate(names[:_SHOWN]):
        if near := difflib.get_close_matches(name, others, n=1, cutoff=0.8):
            listed[number] = f"{name} (nearest: {near[0]})"
    return ", ".join(listed)
