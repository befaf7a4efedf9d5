"""Beam search; its rules stand in generate/beam.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hanlin.generate.method import GenerateMethod
from hanlin.recipe.settings import GenerateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch


class BeamSettings(GenerateSettings):
    method: Literal["beam"] = "beam"
    # Open answers that are kept at each step.
    beams: int = Field(default=3, gt=0, le=1024)
    # Where a score is divided by the length of prompt and answer (ChatGLM): also count the padding that makes a batch's
    # prompts equally long, as the original does. An answer then depends on the prompts beside it.
    count_padding: bool = False


def _propose(
    logits: torch.Tensor, scores: torch.Tensor, settings: BeamSettings, streams: Sequence[np.random.Generator]
) -> torch.Tensor:
    # Twice the beams, since each beam's end may be among them.
    return scores.topk(min(2 * settings.beams, scores.shape[-1]), dim=-1).indices


def _num_beams(settings: BeamSettings) -> int:
    return settings.beams


def _counts_padding(settings: BeamSettings) -> bool:
    return settings.count_padding


method = GenerateMethod(BeamSettings, _propose, _num_beams, can_stream=False, counts_padding=_counts_padding)
