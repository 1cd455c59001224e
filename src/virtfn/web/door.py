"""How questions of HTTP reach the lab: by its control socket, few at a time, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio.to_thread
from anyio import CapacityLimiter, WouldBlock

from virtfn.machine.ports import VirtfnError

__all__ = ["AT_ONCE", "Ask", "Door"]

AT_ONCE = 8
"""Questions under way; the socket takes 16 clients, and others want to ask, too."""

Ask = Callable[[str, Mapping[str, object]], object]
"""Puts a question, as `virtfn.api.control.ask` does for one lab. Raises VirtfnError."""


class Door:
    """The way to one lab. ask: puts a question, and waits for the answer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._limit = CapacityLimiter(AT_ONCE)

    async def ask(self, method: str, params: Mapping[str, object] | None = None) -> object:
        """Ask the lab; other questions go on meanwhile.

        Raises VirtfnError if the lab refuses or is gone, or too many ask at once (EAGAIN).
        """
        asker = object()
        try:
            self._limit.acquire_on_behalf_of_nowait(asker)
        except WouldBlock:
            raise VirtfnError(f"{AT_ONCE} questions are under way; ask again later", errno_name="EAGAIN") from None
        try:
            return await anyio.to_thread.run_sync(self._ask, method, params or {})
        finally:
            self._limit.release_on_behalf_of(asker)
