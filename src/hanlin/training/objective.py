"""What a file of objectives/ exports, and what a step and an evaluation ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hanlin.recipe.settings import OBJECTIVES, ObjectiveSettings

if TYPE_CHECKING:
    import torch

    from hanlin.core.batch import Batch
    from hanlin.data.forms.content import Side
    from hanlin.data.loader import Loader
    from hanlin.parallel.parallel_model import ParallelModel

__all__ = ["REFERENCE", "Objective", "ObjectiveSpec", "RunStart", "Weighed", "build_objective", "find_objective"]

REFERENCE = "reference.safetensors"
"""In the run folder: what the model that the run began with made of the answers, `[pairs, 2]` for each part of the
data, where the objective compares with it.
"""


@dataclass(frozen=True)
class Weighed:
    """A batch whose weighted loss, summed, has the gradient of the objective, summed over what the batch counts for.

    measured: what was measured on the way, summed likewise: `[measures]`; None where nothing is.
    """

    batch: Batch
    measured: torch.Tensor | None = None


@dataclass(frozen=True)
class RunStart:
    """Of a run. folder: where it may keep something; goes_on: whether a checkpoint is there; rows: of a forward pass,
    None: all of a batch.
    """

    folder: Path
    goes_on: bool = False
    rows: int | None = None


class Objective(Protocol):
    """What training makes smaller.

    The model computes one loss: cross entropies times weights. An objective is what it makes of the weights.
    measures: names of what it measures, "loss" first; none where its loss is the model's own.
    uses_dropout: False where the model is asked twice, and has to say the same.
    """

    @property
    def measures(self) -> Sequence[str]: ...
    @property
    def uses_dropout(self) -> bool: ...

    def begin(self, parallel_model: ParallelModel, loaders: Mapping[str, Loader], start: RunStart) -> None:
        """Before the first step of a start; the weights are those that the run began with. All ranks call it.

        loaders: of what is trained on ("train") and watched ("valid").
        """
        ...

    def size(self, batch: Batch) -> float:
        """What a batch counts in the mean over a step; known without the model."""
        ...

    def weigh(self, parallel_model: ParallelModel, parts: Sequence[Batch]) -> list[Weighed]:
        """Weigh the tokens of a step's micro-batches by the model as it is; all ranks call it, with equally many."""
        ...

    def evaluate(self, parallel_model: ParallelModel, batches: Iterable[Batch], rows: int | None) -> dict[str, float]:
        """Mean measures of held-out batches, over all ranks; rows: of a forward pass."""
        ...


@dataclass(frozen=True)
class ObjectiveSpec:
    """What a file exports as `objective`.

    settings: the class of its settings, without torch; build: makes the objective; answers: of preference rows, which
    of them it compares; none where it learns from records or corpora.
    """

    settings: type[ObjectiveSettings]
    build: Callable[[Any], Objective]
    answers: tuple[Side, ...] = ()


def find_objective(settings: ObjectiveSettings) -> ObjectiveSpec:
    """The objective that is meant. Raises: ConfigError."""
    return OBJECTIVES.load(settings.name)


def build_objective(settings: ObjectiveSettings) -> Objective:
    return find_objective(settings).build(settings)
