"""The routes, who may call them, and what an error looks like."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
            _route("/v1/chat/completions", complete_chat, "POST"),
            _route("/v1/completions", complete_text, "POST"),
            _route("/v1/decisions", decide, "POST"),
            _route("/v1/models", status.list_models),
            _route("/v1/models/{name:path}", status.show_model),
            _route("/tokenize", tokens.tokenize, "POST"),
            _route("/detokenize", tokens.detokenize, "POST"),
            _route("/tokenizer_info", tokens.tokenizer_info),
            _route("/health", status.health),
            _route("/ready", status.health),
            _route("/metrics", status.metrics),
            _route("/version", status.version),
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
    app.router.redirect_slashes = False  # to where a proxy may know no way
    app.state.service = service
    return app


def _route(path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
    """A route that ignores nothing: no parameters behind its address, and no body where none is read."""

    async def asked(request: Request) -> Response:
        if request.url.query:
            name = next(iter(request.query_params), None)
            told = f"{request.url.path} takes no parameters behind '?', found {request.url.query!r:.80}"
            raise RequestError(told, param=name, code="unknown_parameter")
        sent = request.headers.get("content-length", "0").strip("0") or request.headers.get("transfer-encoding")
        if method == "GET" and sent:
            raise RequestError(f"{request.url.path} takes no body", code="unknown_parameter")
        return await answer(request)

    return Route(path, asked, methods=[method])


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
    told = RequestError(texts.get(error.status_code, error.detail), error.status_code)
    return error_response(told, error.headers)


async def _nobody_there(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return error_response(failed(error))
