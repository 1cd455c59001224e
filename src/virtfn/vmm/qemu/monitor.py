"""QMP: what is asked of a running QEMU, and what it tells by itself.

Monitor        one connection, in a guest's loop
OthersMonitor  of QEMUs that somebody else starts, one after the other: each listens at the same path
"""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.closing import refuse_rights
from virtfn.vmm.listening import connect, peer_process
from virtfn.vmm.qemu.loop import Loop
from virtfn.vmm.qemu.processors import Execute, Processors
from virtfn.vmm.qemu.wait import Watch

__all__ = ["Gone", "Monitor", "OthersMonitor"]

_GREETING_S = 30.0  # a QEMU greets when its machine stands
_HANG_UP_S = 3.0

T = TypeVar("T")


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


class _Line:
    """A connection to a QEMU that may not greet yet, or never, since somebody else talks to it."""

    def __init__(self, name: str, sock: socket.socket, loop: Loop) -> None:
        self.processors = Processors(self.execute)
        self._monitor = Monitor(name, lambda event, told: None)
        self._sock = sock
        self._over, self._fault = asyncio.Event(), ""
        loop.start(self._open())

    async def _open(self) -> None:
        try:
            await asyncio.wait_for(self._monitor.connect(self._sock), _GREETING_S)
        except TimeoutError:
            self._fault = f"QEMU's monitor has not greeted within {_GREETING_S:g} s; does anybody else talk to it?"
        except VirtfnError as error:
            self._fault = str(error)
        finally:
            self._over.set()

    async def execute(self, command: str, arguments: Mapping[str, object]) -> object:
        """Run a command, once QEMU has greeted. Raises VirtfnError if it refuses, has not greeted, or is gone."""
        await self._over.wait()
        if self._fault:
            raise Gone(self._fault)
        return await self._monitor.execute(command, arguments)

    async def close(self) -> None:
        """Hang up."""
        with suppress(OSError):  # QEMU has
            self._sock.shutdown(socket.SHUT_RDWR)
        await self._over.wait()
        await self._monitor.close()
        self._sock.close()


class OthersMonitor:
    """The monitor of QEMUs that somebody else starts; at first there is none.

    path: where each of them listens. Raises VirtfnError (EEXIST) if something is there that is no socket.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self._line: _Line | None = None
        self._ends: list[Future[None]] = []
        if not self._clear():
            raise VirtfnError(f"{path} exists and is not a socket", errno_name="EEXIST")
        self._loop = Loop(f"qmp-{name}")

    def _clear(self) -> bool:
        """Remove the socket of a QEMU whose functions are no more; return whether nothing is left."""
        with suppress(OSError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                return False
            self._path.unlink()
        return True

    def call(self, process: int) -> str:
        """Connect to the monitor of a process; return why that cannot be, in words, or nothing. It never waits."""
        self.hang_up()
        try:
            sock = connect(self._path)
        except OSError as error:
            return f"no monitor of its QEMU listens at {self._path}: {error.strerror}"
        if peer_process(sock) != process:
            sock.close()
            return f"who listens at {self._path} is not its QEMU"
        refuse_rights(sock)
        self._line = _Line(self._name, sock, self._loop)
        return ""

    @property
    def processors(self) -> Processors:
        """Those of the QEMU that is there, for work that `ask` starts. Raises VirtfnError without one."""
        if self._line is None:
            raise VirtfnError(f"guest {self._name} has no monitor now", errno_name="ENOTCONN")
        return self._line.processors

    def ask(self, work: Callable[[Execute], Coroutine[object, object, T]]) -> Future[T]:
        """Start work on QMP commands, as of a `QemuGuest`."""
        if self._line is not None:
            return self._loop.start(work(self._line.execute))
        future: Future[T] = Future()
        future.set_exception(VirtfnError(f"guest {self._name} has no monitor now", errno_name="ENOTCONN"))
        return future

    def hang_up(self) -> None:
        """Let go of the QEMU that is there, if one is."""
        if self._line is not None:
            self._ends = [*(end for end in self._ends if not end.done()), self._loop.start(self._line.close())]
            self._line = None

    async def _hung_up(self) -> None:
        await asyncio.gather(*(asyncio.wrap_future(end) for end in self._ends), return_exceptions=True)

    def close(self) -> None:
        """Hang up, and take away what a QEMU has left at the path."""
        self.hang_up()
        with suppress(VirtfnError):
            self._loop.call(self._hung_up(), "the end of a monitor", timeout_s=_HANG_UP_S, watch=Watch())
        self._loop.stop()
        self._clear()
