"""Imitating a teacher: at every position that the rows teach, its probabilities of all tokens.

Logit distillation (Hinton et al. 2015, arXiv 1503.02531), by the divergence of either direction, mixed with the
likelihood of what the rows say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from hanlin.core.errors import ConfigError, HanlinError
from hanlin.core.hub import locate
from hanlin.recipe.settings import ObjectiveSettings
from hanlin.training.objective import Objective, ObjectiveSpec, TeacherSettings


class DistillSettings(ObjectiveSettings):
    name: Literal["distill"] = "distill"
    # The model that is imitated: a base folder or original checkpoint of the same family and vocabulary, or a run
    # folder, which stands for the best weights that it has trained, else its last ones. It has to be named.
    teacher: Path | None = None
    # What a tuning method trained on top of the teacher.
    teacher_adapter: Path | None = None
    # How the matrices of the teacher lie in memory, as model.quantise says it. None: as in the files.
    teacher_quantise: Literal["nf4", "int8"] | None = None
    # Arithmetic and weights of the teacher. None: train.precision.
    teacher_precision: Literal["fp32", "bf16", "fp16"] | None = None
    # forward: the student is to find likely all that the teacher does; reverse: nothing that the teacher does not,
    # which suits students much smaller than their teacher.
    divergence: Literal["forward", "reverse"] = "forward"
    # Both models' logits are divided by it: above 1, what the teacher finds unlikely counts more.
    temperature: float = Field(default=1.0, gt=0, le=100)
    # Of the divergence in the loss; the rest is that of the rows' own tokens. 1: the teacher's alone.
    share: float = Field(default=0.5, gt=0, le=1)

    @field_validator("teacher", "teacher_adapter", mode="after")
    @classmethod
    def _in_a_cache(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        try:
            return None if value is None else locate(value)
        except HanlinError as error:
            raise ValueError(str(error)) from None

    def settings_of_teacher(self) -> TeacherSettings:
        if self.teacher is None:
            raise ConfigError(
                "train.objective.teacher: name the model that is to be imitated: {name: distill, teacher: FOLDER}"
            )
        return TeacherSettings(self.teacher, self.teacher_adapter, self.teacher_quantise, self.teacher_precision)


def _build(settings: Any) -> Objective:
    from hanlin.training.distillation import Distillation

    return Distillation(settings)


objective = ObjectiveSpec(DistillSettings, _build, teacher=DistillSettings.settings_of_teacher)
