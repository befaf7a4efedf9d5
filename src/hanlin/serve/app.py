"""The routes, who may call them, and what an error looks like."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import status, tokens
from .callers import CalledFromHere, NeedsKey
from .chat import complete_chat
from .completions import complete_text
from .decisions import decide
from .errors import RequestError, error_response, failed
from .page import show_page
from .service import Service

__all__ = ["make_app"]

log = logging.getLogger(__name__)

_LAST_STEP_SECONDS = 5.0


def make_app(service: Service, key: str | None = None, origins: Sequence[str] = ()) -> ASGIApp:
    """key: what clients must send as a bearer token, on every route but the page and /health; origins: pages of other
    servers that browsers may let call this one.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        service.scheduler.close(_LAST_STEP_SECONDS)  # nobody waits for answers any more

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/v1/chat/completions", complete_chat, methods=["POST"]),
            Route("/v1/completions", complete_text, methods=["POST"]),
            Route("/v1/decisions", decide, methods=["POST"]),
            Route("/v1/models", status.list_models),
            Route("/v1/models/{name:path}", status.show_model),
            Route("/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/tokenizer_info", tokens.tokenizer_info),
            Route("/health", status.health),
            Route("/ready", status.health),
            Route("/metrics", status.metrics),
            Route("/version", status.version),
        ],
        middleware=_middleware(key, origins),
        exception_handlers={
            RequestError: _told,
            HTTPException: _told_by_starlette,
            ClientDisconnect: _nobody_there,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _middleware(key: str | None, origins: Sequence[str]) -> list[Middleware]:
    """Who may call; pages that are let in read the reason of a refusal too."""
    inner = Middleware(NeedsKey, key=key) if key else Middleware(CalledFromHere, origins=origins)
    if not origins:
        return [inner]
    named: dict[str, Any] = {"allow_origins": list(origins), "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
    return [Middleware(CORSMiddleware, **named), inner]


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError), error
    return error_response(error)


async def _told_by_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), error
    texts = {404: f"there is no route {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    return error_response(RequestError(texts.get(error.status_code, error.detail), error.status_code))


async def _nobody_there(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return error_response(failed(error))
