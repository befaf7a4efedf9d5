"""What a file of methods/ exports: how an open answer may go on, for the one loop of engine.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hanlin.recipe.settings import GENERATE_METHODS, GenerateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

    Propose = Callable[[torch.Tensor, torch.Tensor, Any, Sequence[np.random.Generator]], torch.Tensor]


def _one_beam(settings: GenerateSettings) -> int:
    return 1


def _no_padding(settings: GenerateSettings) -> bool:
    return False


def _no_guesses(settings: GenerateSettings) -> int:
    return 0


@dataclass(frozen=True)
class GenerateMethod:
    """What a file exports as `method`.

    settings: the class of its settings, without torch;
    propose: (logits, log probabilities, both `[batch, vocab]`, settings, each row's stream of random numbers) ->
    ids with which the rows may go on, `[batch, candidates]`, enough to fill the beams beside those that end;
    num_beams: open answers that are kept at each step;
    is_random: whether an answer depends on the seed;
    can_stream: whether what is written of an answer stays, so that it can be shown before its end;
    counts_padding: whether a length that a score is divided by counts the padding of the batch;
    lookup: tokens at most that may be guessed ahead (generate/lookup.py), of one beam.
    """

    settings: type[GenerateSettings]
    propose: Propose
    num_beams: Callable[[Any], int] = _one_beam
    is_random: bool = False
    can_stream: bool = True
    counts_padding: Callable[[Any], bool] = _no_padding
    lookup: Callable[[Any], int] = _no_guesses


def find_method(settings: GenerateSettings) -> GenerateMethod:
    """The method that is meant. Raises: ConfigError."""
    return GENERATE_METHODS.load(settings.method)
