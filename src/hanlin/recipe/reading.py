"""A recipe (a file, or a dict in a program) and changes to it -> a checked `Recipe`, or every mistake in one list.

YAML is read as version 1.2 reads numbers and truth values: `1e-4` is a number, `no` is a word. A key that stands twice
is a mistake. Relative paths count from the current folder. Where the command line chooses another value of a section
that is one of several (another optimizer), what the file says to the old one alone is left out.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hanlin.core.errors import ConfigError
from hanlin.core.files import check_regular, expanded, missing_link
from hanlin.recipe.other_names import OTHER_NAMES, OTHER_VALUES
from hanlin.recipe.settings import Recipe
from hanlin.recipe.union import UNUSABLE, OneOf, find_unions
from hanlin.recipe.unused_settings import unused_settings
from hanlin.recipe.yaml12 import YamlError, full_width_hint, parse_yaml, read_yaml

__all__ = [
    "COMMAND_LINE",
    "Change",
    "Draft",
    "Overrides",
    "Problem",
    "RecipeSource",
    "dump_recipe",
    "listing",
    "load_recipe",
    "make_recipe",
    "name_of",
    "nearest",
    "read_changes",
    "read_recipe",
    "with_changes",
]

COMMAND_LINE = "command line"
_OVERRIDES = "overrides"
"""Where changes stand that a program gives as a dict."""
_GIVEN = "recipe"
"""Where a recipe stands that is no file."""

Found = Iterator[tuple[str, str]]
"""Key and text of problems, as they are found."""


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a recipe from running.

    key: dotted ("train.lr"; empty: the file itself); text: what was found, what was expected and what to do;
    place: "recipe.yaml:12", "command line", or empty when the setting was not given.
    """

    key: str
    text: str
    place: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.text) if part)


class Change(NamedTuple):
    """Another value of a setting. key: dotted; place: as of a problem."""

    key: str
    value: Any
    place: str


RecipeSource = Path | str | Mapping[str, Any] | Recipe
"""A recipe's file, or a run folder; its sections as a dict; its settings."""

Overrides = Mapping[str, Any] | Iterable[str | Change | Problem]
"""Changes to a recipe: words as on the command line (`train.lr=1e-4`), or a dict: {"train.lr": 1e-4}, or with the
settings of a section in a dict of its own: {"train": {"lr": 1e-4}}. What was read of them already stands as it is."""


@dataclass(frozen=True)
class Draft:
    """What could be read of a recipe.

    recipe: made of the settings that are right; None when a section cannot stand without a wrong or missing one.
    places: where each given key stands.
    """

    recipe: Recipe | None
    problems: Sequence[Problem]
    places: Mapping[str, str] = field(default_factory=dict)


def load_recipe(source: RecipeSource, overrides: Overrides = ()) -> Recipe:
    """Read a recipe (or the recipe in a run folder); `overrides` are `train.lr=1e-4` and the like.

    Raises: ConfigError that lists every unknown key, wrong type and wrong value with its line.
    """
    draft = read_recipe(source, overrides)
    if draft.problems or draft.recipe is None:
        raise ConfigError(listing(draft.problems, name_of(source)))
    return draft.recipe


def read_recipe(source: RecipeSource, overrides: Overrides = ()) -> Draft:
    """Read a recipe as far as it can be read; that of a run folder, wherever it was moved to, is of the run in there.

    Raises: ConfigError when the file cannot be read or is not YAML.
    """
    if isinstance(source, Recipe):
        source = source.model_dump(mode="json", exclude_unset=True)
    if isinstance(source, Mapping):
        values = deepcopy(dict(source))
        places = {key: _GIVEN for name, value in values.items() for key in _keys_inside(name, value)}
        problems = _apply_overrides(values, places, overrides)
        return _draft(values, problems, places, _GIVEN)
    given = expanded(_path_of(source))
    path = _recipe_file(given)
    values, lines, problems = _parse(path)
    if _is_run(given) and isinstance(values.setdefault("run", {}), dict):
        values["run"]["folder"] = str(given)
    places = {key: f"{path}:{line}" for key, line in lines.items()}
    problems += _apply_overrides(values, places, overrides)
    return _draft(values, problems, places, str(path))


def name_of(source: RecipeSource) -> str:
    """What a message calls a recipe."""
    return str(source) if isinstance(source, Path | str) else _GIVEN


