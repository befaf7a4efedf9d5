"""Full tuning: every weight of the base is trained, nothing is added."""

from __future__ import annotations

from typing import Any, Literal

from hanlin.recipe.tuning import TuningMethod

__all__ = ["FullTuning", "method"]


class FullTuning(TuningMethod):
    method: Literal["full"] = "full"

    @property
    def trains_base(self) -> bool:
        return True

    def add_to(self, model: Any, family: Any) -> None:
        pass


method = FullTuning
