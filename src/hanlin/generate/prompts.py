"""A record -> its prompt, if the answer has room behind it; no torch here, so that a recipe can be checked by it."""

from __future__ import annotations

from typing import Any

from hanlin.core.batch import Prompt
from hanlin.core.errors import PromptTooLongError
from hanlin.models.family import Processor
from hanlin.recipe.settings import GenerateSettings

__all__ = ["make_prompt"]


def make_prompt(processor: Processor, record: Any, options: GenerateSettings, max_length: int | None) -> Prompt:
    """Encode a record and see that it leaves room for the answer.

    max_length: the most tokens of both together that the model can read; None: no limit.
    Raises: PromptTooLongError; DataError for a record that cannot be asked.
    """
    prompt = processor.prompt(record)
    if max_length is not None and prompt.length + options.max_new_tokens > max_length:
        raise PromptTooLongError(
            f"its prompt has {prompt.length} tokens and up to {options.max_new_tokens} may follow, but the "
            f"model reads at most {max_length}; shorten the record or lower generate.max_new_tokens"
        )
    return prompt
