"""Connections, which nobody holds for nothing: one that asks nothing whole, or does not read its answer, is cut."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import RequestError, error_response

__all__ = ["Connection"]


class Connection(H11Protocol):
    """seconds: within which a request begins, from its connection or its first byte to the end of its headers, and
    within which a client reads on (on Linux); its body is awaited by the route.

    What is no HTTP is told in the shape of all errors.
    """

    def __init__(self, *args: Any, seconds: float, **named: Any) -> None:
        super().__init__(*args, **named)
        self._seconds = seconds
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of what was sent and not read, or not even received
            milliseconds = int(1000 * self._seconds)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_cut()

    def handle_events(self) -> None:
        super().handle_events()
        self._await_request()

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(f"{msg} Headers may have 64 KiB", code="invalid_http"))

    def _await_request(self) -> None:
        """Let the connection be cut in a while, unless a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_cut()
        elif self._cut is None and not self.transport.is_closing():
            self._cut = self.loop.call_later(self._seconds, self._give_up)

    def _forget_cut(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _give_up(self) -> None:
        if self.conn.trailing_data[0]:  # a request has begun
            self._refuse(RequestError(f"no request came within {self._seconds:g} seconds", 408, code="timeout"))
        self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Tell what is wrong, where no answer has begun, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if self.cycle is not None:
                self.cycle.disconnected = True
            told = error_response(error)
            headers = [*told.raw_headers, (b"connection", b"close")]
            phrase = HTTPStatus(error.status).phrase.encode()
            begin = h11.Response(status_code=error.status, headers=headers, reason=phrase)
            for event in (begin, h11.Data(data=bytes(told.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