def make_recipe(values: dict[str, Any], overrides: Overrides = ()) -> Recipe:
    """A recipe of values that a command line has given.

    Raises: ConfigError that lists all problems.
    """
    places: dict[str, str] = {}
    problems = _apply_overrides(values, places, overrides)
    draft = _draft(values, problems, places, COMMAND_LINE)
    if draft.problems or draft.recipe is None:
        raise ConfigError(listing(draft.problems, COMMAND_LINE))
    return draft.recipe


def with_changes(values: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The values of a recipe, with changes made; they are not checked.

    Raises: ConfigError for words that are no change.
    """
    changed = deepcopy(dict(values))
    if problems := _apply_overrides(changed, {}, overrides):
        raise ConfigError(listing(problems, COMMAND_LINE))
    return changed


def listing(problems: Sequence[Problem], path: Path | str) -> str:
    """All problems as one message."""
    if len(problems) == 1:
        return str(problems[0])
    return "\n".join([f"{path}: {len(problems)} problems", *(f"  {problem}" for problem in problems)])


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every setting that has an effect, defaults included; `load_recipe` reads it back."""
    values = recipe.model_dump(mode="json")
    for key in unused_settings(recipe):
        section, name = key.split(".")
        del values[section][name]
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=120)


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion to add to a message about an unknown name: `; did you mean 'x'?`, or the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _is_run(path: Path) -> bool:
    """Whether a run has written here; a recipe of the user's own may be called config.yaml too."""
    return any((path / name).exists() for name in ("checkpoints", "best", "last", "log.txt"))


def _path_of(source: Any) -> Path:
    """Raises: ConfigError."""
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"expected a folder, a recipe (a file, a dict or settings), found {source!r:.80}")
    return Path(source)


def is_recipe(source: RecipeSource) -> bool:
    """Whether a source is a recipe or a run folder, by its name; else it is weights, or data."""
    if isinstance(source, Mapping | Recipe):
        return True
    path = expanded(_path_of(source))
    return path.suffix in (".yaml", ".yml") or (path / "config.yaml").is_file()


_DATA_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")


def _recipe_file(path: Path) -> Path:
    if path.is_dir():
        _refuse_model(path)
        path = path / "config.yaml"
    check_regular(path, ConfigError)
    if not path.is_file():
        here = [str(found) for found in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = [] if path.exists() or path.is_symlink() else difflib.get_close_matches(str(path), here, n=1)
        if not close and re.match(r"[a-z_]+(\.\w+)*=", str(path)):
            raise ConfigError(f"{path}: a setting where a recipe is expected; it stands behind the recipe")
        near = f"; did you mean {close[0]}?" if close else _where_shipped(path)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"{path}: there is no such recipe or run folder{missing_link(path)}{near}")
        raise ConfigError(f"{path}: there is no such recipe{missing_link(path)}{near}")
    if path.suffix.lower() in _DATA_ENDINGS:
        raise ConfigError(
            f"{path}: a file of data, no recipe; a recipe names it in data.train, and `hanlin data show {path}` tells "
            "what is in it"
        )
    return path


def _refuse_model(folder: Path) -> None:
    """Say of a model's folder where a recipe or a run is expected that it is one."""
    if not (folder / "config.yaml").exists() and any(
        next(folder.glob(f"*{ending}"), None) for ending in (".bin", ".safetensors", ".pt", ".bin.index.json")
    ):
        raise ConfigError(
            f"{folder}: a model, where a recipe or a run folder is expected; name it with --base, or in a recipe as "
            "model.base"
        )


def _where_shipped(path: Path) -> str:
    """How to get a recipe that comes with the package, and is named as if it lay here."""
    from hanlin.recipe.shipped import shipped_files

    try:
        is_ours = path.name in {file.name for file in shipped_files("recipes")}
    except ConfigError:
        return ""
    return f"; it comes with hanlin: hanlin recipes copy {path.stem} {path.parent}" if is_ours else ""


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, int], list[Problem]]:
    values, lines, twice = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe has sections (model, data, train, ...); found {_shown(values)}")
    problems = [
        Problem(key, f"stands twice, first in line {lines[key]}; keep one of them", f"{path}:{line}")
        for key, line in twice
    ]
    return values, lines, problems


