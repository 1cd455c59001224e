"""A guest's serial console: what it said lately, waiting for what it says next, a log, and a door for people.

Bytes arrive in the guest's loop thread (`feed`); everything else may be called from any thread.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from virtfn import private
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.closing import refuse_rights
from virtfn.vmm.qemu.loop import MAX_UNSENT
from virtfn.vmm.qemu.wait import Tick, Watch, rest

__all__ = ["Console", "Recording"]

CAPACITY = 1 << 20
REPLAY = 4096  # bytes of the past that a newcomer at the door is shown

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78cM]|\r")
_UNDECODED = re.compile("[\udc80-\udcff]")


class Recording:
    """The last `capacity` bytes of a stream."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._kept = bytearray()
        self._lock = threading.Lock()
        self.total = 0  # bytes ever fed

    def feed(self, received: bytes) -> None:
        """Take bytes; the oldest go when there are too many."""
        with self._lock:
            self.total += len(received)
            self._kept += received
            if len(self._kept) > 2 * self._capacity:
                del self._kept[: -self._capacity]

    def since(self, position: int) -> bytes:
        """Return what is kept of the bytes from `position` on, counted from the first byte ever fed."""
        with self._lock:
            kept = self._kept[-self._capacity :]
            return bytes(kept[max(0, position - (self.total - len(kept))) :])

    def text(self, lines: int | None = None) -> str:
        """Return what was said, without terminal escapes: all that is kept, or the last `lines` lines."""
        said = _ESCAPES.sub("", self.since(0).decode("utf-8", "replace"))
        return said if lines is None else "\n".join(said.strip().splitlines()[-lines:])


class Console(Recording):
    """The serial console of a guest."""

    def __init__(self, send: Callable[[bytes], None], watch: Watch, log: Path | None = None) -> None:
        """Open `log`, which gets every byte as well.

        Raises VirtfnError if that file cannot be written.
        """
        super().__init__()
        self.send = send
        self._watch = watch
        self._seen = 0
        self._visitors: set[asyncio.StreamWriter] = set()
        self._door: asyncio.Server | None = None
        self._log: BinaryIO | None = None
        if log is not None:
            try:
                self._log = open(log, "ab", buffering=0, opener=private.opener)  # noqa: SIM115  # open until close()
            except OSError as error:
                raise VirtfnError(f"{log}: {error.strerror}") from error

    def feed(self, received: bytes) -> None:
        """Take bytes from the guest, and pass them on to the log and to whoever is at the door."""
        super().feed(received)
        if self._log is not None:
            try:
                self._log.write(received)
            except OSError:  # a full disk ends the log, not the guest
                self._log.close()
                self._log = None
        for visitor in list(self._visitors):
            if visitor.transport.get_write_buffer_size() > MAX_UNSENT:
                visitor.transport.abort()  # it has long stopped reading
            else:
                visitor.write(received)

    def wait_for(self, pattern: str, *, timeout_s: float = 60.0, tick: Tick = rest) -> re.Match[str]:
        """Wait until the console says `pattern`, a regular expression, after what the last call found.

        Terminal escapes and carriage returns are not seen. Raises VirtfnError with the last lines said, when it does
        not come or QEMU ends.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        looked_at = -1
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal looked_at, found
            if self.total == looked_at:
                return False
            looked_at = self.total
            fresh = self.since(self._seen)
            said = fresh.decode("utf-8", "surrogateescape")
            if found := wanted.search(_UNDECODED.sub("\ufffd", _ESCAPES.sub("", said))):
                past = said[: _end_with_escapes(said, found.end())]
                self._seen = max(self._seen, looked_at - len(fresh)) + len(past.encode("utf-8", "surrogateescape"))
            return found is not None

        try:
            self._watch.until(look, f"'{pattern}' on the console", timeout_s=timeout_s, tick=tick)
        except VirtfnError as error:
            said = self.text(8)
            raise VirtfnError(f"{error}; it said last:\n{said}" if said else str(error)) from error
        assert found is not None
        return found

    async def open_door(self, path: Path) -> None:
        """Listen at `path`: who connects sees the console and types into it. Call it in the guest's loop."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        refuse_rights(door)  # those who connect inherit it
        door.bind(str(path))
        os.chmod(path, 0o600)
        self._door = await asyncio.start_unix_server(self._receive, sock=door)

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.since(self.total - REPLAY))
        self._visitors.add(writer)
        try:
            while typed := await reader.read(4096):
                self.send(typed)
        except OSError:
            pass  # the visitor left in a hurry
        finally:
            self._visitors.discard(writer)
            writer.close()

    def close(self) -> None:
        """Close the door and the log; call it in the guest's loop. What was said can still be read."""
        if self._door is not None:
            self._door.close()
        for visitor in self._visitors:
            visitor.transport.abort()
        if self._log is not None:
            self._log.close()
            self._log = None


def _end_with_escapes(said: str, end: int) -> int:
    """Turn a position in `said` without its escapes into one in `said`."""
    for escape in _ESCAPES.finditer(said):
        if escape.start() >= end:
            break
        end += len(escape[0])
    return end
