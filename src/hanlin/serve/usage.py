"""The tokens of a request, as clients are told them."""

from __future__ import annotations

from collections.abc import Sequence

from hanlin.generate.running_batch import AnswerRequest

from .scheduler import Answered

__all__ = ["usage_of"]


def usage_of(questions: Sequence[AnswerRequest], ends: Sequence[Answered], prompts: int) -> dict[str, int]:
    """prompts: how many there are; each of them is counted once, whatever the number of its answers."""
    read = sum(question.prompt.size + 1 for question in questions[:: len(questions) // prompts])
    written = sum(len(end.tokens) for end in ends)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