def _draft(values: dict[str, Any], problems: list[Problem], places: Mapping[str, str], name: str) -> Draft:
    try:
        return Draft(Recipe.model_validate(values), problems, places)
    except ValidationError as error:
        problems += [_explain(detail, name, places, values) for detail in error.errors()]
        return Draft(_salvage(values, error), problems, places)


def _apply_overrides(values: dict[str, Any], places: dict[str, str], overrides: Overrides) -> list[Problem]:
    problems = []
    _spell_out_names(values, places)
    before = {key: _named(values, key, union) for key, union in _unions().items()}
    for change in read_changes(overrides):
        if isinstance(change, Problem):
            problems.append(change)
            continue
        key, value, place = change
        if not _put(values, key.split("."), value):
            problems.append(Problem(key, "leads through a setting that is not a section", place))
        else:
            places |= dict.fromkeys(_keys_inside(key, value), place)
            places.setdefault(key.split(".")[0], place)
            _spell_out_names(values, places)
    _leave_out_replaced(values, places, before)
    return problems


def read_changes(overrides: Overrides) -> list[Change | Problem]:
    """Overrides in the order in which they are made; a word that is none is a problem."""
    if not isinstance(overrides, Mapping):
        return [_read_word(change) if isinstance(change, str) else change for change in overrides]
    found: list[tuple[str, Any]] = []
    for name, value in overrides.items():
        is_section = name in Recipe.model_fields and isinstance(value, Mapping)
        found += [(f"{name}.{key}", inner) for key, inner in value.items()] if is_section else [(str(name), value)]
    return [Change(key, deepcopy(value), _OVERRIDES) for key, value in found]


def _read_word(word: str) -> Change | Problem:
    key, equals, text = word.partition("=")
    try:
        value = parse_yaml(text)[0]
    except YamlError as error:
        return Problem(key, f"{text!r} is not a YAML value: {error}", COMMAND_LINE)
    if not equals or not all(key.split(".")):
        return Problem("", f"{word!r} is not a change of a setting; write train.lr=1e-4", COMMAND_LINE)
    return Change(key, value, COMMAND_LINE)


def _keys_inside(key: str, value: Any) -> Iterator[str]:
    """The key of a value, and those of all settings in it."""
    yield key
    if isinstance(value, Mapping):
        for inner, part in value.items():
            yield from _keys_inside(f"{key}.{inner}", part)


def _spell_out_names(values: dict[str, Any], places: dict[str, str]) -> None:
    """`optimizer: adamw` -> `optimizer: {name: adamw}`, so that single settings can be put beside the name."""
    for key, union in _unions().items():
        *parents, last = key.split(".")
        inside = _at(values, parents)
        if isinstance(inside, dict) and isinstance(inside.get(last), str):
            inside[last] = {union.key: inside[last]}
            places[f"{key}.{union.key}"] = places.get(key, "")


def _leave_out_replaced(values: dict[str, Any], places: dict[str, str], before: Mapping[str, Any]) -> None:
    """What the file says to a value of a section alone, when the command line has chosen another value."""
    for key, union in _unions().items():
        section, name = _at(values, key.split(".")), _named(values, key, union)
        if not isinstance(section, dict) or name == before[key]:
            continue
        known = union.keys_of(name)
        replaced = set(union.keys_of(before[key])) - {union.key, *known} if known else ()
        for setting in replaced:
            if places.get(f"{key}.{setting}") not in (COMMAND_LINE, _OVERRIDES):
                section.pop(setting, None)


@cache
def _unions() -> dict[str, OneOf]:
    return dict(find_unions(Recipe))


def _named(values: Mapping[str, Any], key: str, union: OneOf) -> Any:
    """The value that a section which is one of several names."""
    section = _at(values, key.split("."))
    return section.get(union.key, union.default) if isinstance(section, Mapping) else union.default


