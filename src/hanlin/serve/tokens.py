"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanlin.api.dialogue import next_message
from hanlin.data.processor import ContinuesTexts

from .errors import RequestError, blaming
from .schema import only
from .service import Service, read_body


class TokenizeBody(BaseModel):
    """A text, or messages as /v1/chat/completions reads them. add_special_tokens: what stands before every row too."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: StrictBool | None = None
    add_generation_prompt: Annotated[Any, only(True)] = None
    return_token_strs: StrictBool = False


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    tokens: list[Annotated[StrictInt, Field(ge=0)]]


async def tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body: TokenizeBody = await read_body(request, TokenizeBody, service.limits)
    return await asyncio.to_thread(_tokenized, service.named(body.model), body)


async def detokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body: DetokenizeBody = await read_body(request, DetokenizeBody, service.limits)
    return await asyncio.to_thread(_detokenized, service.named(body.model), body)


def _tokenized(service: Service, body: TokenizeBody) -> Response:
    """Raises: RequestError."""
    ids = _ids(service, body)
    texts = [service.tokenizer.decode([id]) for id in ids] if body.return_token_strs else None
    return JSONResponse(
        {"count": len(ids), "max_model_len": service.engine.max_length, "tokens": ids, "token_strs": texts}
    )


def _detokenized(service: Service, body: DetokenizeBody) -> Response:
    """Raises: RequestError."""
    size = service.tokenizer.vocab_size
    if odd := [id for id in body.tokens if id >= size]:
        raise RequestError(f"tokens: {odd[0]} is no id, the vocabulary has {size}", param="tokens")
    return JSONResponse({"prompt": service.tokenizer.decode(body.tokens)})


async def tokenizer_info(request: Request) -> Response:
    """The keys of a tokenizer_config.json that clients ask for."""
    service: Service = request.app.state.service
    processor = service.processor
    goes_on = isinstance(processor, ContinuesTexts)
    first = processor.first_token if goes_on else None
    return JSONResponse(
        {
            "tokenizer_class": type(service.tokenizer).__name__,
            "vocab_size": service.tokenizer.vocab_size,
            "model_max_length": service.engine.max_length,
            "bos_token": first and first[0],
            "eos_token": processor.end_token[0] if goes_on else None,
            "chat_template": None,
        }
    )


def _ids(service: Service, body: TokenizeBody) -> list[int]:
    """Raises: RequestError."""
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("expected prompt or messages, one of them", param="prompt")
    processor, text = service.processor, body.prompt
    with blaming("messages" if text is None else "prompt"):
        if text is None:
            prompt = processor.prompt(next_message(processor, body.messages or []))
            ids = [*map(int, prompt.inputs.get("encoder_tokens", ())), *prompt.ids]
            return [id for id in ids if id >= 0]  # soft prompts are none
        if not isinstance(processor, ContinuesTexts):
            return service.tokenizer.encode(text)
        named = dict(token for token in (processor.first_token, processor.end_token) if token is not None)
        if text in named:
            return [named[text]]
        return service.tokenizer.encode(text) if body.add_special_tokens is False else processor.text_ids(text)
