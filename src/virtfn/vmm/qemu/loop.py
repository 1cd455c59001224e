"""The event loop of one guest, in a thread of its own: QMP, consoles and the agent go on whatever the caller does."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from virtfn.vmm.qemu.wait import Tick, Watch, rest

__all__ = ["Loop", "Port"]

T = TypeVar("T")

MAX_UNSENT = 1 << 20  # bytes queued towards a reader that has stopped reading
_STOP_S = 3.0


class Loop:
    """An asyncio loop in a daemon thread, with synchronous calls from outside."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        finally:
            self._loop.close()

    def call(
        self, work: Coroutine[object, object, T], what: str, *, timeout_s: float, tick: Tick = rest, watch: Watch
    ) -> T:
        """Run `work` in the loop and return its result; `tick` is called meanwhile.

        Raises what the work raises, and VirtfnError as `Watch.until` does; the work is cancelled then.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            watch.until(future.done, what, timeout_s=timeout_s, tick=tick)
        finally:
            future.cancel()
        return future.result()

    def start(self, work: Coroutine[object, object, T]) -> Future[T]:
        """Start `work` in the loop, and return what will come of it; it is cancelled when the loop stops."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # it is closed
            work.close()
            future: Future[T] = Future()
            future.cancel()
            return future

    def post(self, act: Callable[[], object]) -> None:
        """Have the loop call `act` soon; nothing happens once the loop has stopped."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(act)

    def stop(self) -> None:
        """Cancel what is under way, end the thread, close the loop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            # What QEMU has sent may hold it up where `refuse_rights` is not known: the thread is left behind then.
            self._thread.join(_STOP_S)


class Port(asyncio.Protocol):
    """A connected socket whose bytes go to `sink`. It lives in a loop; `send` may be called from any thread."""

    def __init__(self, loop: Loop, sink: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._sink = sink
        self._transport: asyncio.Transport | None = None
        self.ended = threading.Event()  # the other end has closed, and all it sent is here

    @classmethod
    async def open(cls, loop: Loop, sock: socket.socket, sink: Callable[[bytes], None]) -> Port:
        """Take over a connected UNIX socket; call it inside the loop."""
        running = asyncio.get_running_loop()
        _, port = await running.create_unix_connection(lambda: cls(loop, sink), sock=sock)
        return port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand bytes on."""
        self._sink(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the other end."""
        self._transport = None
        self.ended.set()

    def send(self, payload: bytes) -> None:
        """Send bytes; they are dropped when the other end is gone or has long stopped reading."""

        def write() -> None:
            transport = self._transport
            if transport is not None and transport.get_write_buffer_size() <= MAX_UNSENT:
                transport.write(payload)

        self._loop.post(write)

    def close(self) -> None:
        """Close the socket; call it inside the loop."""
        if self._transport is not None:
            self._transport.abort()
