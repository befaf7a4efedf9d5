"""The file of a comparison: recipes x methods x seeds, and the cells that it stands for. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, StrictInt, ValidationError, field_validator, model_validator

from hanlin.core.errors import ConfigError
from hanlin.core.field_problems import first_field_problem
from hanlin.core.files import check_regular
from hanlin.recipe.reading import Change, nearest, read_changes
from hanlin.recipe.section import Settings
from hanlin.recipe.yaml12 import read_yaml

__all__ = ["CELLS", "Cell", "General", "Grid", "as_words", "general_changes", "read_grid"]

CELLS = "cells"
"""In the folder of a grid: the run folders, RECIPE/METHOD/seedN."""

_NAME = re.compile(r"[\w\u4e00-\u9fff][\w\u4e00-\u9fff.+-]*")
_OWN = ("run.folder", "run.seed")
"""Settings that the grid makes itself."""
_MOST_CELLS = 10_000

Changes = Mapping[str, Any]


class General(Settings):
    """General text, whose loss before and after tells what a tuned model has forgotten."""

    data: tuple[Path, ...] = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)


class GridRecipe(Settings):
    """A recipe of the grid, with changes of its own; methods: those that are tried on it (none: all); score: as of the
    grid.
    """

    recipe: Path
    set: dict[str, Any] = Field(default_factory=dict)
    methods: tuple[str, ...] = ()
    score: str | None = None


class Grid(Settings):
    """A file of `hanlin compare`.

    folder: of all that it writes; recipes: by name; methods: name -> settings over each recipe; seeds: each a run;
    set: settings over all recipes; score: TASK.METRIC of `hanlin evaluate`; general: text that has nothing to do with
    what is tuned on.
    """

    folder: Path
    recipes: dict[str, GridRecipe] = Field(min_length=1)
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[StrictInt, ...] = Field(default=(1234,), min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    score: str = "loss.loss"
    general: General | None = None

    @field_validator("recipes", mode="before")
    @classmethod
    def _named_alone(cls, value: Any) -> Any:
        """A path stands for a recipe without changes."""
        if not isinstance(value, Mapping):
            return value
        return {name: {"recipe": one} if isinstance(one, str | Path) else one for name, one in value.items()}

    @field_validator("methods", mode="before")
    @classmethod
    def _unchanged(cls, value: Any) -> Any:
        """A method without settings is the recipe as it is."""
        return {name: one or {} for name, one in value.items()} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _fits(self) -> Grid:
        for name in (*self.recipes, *self.methods):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r}: names are of letters, digits and . _ + -, since folders are called so")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: one stands there twice ({', '.join(map(str, self.seeds))})")
        for name, recipe in self.recipes.items():
            if unknown := [method for method in recipe.methods if method not in self.methods]:
                near = nearest(unknown[0], self.methods)
                raise ValueError(f"recipes.{name}.methods: there is no method {unknown[0]!r}{near}")
        return self

    def cells(self) -> list[Cell]:
        """In the order of the file; the seeds of a recipe and method behind each other."""
        found = [
            self._cell(name, recipe, method, seed)
            for name, recipe in self.recipes.items()
            for method in recipe.methods or self.methods
            for seed in self.seeds
        ]
        if len(found) > _MOST_CELLS:
            raise ConfigError(f"{len(found):,} cells are too many; {_MOST_CELLS:,} is the most")
        return found

    def _cell(self, name: str, recipe: GridRecipe, method: str, seed: int) -> Cell:
        folder = self.folder / CELLS / name / method / f"seed{seed}"
        parts = {"set": self.set, f"recipes.{name}.set": recipe.set, f"methods.{method}": self.methods[method]}
        changes = [change for place, given in parts.items() for change in _changes(given, place)]
        own = [Change("run.seed", seed, "seeds"), Change("run.folder", str(folder), "folder")]
        return Cell(name, method, seed, recipe.recipe, folder, (*changes, *own), recipe.score or self.score)


@dataclass(frozen=True)
class Cell:
    """One run: source: its recipe; changes: in the order in which they are made; score: TASK.METRIC."""

    recipe: str
    method: str
    seed: int
    source: Path
    folder: Path
    changes: tuple[Change, ...]
    score: str

    @property
    def name(self) -> str:
        return f"{self.recipe}/{self.method}/seed{self.seed}"


def read_grid(path: Path) -> Grid:
    """Raises: ConfigError that lists what is wrong with the file."""
    check_regular(path, ConfigError)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; docs/comparing.md shows one")
    values, lines, twice = read_yaml(path)
    if twice:
        key, line = twice[0]
        raise ConfigError(f"{path}:{line}: {key} stands there twice; remove one of them")
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: a grid has the keys {', '.join(Grid.model_fields)}")
    if "model" in values:
        raise ConfigError(f"{path}: this is a recipe; a grid names recipes (docs/comparing.md)")
    try:
        return Grid.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, path, lines))) from None


def _explain(error: ValidationError, path: Path, lines: Mapping[str, int]) -> Iterator[str]:
    for detail in error.errors():
        keys = [str(part) for part in detail["loc"]]
        key, place = ".".join(keys), f"{path}:{lines[found]}" if (found := _line_of(keys, lines)) else str(path)
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            known = {1: Grid, 2: General, 3: GridRecipe}.get(len(keys), Grid).model_fields
            text = f"there is no such key{nearest(keys[-1], known)}"
        elif detail["type"] != "value_error":
            problem = first_field_problem([detail])
            text = problem.message.removeprefix(f"{problem.field}: ")
        yield f"{place}: {key}: {text}" if key else f"{place}: {text}"


def _line_of(keys: Sequence[str], lines: Mapping[str, int]) -> str | None:
    """The longest beginning of a key whose line is known."""
    beginnings = (".".join(keys[:count]) for count in range(len(keys), 0, -1))
    return next((key for key in beginnings if key in lines), None)


def _changes(given: Changes, place: str) -> Iterator[Change]:
    """Raises: ConfigError for what the grid itself sets."""
    for change in read_changes(given):
        assert isinstance(change, Change), change  # a mapping has no words
        if change.key in _OWN:
            raise ConfigError(f"{place}: {change.key} is set by the grid itself (seeds, folder); remove it")
        yield Change(change.key, change.value, place)


def general_changes(general: General) -> list[Change]:
    """What turns the evaluation of a recipe into the loss of general text."""
    scored = Change("evaluate", {"tasks": ["loss"], "data": list(map(str, general.data))}, "general")
    return [scored, *_changes(general.set, "general.set")]


def as_words(changes: Sequence[Change]) -> list[str]:
    """Changes as they stand on a command line."""
    return [f"{change.key}={json.dumps(change.value, ensure_ascii=False, default=str)}" for change in changes]
