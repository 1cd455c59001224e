"""A stream of messages with descriptors, on a socket that never blocks.

Each read stops at the end of a header or of a message, so that nothing waits in this process: what is ready is what the
socket says. Each has room for all descriptors that can come, wanted or not: see `closing.py`. Output that the client
does not take is kept up to a limit; from half of it on, requests are left unread.

    reading  <--- backlog below the half --->  paused  --- backlog above the limit --->  lost
"""

from __future__ import annotations

import array
import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.closing import RIGHTS_ROOM, Closer, close_socket, take_all_rights
from virtfn.vmm.listening import peer_process

__all__ = ["Connection", "DroppedError", "Framed", "Framing", "Message"]

_FD = array.array("i").itemsize
_READS = 64  # of the socket in one call of `receive`; a client may send byte by byte
_READ_BYTES = 256 << 10
_OVERHEAD = 64  # what a queued message costs besides its bytes


class DroppedError(VirtfnError):
    """The stream cannot be followed any further, or its end is gone. reason: a short name, counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"client dropped: {reason}")
        self.reason = reason


class Framed(Protocol):
    """A header, as far as a stream is cut by it. size: bytes of the message, with its header."""

    @property
    def size(self) -> int:
        """Bytes of the message, with its header."""


H = TypeVar("H", bound=Framed)


class Framing(NamedTuple, Generic[H]):
    """How a stream is cut into messages. header: bytes of one; largest: size of the first message, at most.

    parse: reads a header; it takes the size that a message may have now, too, and raises DroppedError.
    """

    header: int
    largest: int
    parse: Callable[[bytes | bytearray, int], H]


class Message(NamedTuple, Generic[H]):
    """A message as it came. fds: its descriptors; whoever uses one takes it from the list, the rest will be closed."""

    header: H
    body: bytes
    fds: list[int]
    closer: Closer

    def close_fds(self) -> int:
        """Have the descriptors that nobody took closed; return how many."""
        count = len(self.fds)
        for fd in self.fds:
            self.closer.close(fd)
        self.fds.clear()
        return count


class Connection(Generic[H]):
    """One connected socket, registered with an epoll.

    framing: how it is cut. max_fds: in a message; max_output: bytes not yet taken.
    closer: of descriptors that come. largest: the size that a message may have now. backlog: bytes that wait for the
    client. lost: why the connection came to its end, or empty. process: who has connected, 0 if it is not seen here.
    """

    def __init__(
        self,
        sock: socket.socket,
        epoll: select.epoll,
        closer: Closer,
        framing: Framing[H],
        max_fds: int,
        max_output: int,
    ) -> None:
        sock.setblocking(False)
        take_all_rights(sock)
        self.closer = closer
        self.process = peer_process(sock)
        self._sock = sock
        self._epoll = epoll
        self._max_fds = max_fds
        self._max_output = max_output
        self._input = bytearray()
        self._header: H | None = None
        self._fds: list[int] = []
        self._output: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._events = select.EPOLLIN
        self.largest = framing.largest
        self._framing = framing
        self.backlog = 0
        self.lost = ""
        epoll.register(sock, self._events)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    @property
    def paused(self) -> bool:
        """Whether requests are left unread until the client has taken answers."""
        return self.backlog >= self._max_output // 2

    @property
    def idle(self) -> bool:
        """Whether nothing is half read, and nothing waits to be sent."""
        return not (self._input or self._header or self._output or self.lost)

    # Receiving.

    def receive(self) -> Message[H] | None:
        """Read the next message; None if there is no whole one yet.

        Raises DroppedError at the end of the stream, and when it makes no sense.
        """
        for _ in range(_READS):
            header = self._header
            try:
                if header is None:
                    self._read_header()
                else:
                    self._read(self._receive(min(header.size - self._framing.header - len(self._input), _READ_BYTES)))
            except (BlockingIOError, InterruptedError):
                return None
            except OSError:
                raise DroppedError("client-closed") from None
            header = self._header
            if header is not None and len(self._input) == header.size - self._framing.header:
                message = Message(header, bytes(self._input), self._fds, self.closer)
                self._header, self._fds = None, []
                self._input.clear()
                return message
        return None

    def _read_header(self) -> None:
        self._read(self._receive(self._framing.header - len(self._input)))
        if len(self._input) == self._framing.header:
            self._header = self._framing.parse(self._input, self.largest)
            self._input.clear()

    def _receive(self, most: int) -> bytes:
        got, ancillary, flags, _ = self._sock.recvmsg(most, RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds.extend(array.array("i", content[: len(content) // _FD * _FD]))
        if flags & socket.MSG_CTRUNC or len(self._fds) > self._max_fds:
            raise DroppedError("too-many-fds")
        if self._fds and self.closer.full:
            raise DroppedError("fds-not-closed")
        return got

    def _read(self, got: bytes) -> None:
        if not got:
            raise DroppedError("cut-message" if self._input or self._header else "client-closed")
        self._input += got

    # Sending.

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, or what of it the socket takes now; the rest goes later. Errors show as `lost`."""
        if self.lost:
            return
        view = memoryview(message)
        if not self._output:
            sent = self._put(view, fds)
            if sent == len(view) or self.lost:
                return
            if sent:
                view, fds = view[sent:], ()
        self._output.append((view, fds))
        self.backlog += len(view) + _OVERHEAD
        if self.backlog > self._max_output:
            self.lose("stalled")
        self._listen()

    def flush(self) -> None:
        """Send what waits, as far as the client takes it."""
        while self._output and not self.lost:
            view, fds = self._output[0]
            sent = self._put(view, fds)
            self.backlog -= sent
            if sent < len(view):
                if sent:
                    self._output[0] = (view[sent:], ())
                break
            self.backlog -= _OVERHEAD
            self._output.popleft()
        self._listen()

    def _put(self, view: memoryview, fds: Sequence[int]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self._sock.sendmsg([view], rights, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.lose("client-closed")
            return 0

    def _listen(self) -> None:
        if self.lost:
            return
        events = (0 if self.paused else select.EPOLLIN) | (select.EPOLLOUT if self._output else 0)
        if events != self._events:
            self._epoll.modify(self._sock, events)
            self._events = events

    # The end.

    def receive_no_more(self) -> None:
        """Refuse what the other side sends from now on; what it has sent can still be read, and answers go out."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def lose(self, reason: str) -> None:
        """Give the connection up; the epoll tells so. The first reason stays."""
        if self.lost:
            return
        self.lost = reason
        self._output.clear()
        self.backlog = 0
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and descriptors of a message that never became whole."""
        self.lose("closed")
        for fd in self._fds:
            self.closer.close(fd)
        self._fds = []
        if self._sock.fileno() >= 0:
            self._epoll.unregister(self._sock)
            close_socket(self._sock, self.closer)
