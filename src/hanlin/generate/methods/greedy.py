"""Greedy search: always the likeliest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from hanlin.generate.method import GenerateMethod
from hanlin.recipe.settings import GenerateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch


class GreedySettings(GenerateSettings):
    method: Literal["greedy"] = "greedy"


def _propose(
    logits: torch.Tensor, scores: torch.Tensor, settings: GreedySettings, streams: Sequence[np.random.Generator]
) -> torch.Tensor:
    return scores.topk(1, dim=-1).indices


method = GenerateMethod(GreedySettings, _propose)
