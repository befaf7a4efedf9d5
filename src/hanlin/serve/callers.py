"""Who may call: those who know the key; without one, programs of this machine and pages that are let in."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from hanlin.core.loopback import is_loopback

from .errors import RequestError, error_response

__all__ = ["CalledFromHere", "NeedsKey"]


class NeedsKey:
    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or scope["path"] in ("/", "/health")
        given = b"" if is_open else _header(scope, b"authorization")
        if is_open or hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        told = "this key is wrong" if given.startswith(b"Bearer ") else "a key is needed: Authorization: Bearer KEY"
        wrong = RequestError(told, 401, code="invalid_api_key")
        await error_response(wrong)(scope, receive, send)


class CalledFromHere:
    """A browser on this machine carries what any page asks of 127.0.0.1, also by a name of the page's own server that
    now leads here (DNS rebinding); so the name that is called has to be this machine's, and a page has to be one of
    `origins` or the server's own.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)):
            await error_response(RequestError(problem, 403, code="forbidden"))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> str:
        host, origin = (_header(scope, name).decode("latin-1") for name in (b"host", b"origin"))
        if not is_loopback(_host_name(host)):
            return f"called as {host!r:.80}, which is not this machine's name; start the server with --api-key-env"
        if origin and not {origin, "*"} & set(self._origins) and origin.partition("://")[2].lower() != host.lower():
            return f"asked by a page of {origin!r:.80}; start the server with --cors ORIGIN to let it in"
        return ""


def _host_name(host: str) -> str:
    """Without the port; empty for what is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")
