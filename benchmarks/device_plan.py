"""What `hanlin plan` says of the memory of a step of the device check, beside what was measured. No script itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hanlin.core.cards import Device
from hanlin.core.errors import ConfigError
from hanlin.planner.devices import find_device
from hanlin.planner.estimate import estimate
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.layout import layout_of
from hanlin.recipe.reading import make_recipe

GIB = 2**30


@dataclass(frozen=True)
class PlannedStep:
    """Of two rows of so many tokens, one after the other, in bf16. config: the values that differ from those of the
    size; sample_length: tokens of a sample in a packed row, 0: all; parallel: settings.
    """

    family: str
    size: str
    config: dict[str, Any]
    method: str
    length: int
    sample_length: int
    form: str | None
    optimizer: str
    parallel: dict[str, Any]

    def peak_gib(self, card: str | None) -> float:
        """Of the tensors alone. card: as its driver names it; None: a CPU."""
        recipe = make_recipe(
            {
                "model": {"family": self.family, "size": self.size, "config": self.config, "quantise": self.form},
                "data": {"max_length": self.length},
                "tuning": {"method": self.method},
                "train": {
                    "batch_size": 2,
                    "micro_batch_size": 1,
                    "precision": "bf16",
                    "optimizer": self.optimizer,
                },
                "parallel": self.parallel,
                "run": {"folder": "run"},
            }
        )
        lengths = SequenceLengths(self.length, sample_length=self.sample_length)
        job = PlannedModel(recipe, lengths, device=None if card is None else known(card))
        return round(estimate(job, layout_of(recipe, 1)).peak / GIB, 2)


def known(card: str) -> Device | None:
    """None for a card that the plan does not know; its attention then counts as a CPU's."""
    try:
        return find_device(card)
    except ConfigError:
        return None
