"""How likely the tokens of an answer were, in the two shapes in which clients read it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hanlin.generate.running_batch import AnswerRequest, TokenScores

if TYPE_CHECKING:
    from hanlin.core.tokenizer import Tokenizer
    from hanlin.generate.prompt_scores import PromptScore
    from hanlin.models.family import Processor

__all__ = ["joined", "of_chat", "of_prompt", "of_text", "vllm_prompt"]


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
    tops = [_by_text([(_text(processor, question, id), score) for id, score in one.likeliest]) for one in noted]
    return {
        "tokens": texts,
        "token_logprobs": [one.score for one in noted],
        "top_logprobs": tops if question.top else None,
        "text_offset": offsets,
    }


def of_prompt(tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[PromptScore], top: int) -> dict[str, Any]:
    """The same of a prompt's tokens; nothing stands before the first one, unless something does that is not shown."""
    texts = [tokenizer.decode([id]) for id in ids]
    unknown = [None] * (len(ids) - len(scores))
    tops = [_by_text([(tokenizer.decode([id]), score) for id, score in one.noted.likeliest[:top]]) for one in scores]
    return {
        "tokens": texts,
        "token_logprobs": [*unknown, *(one.noted.score for one in scores)],
        "top_logprobs": [*unknown, *tops] if top else None,
        "text_offset": list(accumulate(map(len, texts), initial=0))[:-1],
    }


def joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """What was told of a prompt, and of its answer, as one."""
    if first is None or second is None:
        return first or second
    return {name: values if values is None else [*values, *second[name]] for name, values in first.items()}


def vllm_prompt(tokenizer: Tokenizer, scores: Sequence[PromptScore], top: int) -> list[dict[str, Any] | None]:
    """The tokens of a prompt as vLLM tells them: by id, each with the likeliest ones beside it; null for the first."""

    def entry(id: int, score: float, rank: int) -> dict[str, Any]:
        return {"logprob": score, "rank": rank, "decoded_token": tokenizer.decode([id])}

    told: list[dict[str, Any] | None] = [None]
    for (id, score, likeliest), rank in scores:
        ranked = {str(other): entry(other, value, place) for place, (other, value) in enumerate(likeliest[:top], 1)}
        told.append({str(id): entry(id, score, rank)} | ranked)
    return told


def _by_text(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The likeliest come first; of tokens that look the same the likeliest one is told."""
    return dict(reversed(pairs))


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