def _at(values: Any, keys: Sequence[str]) -> Any:
    """What stands at the end of these keys; None if nothing does."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _put(values: dict[str, Any], keys: Sequence[str], value: Any) -> bool:
    for key in keys[:-1]:
        inner = values.get(key)
        values[key] = values = {} if inner is None else inner
        if not isinstance(values, dict):
            return False
    values[keys[-1]] = value
    return True


def _salvage(values: dict[str, Any], error: ValidationError) -> Recipe | None:
    """The recipe without the settings that are wrong, so that the rest can be checked in the same go."""
    for detail in error.errors():
        *section, name = detail["loc"]
        union = _unions().get(".".join(map(str, section)))
        # A section whose name is wrong cannot keep what else stands in it.
        _remove(values, section if union is not None and name == union.key else detail["loc"])
    try:
        return Recipe.model_validate(values)
    except ValidationError:
        return None


def _remove(values: dict[str, Any], keys: Sequence[str | int]) -> None:
    """Take away what stands at the end of these keys, as far as they lead."""
    first, *rest = keys
    inner = values.get(str(first))
    if rest and isinstance(inner, dict) and rest[0] in inner:
        _remove(inner, rest)
    else:
        values.pop(str(first), None)


def _explain(detail: ErrorDetails, name: str, places: Mapping[str, str], values: Mapping[str, Any]) -> Problem:
    keys = [str(part) for part in detail["loc"]]
    key = ".".join(keys)
    place = next((places[p] for p in (".".join(keys[:n]) for n in range(len(keys), 0, -1)) if p in places), name)
    return Problem(key, _reason(detail, keys, values), place)


def _reason(detail: ErrorDetails, keys: Sequence[str], values: Mapping[str, Any]) -> str:  # noqa: PLR0911 one line for each kind of error
    found = _shown(detail["input"])
    if detail["type"] == UNUSABLE:
        return detail["msg"]
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_setting(keys, values)
        case "missing":
            return "is missing; it has no default"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"a section is expected (indented `name: value` lines); found {found}"
        case "tuple_type":
            return f"a list is expected ([a, b]); found {found}"
        case "literal_error":
            options = [part.strip("'") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]  # type: ignore[typeddict-item]
            return f"found {found}, expected one of: {', '.join(options)}" + _close_word(detail["input"], options)
        case "int_parsing_size":
            return f"the number is far too large; found {found}"
        case "value_error":
            return f"{detail['msg'].removeprefix('Value error, ')}; found {found}"
        case _:
            message = detail["msg"].removeprefix("Input should be ").removeprefix("Value should be ")
            return f"expected {message}; found {found}"


def _unknown_setting(keys: Sequence[str], values: Mapping[str, Any]) -> str:
    """Whose setting it is if it belongs to another value of its section, else the nearest name."""
    *parents, name = keys
    if hint := full_width_hint(name):
        return "there is no such setting" + hint
    section = ".".join(parents)
    union = _unions().get(section)
    if union is None:
        return "there is no such setting" + _nearest_setting(keys, _names(parents))
    chosen, owners = _named(values, section, union), union.owners(name)
    if not owners:
        return "there is no such setting" + _nearest_setting(keys, union.keys_of(chosen))
    return (
        f"is a setting of {union.key} {' or '.join(owners)}, not of {chosen}; remove it, or set "
        f"{section}.{union.key}: {owners[0]}"
    )


def _close_word(found: Any, options: Sequence[str]) -> str:
    close = [value for value in OTHER_VALUES.get(str(found), ()) if value in options]
    close = close or difflib.get_close_matches(str(found).lower(), options, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _nearest_setting(keys: Sequence[str], here: Sequence[str]) -> str:
    """A slip of the pen here, the same name in another section, a name that looks alike, here before elsewhere."""
    name = keys[-1]
    if difflib.get_close_matches(name, here, n=1, cutoff=0.85):
        return nearest(name, here)
    everywhere = _everywhere()
    same = [key for key in everywhere if key.rpartition(".")[2] == name] or [*filter(None, [OTHER_NAMES.get(name)])]
    if same:
        return f"; did you mean {same[0]!r}?"
    if difflib.get_close_matches(name, here, n=1):
        return nearest(name, here)
    endings = {**OTHER_NAMES, **{key.rpartition(".")[2]: key for key in everywhere}}
    close = difflib.get_close_matches(name, endings, n=1, cutoff=0.8)
    return f"; did you mean {endings[close[0]]!r}?" if close else nearest(name, here)


def _everywhere() -> list[str]:
    """The dotted keys of all settings, also of those that only some value of their section has."""
    keys = {f"{section}.{name}" for section in Recipe.model_fields for name in _names([section])}
    for section, union in _unions().items():
        keys |= {f"{section}.{name}" for value in union.names for name in union.keys_of(value)}
    return sorted(keys)


def _names(parents: Sequence[str]) -> list[str]:
    section: Any = Recipe
    for key in parents:
        found = section.model_fields.get(key)
        section = found.annotation if found else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict) else "a section"
    return text if len(text) <= 60 else text[:57] + "..."
