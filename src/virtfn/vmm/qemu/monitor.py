"""QMP: what is asked of a running QEMU, and what it tells by itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from qemu.qmp import ExecuteError, QMPClient, QMPError

from virtfn.machine.ports import VirtfnError

__all__ = ["Gone", "Monitor"]


class Gone(VirtfnError):  # noqa: N818
    """The connection to QEMU ended."""


class Monitor:
    """A QMP connection; everything here runs in the guest's loop. on_event: called with name and data of each event."""

    def __init__(self, name: str, on_event: Callable[[str, Mapping[str, object]], None]) -> None:
        self._client = QMPClient(name)
        self._on_event = on_event
        self._events: asyncio.Task[None] | None = None

    async def connect(self, sock: socket.socket) -> None:
        """Greet QEMU, which answers when the machine stands, all its devices included. Raises VirtfnError."""
        try:
            await self._client.connect(sock)
        except QMPError as error:
            raise Gone(f"QMP: {error}") from error
        self._events = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self._client.events:
            told = event.get("data", {})
            self._on_event(str(event["event"]), told if isinstance(told, dict) else {})

    async def execute(self, command: str, arguments: Mapping[str, object]) -> object:
        """Run a command. Raises VirtfnError with QEMU's words if it refuses or is gone."""
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise VirtfnError(f"QEMU refuses {command}: {error}") from error
        except QMPError as error:
            raise Gone(f"QEMU does not answer {command}: {error or 'it is gone'}") from error

    async def close(self) -> None:
        """Disconnect."""
        if self._events is not None:
            self._events.cancel()
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
