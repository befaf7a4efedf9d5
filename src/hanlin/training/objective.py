"""What a file of objectives/ exports, and what a step and an evaluation ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hanlin.recipe.settings import OBJECTIVES, ObjectiveSettings

if TYPE_CHECKING:
    import torch

    from hanlin.core.batch import Batch
    from hanlin.data.forms.content import Side
    from hanlin.data.loader import Loader
    from hanlin.parallel.parallel_model import Around, ParallelModel

__all__ = [
    "REFERENCE",
    "Objective",
    "ObjectiveSpec",
    "RunStart",
    "TeacherSettings",
    "Weighed",
    "build_objective",
    "find_objective",
    "mean_measures",
    "teacher_settings",
]

REFERENCE = "reference.safetensors"
"""In the run folder: what the model that the run began with made of the answers, `[pairs, 2]` for each part of the
data, where the objective compares with it.
"""


@dataclass(frozen=True)
class Weighed:
    """A batch whose weighted loss, summed, has the gradient of the objective, summed over what the batch counts for.

    measured: what was measured on the way, summed likewise: `[measures]`; None where nothing is; around: of all batches
    of a step or of none: makes what is open while the model reads this one, in which `measured` may be filled still.
    """

    batch: Batch
    measured: torch.Tensor | None = None
    around: Around | None = None


@dataclass(frozen=True)
class RunStart:
    """Of a run. folder: where it may keep something; goes_on: whether a checkpoint is there; rows: of a forward pass,
    None: all of a batch; teacher: frozen, where the objective asks for one.
    """

    folder: Path
    goes_on: bool = False
    rows: int | None = None
    teacher: ParallelModel | None = None


@dataclass(frozen=True)
class TeacherSettings:
    """A frozen model beside the one that is trained; of its family, with its tokens.

    path: a base, or a run folder with what it has trained; adapter: on top of it; quantise, precision: of its weights
    (`model.quantise`, `train.precision`; None: the run's).
    """

    path: Path
    adapter: Path | None = None
    quantise: Literal["nf4", "int8"] | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None


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
    of them it compares; none where it learns from records or corpora; teacher: whom its settings name, where it
    imitates one.
    """

    settings: type[ObjectiveSettings]
    build: Callable[[Any], Objective]
    answers: tuple[Side, ...] = ()
    teacher: Callable[[Any], TeacherSettings] | None = None


def find_objective(settings: ObjectiveSettings) -> ObjectiveSpec:
    """The objective that is meant. Raises: ConfigError."""
    return OBJECTIVES.load(settings.name)


def teacher_settings(settings: ObjectiveSettings) -> TeacherSettings | None:
    """Of the teacher that an objective imitates, if it does. Raises: ConfigError."""
    spec = find_objective(settings)
    return None if spec.teacher is None else spec.teacher(settings)


def mean_measures(
    parallel_model: ParallelModel, measures: Sequence[str], found: Sequence[torch.Tensor], size: float
) -> dict[str, float]:
    """The means over all ranks. found: what was measured of each batch, summed, `[measures]`; size: what these batches
    count for together.
    """
    import torch

    # The device is waited for once; added on the host, as not every device has fp64.
    sums = torch.stack(list(found)).cpu().double().sum(0)
    *totals, count = parallel_model.sum_over_data([*sums.tolist(), size])
    return {name: total / count for name, total in zip(measures, totals, strict=True)}


def build_objective(settings: ObjectiveSettings) -> Objective:
    return find_objective(settings).build(settings)
