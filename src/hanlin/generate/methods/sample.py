"""Sampling: the next token is drawn from what temperature, top-k and top-p leave (generate/sampling.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hanlin.generate.method import GenerateMethod
from hanlin.recipe.settings import GenerateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch


class SampleSettings(GenerateSettings):
    method: Literal["sample"] = "sample"
    # Logits are divided by it: below 1 likely tokens become likelier.
    temperature: float = Field(default=0.9, gt=0)
    # Only the k likeliest tokens are drawn from; 0: all.
    top_k: int = Field(default=0, ge=0)
    # Only the likeliest tokens that together have this probability; 1: all.
    top_p: float = Field(default=0.9, gt=0, le=1)
    # Only tokens at least so likely, as a share of the likeliest one's probability; 0: all.
    min_p: float = Field(default=0.0, ge=0, le=1)
    # True: top_k and top_p look at the logits before the temperature, as the released CPM-1's program does it.
    temperature_last: bool = False


def _propose(
    logits: torch.Tensor, scores: torch.Tensor, settings: SampleSettings, streams: Sequence[np.random.Generator]
) -> torch.Tensor:
    from hanlin.generate.sampling import draw, keep_min_p, warp

    warped = warp(
        logits,
        settings.temperature,
        settings.top_k,
        settings.top_p,
        temperature_last=settings.temperature_last,
    )
    return draw(keep_min_p(warped, settings.min_p), [stream.random() for stream in streams])[:, None]


method = GenerateMethod(SampleSettings, _propose, is_random=True)
