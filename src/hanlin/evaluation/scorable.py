"""Records as the tasks want them: what each task asks of a record. No torch, so that a recipe can be checked by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hanlin.core.batch import Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import Side
from hanlin.data.sources import Records
from hanlin.generate.prompts import make_prompt
from hanlin.models.family import PredictsLabels, Processor, RanksCandidates
from hanlin.recipe.settings import GenerateSettings, Recipe

_COMPARING = "preference"
"""The task that compares the answers of preference rows."""

COMPARED: tuple[Side, ...] = ("chosen", "rejected")

__all__ = [
    "COMPARED",
    "ComparedRecords",
    "ScoredBy",
    "choices",
    "encode",
    "label_processor",
    "only_answer",
    "options",
    "parts_of",
    "ranking_processor",
]


@dataclass(frozen=True)
class ScoredBy:
    """What decides whether a record can be scored. max_length: the most tokens that the model reads; None: no limit."""

    processor: Processor
    tasks: tuple[str, ...]
    options: GenerateSettings
    max_length: int | None

    @classmethod
    def of(cls, recipe: Recipe, processor: Processor, config: Any) -> ScoredBy:
        return cls(processor, recipe.evaluate.tasks, recipe.generate, getattr(config, "max_length", None))

    @property
    def sides(self) -> tuple[Side, ...]:
        """The answers of preference rows, where the task compares them; a record is then one of each, by name."""
        return COMPARED if _COMPARING in self.tasks else ()

    def opened(self, open_side: Callable[[Side | None], Records]) -> Records:
        """The records of a file: each one, or the answers of each row together.

        open_side: opens those of one side, or of rows without any (None).
        Raises: DataError.
        """
        return ComparedRecords({side: open_side(side) for side in self.sides}) if self.sides else open_side(None)

    def check_tasks(self) -> None:
        """Raises: ConfigError for a task that the family does not have, or that does not go with the others."""
        if self.sides and len(self.tasks) > 1:
            raise ConfigError(f"evaluate.tasks: {_COMPARING} reads other rows than the others; evaluate it by itself")
        if "classify" in self.tasks:
            label_processor(self.processor)
        if "rank" in self.tasks:
            ranking_processor(self.processor)

    def check(self, record: Any) -> None:
        """Raises: DataError for a record that one of the tasks cannot score."""
        for part in parts_of(self.tasks, record):
            self.processor.check(part)
            for task in self.tasks:
                _CHECKS[task](self, part)


def parts_of(tasks: Sequence[str], record: Any) -> Sequence[Any]:
    """The records of the family in what the tasks score."""
    return list(record.values()) if _COMPARING in tasks else [record]


@dataclass(frozen=True)
class ComparedRecords:
    """The answers of preference rows, as records `{"chosen": ..., "rejected": ...}`; sides: of the same rows."""

    sides: Mapping[Side, Records]

    @property
    def fingerprint(self) -> str:
        return " ".join(source.fingerprint for source in self.sides.values())

    def __len__(self) -> int:
        return len(self.sides["chosen"])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {side: source[row] for side, source in self.sides.items()}

    def where(self, row: int) -> str:
        return self.sides["chosen"].where(row)


def encode(processor: Processor, record: Any, max_length: int | None) -> Sample:
    """The sample of a record that the model can read.

    Raises: DataError.
    """
    sample = processor.sample(record)
    if max_length is not None and sample.length > max_length:
        raise DataError(f"it has {sample.length} tokens, the model reads at most {max_length}; shorten it")
    return sample


def choices(processor: Processor, record: Any, max_length: int | None) -> dict[str, Sample]:
    """The record's options, each as the answer of a sample.

    Raises: DataError.
    """
    found = dict(options(processor, record, max_length))
    gold = only_answer(processor, record)
    if gold not in found:
        raise DataError(f"its answer {gold!r} is none of its options {', '.join(found)}")
    return found


def options(processor: Processor, record: Any, max_length: int | None) -> list[tuple[str, Sample]]:
    """The record's options in their order, each as the answer of a sample; its own answer is not looked at.

    Raises: DataError.
    """
    candidates = processor.candidates(record)
    return [(only_answer(processor, one), encode(processor, one, max_length)) for one in candidates]


def only_answer(processor: Processor, record: Any) -> str:
    [answer] = processor.gold(record)
    return answer or ""


def label_processor(processor: Processor) -> PredictsLabels:
    """Raises: ConfigError."""
    if not isinstance(processor, PredictsLabels):
        raise ConfigError("evaluate.tasks: classify needs a head for labels; name these in model.config.labels")
    return processor


def ranking_processor(processor: Processor) -> RanksCandidates:
    """Raises: ConfigError."""
    if not isinstance(processor, RanksCandidates):
        raise ConfigError("evaluate.tasks: records of this family cannot be ranked; take generate, likelihood or loss")
    return processor


def _encodes(by: ScoredBy, record: Any) -> None:
    encode(by.processor, record, by.max_length)


_CHECKS: Mapping[str, Callable[[ScoredBy, Any], object]] = {
    "generate": lambda by, record: make_prompt(by.processor, record, by.options, by.max_length),
    "likelihood": lambda by, record: choices(by.processor, record, by.max_length),
    "loss": _encodes,
    _COMPARING: _encodes,
    "rank": lambda by, record: ranking_processor(by.processor).ranked_example(record),
    "classify": _encodes,
}
