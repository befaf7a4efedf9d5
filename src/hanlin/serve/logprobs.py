"""How likely the tokens of an answer were, in the two shapes in which clients read it."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hanlin.generate.running_batch import AnswerRequest, TokenScores

if TYPE_CHECKING:
    from hanlin.models.family import Processor

__all__ = ["of_chat", "of_text"]


def of_chat(processor: Processor, question: AnswerRequest, begin: int, end: int) -> dict[str, Any] | None:
    """Of the tokens from `begin` to `end`; None where nobody asked."""
    if question.trace is None:
        return None
    return {"content": [_token(processor, question, one) for one in question.trace[begin:end]], "refusal": None}


def of_text(processor: Processor, question: AnswerRequest, begin: int, end: int, offset: int) -> dict[str, Any] | None:
    """The same for /v1/completions; offset: characters of the tokens before."""
    if question.trace is None:
        return None
    noted = question.trace[begin:end]
    texts = [_text(processor, question, one.token) for one in noted]
    offsets = list(accumulate(map(len, texts), initial=offset))[:-1]
    tops = [{_text(processor, question, id): score for id, score in one.likeliest} for one in noted]
    return {
        "tokens": texts,
        "token_logprobs": [one.score for one in noted],
        "top_logprobs": tops if question.top else None,
        "text_offset": offsets,
    }


def _token(processor: Processor, question: AnswerRequest, noted: TokenScores) -> dict[str, Any]:
    def entry(id: int, score: float) -> dict[str, Any]:
        text = _text(processor, question, id)
        return {"token": text, "logprob": score, "bytes": list(text.encode())}

    return {
        **entry(noted.token, noted.score),
        "top_logprobs": [entry(id, score) for id, score in noted.likeliest],
    }


def _text(processor: Processor, question: AnswerRequest, id: int) -> str:
    return "\n".join(processor.answer_texts(question.prompt, [id]))
