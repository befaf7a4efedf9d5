"""How a server is reached: this machine without a proxy, others as the environment says (http_proxy, no_proxy); no
redirect is followed; who is silent is not waited for without end.
"""

from __future__ import annotations

import urllib.request
from functools import cache
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from hanlin.core.loopback import is_loopback

__all__ = ["CONNECT_SECONDS", "QUIET_SECONDS", "opener_for"]

CONNECT_SECONDS = 10.0
QUIET_SECONDS = 60.0
"""Between two bytes; a server that works on a stream says every 10 seconds that it does."""


def opener_for(url: str) -> urllib.request.OpenerDirector:
    return _opener(is_loopback(urlsplit(url).hostname or ""))


@cache
def _opener(is_here: bool) -> urllib.request.OpenerDirector:
    proxies = [urllib.request.ProxyHandler({})] if is_here else []
    return urllib.request.build_opener(_NoRedirect, _Http, _Https, *proxies)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        return None


class _Connection(HTTPConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()
        self.sock.settimeout(QUIET_SECONDS)


class _SecureConnection(HTTPSConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()
        self.sock.settimeout(QUIET_SECONDS)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req)
