"""How questions of HTTP reach the lab: by its control socket, few at a time, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio.to_thread
from anyio import CapacityLimiter, WouldBlock

from virtfn.api.session.requests import REQUESTS
from virtfn.machine.ports import VirtfnError

__all__ = ["AT_ONCE", "WAITING", "Ask", "Door"]

AT_ONCE, _WAITING_AT_ONCE = 8, 4
"""Questions under way; the socket takes 16 clients, and others want to ask, too."""
WAITING = frozenset(kind.method for kind in REQUESTS if kind.waits)
"""Requests that wait for a guest, and may take minutes: they do not keep the others out."""

Ask = Callable[[str, Mapping[str, object]], object]
"""Puts a question, as `virtfn.api.control.ask` does for one lab. Raises VirtfnError."""


class Door:
    """The way to one lab. ask: puts a question, and waits for the answer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._limit = CapacityLimiter(AT_ONCE)
        self._waiting = CapacityLimiter(_WAITING_AT_ONCE)

    async def ask(self, method: str, params: Mapping[str, object] | None = None) -> object:
        """Ask the lab; other questions go on meanwhile.

        Raises VirtfnError if the lab refuses or is gone, or too many ask at once (EAGAIN).
        """
        asker, limit = object(), self._waiting if method in WAITING else self._limit
        try:
            limit.acquire_on_behalf_of_nowait(asker)
        except WouldBlock:
            words = f"{limit.total_tokens:g} such questions are under way; ask again later"
            raise VirtfnError(words, errno_name="EAGAIN") from None
        try:
            return await anyio.to_thread.run_sync(self._ask, method, params or {})
        finally:
            limit.release_on_behalf_of(asker)
