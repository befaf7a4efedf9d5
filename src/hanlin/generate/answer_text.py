"""The text of an answer while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hanlin.core.batch import Prompt
from hanlin.data.processor import plain_text
from hanlin.models.family import FollowsAnswers, Processor

__all__ = ["follow_text"]


def follow_text(processor: Processor, prompt: Prompt, *, is_plain: bool) -> Callable[[Sequence[int]], str]:
    """What turns the ids chosen so far into a text, fastest where they are those of the call before and more; a newline
    stands between several answers.

    is_plain: as people read it, not as the family's records have it.
    """
    follows = isinstance(processor, FollowsAnswers)
    read = processor.follow_answer(prompt) if follows else partial(processor.answer_texts, prompt)

    def text(tokens: Sequence[int]) -> str:
        joined = "\n".join(read(tokens))
        return plain_text(processor, joined) if is_plain else joined

    return text
