"""Connections to the HTTP server: who says nothing makes room for who asks.

    silent     no request is whole yet, or the last is answered: for ten seconds at most
    too many   who is silent for longest goes, before anybody's request is refused

Whoever is on this machine can connect, with the token or without.
"""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CONNECTIONS", "make_server"]

CONNECTIONS = 64
_SILENT_S = 10.0
_KEEP_ALIVE_S = 5


class _Connection(H11Protocol):
    """One connection. since: when it became silent, in the loop's seconds."""

    since = 0.0
    _limit: asyncio.TimerHandle | None = None

    @property
    def silent(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin; if there are too many, in the place of who is silent for longest."""
        there = [each for each in self.connections if not each.transport.is_closing()]
        silent = [each for each in there if isinstance(each, _Connection) and each.silent]
        if len(there) + 1 >= CONNECTIONS and silent:
            min(silent, key=lambda each: each.since).transport.abort()
        super().connection_made(transport)
        self._listen()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._stop_limit()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        super().data_received(data)
        if not self.silent:
            self._stop_limit()

    def on_response_complete(self) -> None:
        """Take note that a request is answered."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._listen()

    def _listen(self) -> None:
        """Wait for a request, and not for ever."""
        self._stop_limit()
        self.since = self.loop.time()
        self._limit = self.loop.call_later(_SILENT_S, self.transport.abort)

    def _stop_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


def make_server(app: ASGIApp, log_level: str) -> uvicorn.Server:
    """Make the server of an application."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_level=log_level,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
    )
