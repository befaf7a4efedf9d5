"""How likely a model finds the tokens of a prompt, each behind those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hanlin.core.batch import Prompt
from hanlin.core.transfer import to_device
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.precision import at_least_fp32

from .engine import Engine
from .running_batch import TokenScores
from .sampling import BANNED, ban_ids, check_numbers

__all__ = ["PromptScore", "score_prompts_in_steps"]

_POSITIONS_AT_ONCE = 256
"""Whose logits, one for each id of the vocabulary, are in memory together."""


class PromptScore(NamedTuple):
    """A token of a prompt, and how many ids are as likely or likelier."""

    noted: TokenScores
    rank: int


def score_prompts_in_steps(engine: Engine, prompts: Sequence[Prompt], top: int) -> Iterator[list[list[PromptScore]]]:
    """One part of a prompt a step; the last one yields of each prompt its tokens but the first, the others nothing.

    prompts: of a family that goes on with texts (`data.processor.ContinuesTexts`); soft prompts are not told. top: so
    many likeliest ids are noted beside each token.
    Raises: HanlinError when the model yields no numbers.
    """
    found: list[list[PromptScore]] = []
    for prompt in prompts:
        own: list[PromptScore] = []
        for part in _in_parts(engine, prompt, top):
            own += [one for one in part if one.noted.token >= 0]
            yield []
        found.append(own)
    yield found


def _in_parts(engine: Engine, prompt: Prompt, top: int) -> Iterator[list[PromptScore]]:
    ids = prompt.ids
    whole = replace(prompt, inputs={**prompt.inputs, "tokens": np.array(ids, np.int32)})
    batch = engine.processor.collate_prompts([whole])
    inputs = to_device(batch.inputs, engine.device)
    cache = KVCache()
    for start in range(0, len(ids) - 1, _POSITIONS_AT_ONCE):
        end = min(start + _POSITIONS_AT_ONCE, len(ids) - 1)
        part = {name: tensor[:, start:end] for name, tensor in inputs.items()}
        with engine.inference():
            logits = engine.model(**part, kv_cache=cache, logits_to_keep=end - start)[0]
            scores = check_numbers(at_least_fp32(logits).log_softmax(-1))
        # What is no token is as likely as the model says, but not told.
        yield _noted(ban_ids(scores, [batch.banned[0]] * len(scores)), ids[start + 1 : end + 1], top)


def _noted(scores: torch.Tensor, ids: list[int], top: int) -> list[PromptScore]:
    """scores: `[positions, vocab]`, the log probabilities of what stands at each; no token: `BANNED`."""
    chosen = torch.tensor(ids, device=scores.device).clamp(min=0)
    own = scores.gather(-1, chosen[:, None])
    ranks = (scores >= own).sum(-1).tolist()
    likeliest = scores.topk(min(top, scores.shape[-1]))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [
        PromptScore(TokenScores(id, score, [one for one in zip(*pair, strict=True) if one[1] > BANNED]), rank)
        for id, score, rank, pair in zip(ids, own[:, 0].tolist(), ranks, pairs, strict=True)
    ]
