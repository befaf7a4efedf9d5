"""Soft prompts (Lester et al. 2021) for any model that embeds through a `soft_prompt`: added, begun, trained or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hanlin.core.errors import ConfigError
from hanlin.layers.soft_prompt import SoftPrompt

_NAME = "soft_prompt"


def add_soft_prompt(model: Any, length: int, *, sees_tokens: bool = True, is_seen: bool = True) -> SoftPrompt:
    """Give a model (uninitialised) soft prompts; they stand where ids below 0 do.

    Raises: ConfigError for a model that takes none.
    """
    if not hasattr(model, _NAME):
        raise ConfigError("tuning.method: this family takes no soft prompts; choose lora or full")
    with torch.device(next(model.parameters()).device):
        prompt = SoftPrompt(length, model.config.hidden_size, sees_tokens=sees_tokens, is_seen=is_seen)
    model.soft_prompt = prompt
    model.plan = replace(model.plan, first=(*model.plan.first, _NAME))
    return prompt


@torch.no_grad()
def begin_with_tokens(model: Any, tokens: Sequence[int]) -> None:
    """Let each soft prompt begin as the embedding of a token.

    Raises: ConfigError for a token that the model does not have.
    """
    weight, size = model.soft_prompt.weight, model.config.vocab_size
    if surplus := [token for token in tokens if token >= size]:
        raise ConfigError(f"a prompt cannot begin as token {surplus[0]}: the model has {size}; use fewer prompts")
    assert len(tokens) == len(weight), (len(tokens), len(weight))
    weight.copy_(model.embedding(torch.tensor(tokens, device=weight.device)))
