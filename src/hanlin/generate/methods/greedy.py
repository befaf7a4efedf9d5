"""Greedy search: always the likeliest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hanlin.generate.method import GenerateMethod
from hanlin.recipe.settings import GenerateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch


class GreedySettings(GenerateSettings):
    method: Literal["greedy"] = "greedy"
    # Tokens at most that are guessed ahead at each step: what followed the last tokens where prompt or answer had them
    # before. The model reads all of them at once and keeps those that it would have chosen, so the answer has the same
    # tokens, only sooner where much is repeated or copied (a text to correct, a table to fill). Only while one answer
    # is written alone (`batch_size: 1`, `hanlin chat`, a server's lone client), and for models whose positions see no
    # later ones. 0: none.
    lookup: int = Field(default=0, ge=0, le=256)


def _propose(
    logits: torch.Tensor, scores: torch.Tensor, settings: GreedySettings, streams: Sequence[np.random.Generator]
) -> torch.Tensor:
    return scores.topk(1, dim=-1).indices


def _lookup(settings: GreedySettings) -> int:
    return settings.lookup


method = GenerateMethod(GreedySettings, _propose, lookup=_lookup)
