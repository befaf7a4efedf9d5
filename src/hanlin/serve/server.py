"""The server process: it listens until a signal ends it, and then lets the answers that are being written end."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from hanlin.core.memory import DeviceError
from hanlin.core.progress import idle

from .app import make_app
from .connections import Connection
from .limits import Limits
from .service import Service

__all__ = ["listen", "serve_until_signal", "server_config"]

_WORD_SECONDS = 5


def server_config(app: ASGIApp, limits: Limits, **more: Any) -> uvicorn.Config:
    http: Any = partial(Connection, seconds=limits.wait_seconds)
    return uvicorn.Config(app, http=http, ws="none", lifespan="on", log_level="warning", **more)


def listen(host: str, port: int) -> socket.socket:
    """Raises: OSError, OverflowError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=2048)


def serve_until_signal(
    service: Service, key: str | None, origins: Sequence[str], listener: socket.socket, say: Callable[[str], None]
) -> None:
    """Answer at `listener` until SIGTERM or SIGINT; a second signal ends the process at once. say: to its starter.

    Raises: DeviceError, when the device computes nothing more.
    """
    _allow_many_connections()
    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    say(f"serving {', '.join(service.models)} at http://{where}:{port}/v1")
    say(f"a page to try it: http://{where}:{port}/")
    # uvicorn waits a little longer than answers are written, so that it cuts no stream without a word.
    wait = math.ceil(service.limits.drain_seconds) + _WORD_SECONDS
    config = server_config(make_app(service, key, origins), service.limits, timeout_graceful_shutdown=wait)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn ends in order, and then raises it once more
    try:
        with idle():
            _Server(config, service, say).run(sockets=[listener])
    finally:
        if service.scheduler.is_running:  # in the middle of a step, which Python could not end without a crash
            sys.stderr.flush()
            os._exit(int(service.scheduler.is_lost))
    if service.scheduler.is_lost:
        raise DeviceError("the device failed, as the log says, and the server has ended; start it anew")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service, self._say = service, say

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # asked again: at once
        super().handle_exit(sig, frame)  # first of all: the next signal may come while this one is answered
        seconds, scheduler = self._service.limits.drain_seconds, self._service.scheduler
        scheduler.end_by(time.monotonic() + seconds)
        if scheduler.is_busy:
            self._say(f"answers that are being written have {seconds:g} seconds; again: at once")


def _allow_many_connections() -> None:
    """As many as the system lets this process have; by default it is often 1024 of them."""
    try:
        import resource  # of Unix alone
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
