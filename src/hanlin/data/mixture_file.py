"""CPM-Bee's list of the data sets that a model is pretrained on: a JSON file, read and checked as it is.

[{"task_name": "qa", "dataset_name": "cmrc", "path": "qa/cmrc", "weight": 2.0, "transforms": [{"<ans>": "$a"}],
  "incontext_weight": [1, 1]}, ...]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from hanlin.core.errors import ConfigError, DataError
from hanlin.core.extensions import why_untrusted
from hanlin.data.sources.json_list import JsonListSource, is_json_list
from hanlin.data.sources.several import is_there
from hanlin.data.transform import check_mapping
from hanlin.recipe.settings import NonNegative, Settings

Mappings = tuple[dict[str, Any], ...]

_MOST_BYTES = 1 << 20  # of a list; larger files are records


class MixtureEntry(Settings):
    """One entry of the list; its keys are the original's."""

    # Both together name the data set; the task alone is what the original's log calls it by.
    task_name: str
    dataset_name: str
    # A file or folder with records; a relative path counts from the folder of the list.
    path: Path
    # How often each of its rows is drawn, beside those of the other data sets; 0 leaves the data set out.
    weight: NonNegative = 1.0
    # How much of all that is drawn comes from it, however many rows it has; all data sets have it, or none.
    abs_weight: NonNegative | None = None
    # Mappings, which its rows go through in turns, or a script; none: its rows are records.
    transforms: Mappings | Path = ()
    # Probabilities of 0, 1, 2, ... worked examples before a row.
    incontext_weight: tuple[NonNegative, ...] = Field(default=(1.0,), min_length=1)

    @property
    def name(self) -> str:
        return f"{self.task_name}.{self.dataset_name}"

    @property
    def is_drawn(self) -> bool:
        return (self.weight if self.abs_weight is None else self.abs_weight) > 0

    @property
    def ways(self) -> Sequence[dict[str, Any] | Path]:
        """What `data.transform` is in each of the forms that a row has."""
        return [self.transforms] if isinstance(self.transforms, Path) else self.transforms or [{}]

    @field_validator("transforms", mode="before")
    @classmethod
    def _read_transforms(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return Path(value)
        mappings = value or ()
        if not isinstance(mappings, list | tuple) or not all(isinstance(one, dict) for one in mappings):
            raise ValueError("expected a list of mappings, or the path of a script")
        try:
            for mapping in mappings:
                check_mapping(mapping)
        except DataError as error:
            raise ValueError(str(error)) from None
        return tuple(mappings)

    @model_validator(mode="after")
    def _agree(self) -> MixtureEntry:
        if not sum(self.incontext_weight) > 0:
            raise ValueError("incontext_weight: all are 0; [1.0] means no worked examples")
        if isinstance(self.transforms, Path) and any(self.incontext_weight[1:]):
            raise ValueError(
                "incontext_weight: not with a script in transforms: that is called once for each row, before examples "
                "are drawn; remove incontext_weight, or write the transforms as mappings"
            )
        if self.abs_weight is not None and "weight" in self.model_fields_set:
            raise ValueError("abs_weight: stands beside weight; keep one of them")
        return self


def is_mixture(path: Path) -> bool:
    """Whether a file is a list of data sets and not one of records."""
    if path.suffix != ".json" or not path.is_file() or path.stat().st_size > _MOST_BYTES or not is_json_list(path):
        return False
    try:
        first = JsonListSource(path)[0]
    except DataError:
        return False
    return isinstance(first, dict) and {"dataset_name", "path"} <= first.keys()


def read_mixture(path: Path) -> list[MixtureEntry]:
    """The data sets of a list, with paths that count from the current folder.

    Raises: ConfigError that lists all that is wrong.
    """
    entries, sets, problems = _entries(path), [], []
    for number in range(len(entries)):
        try:
            one = MixtureEntry.model_validate(entries[number])
        except DataError as error:
            problems.append(str(error))
            continue
        except ValidationError as error:
            problems += [f"{entries.where(number)}: {_explain(detail)}" for detail in error.errors()]
            continue
        sets.append(one.model_copy(update=_paths(one, path.parent)))
        problems += [f"{entries.where(number)}: {text}" for text in _unusable(sets[-1])]
    problems = problems or _disagreements(sets, path)
    if problems:
        raise ConfigError("\n  ".join(problems))
    return sets


def _entries(path: Path) -> JsonListSource:
    if not path.is_file():
        raise ConfigError(f"there is no {path}; check the path")
    if not is_json_list(path):
        raise ConfigError(f"{path}: a JSON list of data sets is expected: [{{...}}, ...]")
    try:
        return JsonListSource(path)
    except DataError as error:
        raise ConfigError(str(error)) from None


def _paths(one: MixtureEntry, folder: Path) -> dict[str, Path]:
    transforms = {"transforms": folder / one.transforms} if isinstance(one.transforms, Path) else {}
    return {"path": folder / one.path, **transforms}


def _unusable(one: MixtureEntry) -> list[str]:
    named = {"path": one.path, "transforms": one.transforms}
    missing = [
        f"{key}: there is no {path}; a relative path counts from the folder of the list"
        for key, path in named.items()
        if isinstance(path, Path) and not is_there(path)
    ]
    reason = why_untrusted(one.transforms) if isinstance(one.transforms, Path) else ""
    return [*missing, f"transforms: {reason}"] if reason and not missing else missing


def _disagreements(sets: Sequence[MixtureEntry], path: Path) -> list[str]:
    """What is wrong with entries that are right one by one."""
    twice = [name for name, count in Counter(one.name for one in sets).items() if count > 1]
    problems = [f"{path}: {name}: two data sets have this task_name and dataset_name; rename one" for name in twice]
    if len({one.abs_weight is None for one in sets}) > 1:
        problems.append(f"{path}: abs_weight: some data sets have it and some have not; give it to all of them or none")
    if not any(one.is_drawn for one in sets):
        problems.append(f"{path}: weight: all weights are 0, so nothing would be read")
    return problems


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"][:1])
    match detail["type"]:
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden":
            return f"{key}: there is no such key; known: {', '.join(MixtureEntry.model_fields)}"
        case "model_type":
            return f"expected an object {{...}}; found {detail['input']!r:.60}"
        case "value_error":
            text = detail["msg"].removeprefix("Value error, ")
            return f"{key}: {text}; found {detail['input']!r:.60}" if key else text
        case _:
            text = detail["msg"].removeprefix("Input should be ")
            return f"{key}: expected {text}; found {detail['input']!r:.60}"
