"""Where the soft prompts of a row stand that is one text, or a prompt with its answer: in front of all, and behind what
is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hanlin.core.batch import IGNORED, Sample
from hanlin.core.errors import ConfigError
from hanlin.data.processor import SoftPrompts

__all__ = ["NO_PROMPTS", "PlacedPrompts", "behind_prompts", "place_prompts"]


@dataclass(frozen=True)
class PlacedPrompts:
    """Ids below 0 in front of what is given, and behind it."""

    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.front) + len(self.back)

    def around(self, given: Sequence[int]) -> list[int]:
        return [*self.front, *given, *self.back]


NO_PROMPTS = PlacedPrompts()


def place_prompts(prompts: SoftPrompts, *, has_masks: bool, has_back: bool = True) -> PlacedPrompts:
    """The prompts by their shares in front, between and behind (none: all in front).

    has_masks: whether the model can hide prompts and tokens from each other; has_back: whether there is a place behind.
    Raises: ConfigError for what the rows have no place for.
    """
    if not (has_masks or (prompts.sees_tokens and prompts.is_seen)):
        raise ConfigError(
            "tuning.sees_tokens: only an encoder hides prompts and tokens from each other; leave sees_tokens and "
            "is_seen out"
        )
    borders = prompts.borders((1.0, 0.0, 0.0))
    if len(borders) != 3 or borders[0] != borders[1] or not (has_back or borders[1] == borders[2]):
        places = "in front and behind what is given: two shares around a 0, such as 50_0_50" if has_back else "in front"
        raise ConfigError(f"tuning.ratios: these rows have their prompts {places}; or leave ratios out")
    if not borders[-1]:
        raise ConfigError("tuning.ratios: with these shares no prompt stands in any row; give the places shares")
    ids = [-(number + 1) for number in range(prompts.length)]
    return PlacedPrompts(tuple(ids[: borders[0]]), tuple(ids[borders[1] : borders[2]]))


def behind_prompts(sample: Sample, prompts: PlacedPrompts) -> Sample:
    """A sample of a decoder's tokens alone, all of which is learned, behind its prompts."""
    if not len(prompts):
        return sample
    ids = np.array([*prompts.front, *prompts.back], np.int32)
    return Sample(
        {"tokens": np.concatenate((ids, sample.inputs["tokens"]))},
        np.concatenate((np.full(len(ids), IGNORED, np.int32), sample.labels)),
        np.concatenate((np.zeros(len(ids), np.float32), sample.weights)),
    )
