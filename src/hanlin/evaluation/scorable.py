"""Records as the tasks want them: what each task asks of a record. No torch, so that a recipe can be checked by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hanlin.core.batch import Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.generate.prompts import make_prompt
from hanlin.models.family import PredictsLabels, Processor, RanksCandidates
from hanlin.recipe.settings import GenerateSettings, Recipe

__all__ = ["ScoredBy", "choices", "encode", "label_processor", "only_answer", "options", "ranking_processor"]


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

    def check_tasks(self) -> None:
        """Raises: ConfigError for a task that the family does not have."""
        if "classify" in self.tasks:
            label_processor(self.processor)
        if "rank" in self.tasks:
            ranking_processor(self.processor)

    def check(self, record: Any) -> None:
        """Raises: DataError for a record that one of the tasks cannot score."""
        self.processor.check(record)
        for task in self.tasks:
            _CHECKS[task](self, record)


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
    "rank": lambda by, record: ranking_processor(by.processor).ranked_example(record),
    "classify": _encodes,
}
