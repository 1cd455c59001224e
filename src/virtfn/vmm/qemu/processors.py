"""A guest's processors, stopped for a moment: by one at a time, and nobody else lets them go on before.

Everything here runs in the guest's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Execute", "Processors"]

Execute = Callable[[str, Mapping[str, object]], Awaitable[object]]
"""Runs a QMP command, and returns its answer. Raises VirtfnError if QEMU refuses or is gone."""


class Processors:
    """The processors of one guest. `async with` stops them, and lets them go on at the end if they ran before."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._lock = asyncio.Lock()
        self._ran = self._paused = False

    async def __aenter__(self) -> None:
        await self.stop()

    async def __aexit__(self, *how: object) -> None:
        await self.go_on()

    async def stop(self) -> None:
        """Wait for whoever has them stopped, and stop them, if they run. Raises VirtfnError as `Execute` does."""
        await self._lock.acquire()
        try:
            state = await self._execute("query-status", {})
            self._ran = isinstance(state, dict) and bool(state.get("running"))
            if self._ran:
                await self._execute("stop", {})
        except BaseException:  # it may have stopped them, though nobody waits for that any more
            await self.go_on()
            raise

    async def go_on(self) -> None:
        """Let them go on that were stopped, and whoever waits stop them next. Raises VirtfnError as `Execute` does."""
        try:
            if self._ran:
                self._ran = False
                await self._execute("cont", {})
        finally:
            self._lock.release()

    async def pause(self) -> None:
        """Stop them until `resume`. Raises VirtfnError as `Execute` does."""
        if not self._paused:
            await self.stop()
            self._paused = True

    async def resume(self) -> None:
        """Let them run, also those that never ran. Raises VirtfnError as `Execute` does."""
        if not self._paused:
            await self._lock.acquire()
        self._paused, self._ran = False, True
        await self.go_on()
