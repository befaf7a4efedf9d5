"""The page at /: one file that asks the other routes, as any client does. It holds nothing that needs a key."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

__all__ = ["show_page"]


async def show_page(request: Request) -> Response:
    text = _text()
    headers = {
        "content-security-policy": _policy(text),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(text, headers=headers)


@cache
def _text() -> str:
    return files("hanlin.serve").joinpath("page.html").read_text("utf-8")


@cache
def _policy(text: str) -> str:
    """The page's own script and style run, by their hashes; nothing else does, and nothing comes from or goes to
    another server.
    """
    hashes = {}
    for kind in ("script", "style"):
        [inside] = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        hashes[kind] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
