"""Soft prompts (Lester et al. 2021) for any model that embeds through a `soft_prompt`: added, and how they begin.

Where they stand is the family's matter: its processor writes them as ids below 0 (layers/soft_prompt.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hanlin.core.errors import ConfigError
from hanlin.core.tokenizer import FindsTokens, Tokenizer
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.recipe.settings import PromptSettings

NAME = "soft_prompt"
_COUNTED_ROWS = 4096  # of the embedding; enough to tell its spread


def add_soft_prompt(model: Any, length: int, *, sees_tokens: bool = True, is_seen: bool = True) -> SoftPrompt:
    """Give a model (uninitialised) soft prompts; they stand where ids below 0 do.

    Raises: ConfigError for a model that takes none.
    """
    if not hasattr(model, NAME):
        raise ConfigError("tuning.method: this family takes no soft prompts; choose lora, prefix or full")
    with torch.device(next(model.parameters()).device):
        prompt = SoftPrompt(length, model.config.hidden_size, sees_tokens=sees_tokens, is_seen=is_seen)
    model.soft_prompt = prompt
    # On every pipeline stage: the masks, which each makes for itself, depend on them.
    model.plan = replace(model.plan, shared=(*model.plan.shared, NAME))
    return prompt


@torch.no_grad()
def begin_at_random(model: Any, generator: torch.Generator | None = None) -> None:
    """Draw the prompts with the spread of the embedding, so that they are neither lost beside tokens nor drown them."""
    # differs: the original draws with a spread of 1, or copies one embedding that is not loaded yet (init_scratch).
    spread = model.embedding.weight[:_COUNTED_ROWS].float().std()
    model.soft_prompt.weight.normal_(generator=generator).mul_(spread)


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


def first_tokens(settings: PromptSettings, tokenizer: Tokenizer) -> list[int]:
    """For each prompt the token whose embedding it begins with.

    Raises: ConfigError for a token that the vocabulary lacks.
    """
    ids = tokenizer.encode(settings.init_text)[: settings.length]
    rest = range(settings.length - len(ids))
    if settings.init_spread:
        ids += [100 * (number + 1) for number in rest]
    elif not rest:
        return ids
    elif isinstance(tokenizer, FindsTokens) and (default := tokenizer.find(settings.init_token)) is not None:
        ids += [default for _ in rest]
    else:
        raise ConfigError(f"tuning.prompt.init_token: {settings.init_token!r} is not in the vocabulary")
    return ids
