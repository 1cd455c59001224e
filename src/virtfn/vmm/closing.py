"""Closing what others have given, without waiting for them.

A descriptor that comes through a socket may be anything: of a TCP connection that lingers for an hour, of a file system
that its sender serves. To close it waits for as long as the sender likes, and so does whoever reads past it, or closes
the socket that it lies in unread:

    received          close(2)                             --> a thread of its own does it: `Closer`
    in a message      recv(2) with no room for it           --> every read of a socket has room: `RIGHTS_ROOM`
    out of band       any read of what comes after it      --> out-of-band bytes come in line: `take_all_rights`
    never read        close(2) of the socket               --> `close_socket` leaves it to the thread
    where none ought to come                               --> `refuse_rights`: Linux 6.16 lets nobody send it

Spec: unix(7), cmsg(3), socket(7): SO_LINGER, SO_PASSRIGHTS.
"""

from __future__ import annotations

import array
import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable

__all__ = [
    "MOST_RIGHTS",
    "RIGHTS_ROOM",
    "Closer",
    "close_listening",
    "close_socket",
    "receive_into",
    "refuse_rights",
    "take_all_rights",
]

MOST_RIGHTS = 253
"""Descriptors that the kernel passes in one message."""

RIGHTS_ROOM = socket.CMSG_SPACE(4 * MOST_RIGHTS)
"""Bytes of control data that hold all descriptors of a message: what does not fit, the kernel closes at once."""

_SO_PASSRIGHTS = 83
_ENOUGH = 16


def _nothing() -> None:
    return


class Closer:
    """A thread that closes descriptors one by one; it is started when the first comes.

    While `full`, its owner takes no more of those who gave them. on_room: called by the thread when it is full no more.
    """

    def __init__(self, on_room: Callable[[], object] = _nothing) -> None:
        self._on_room = on_room
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether so many descriptors wait that somebody must be holding them up."""
        return self.waiting >= _ENOUGH

    def close(self, fd: int) -> None:
        """Have a descriptor closed soon."""
        with self._lock:
            self.waiting += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._thread.start()
        self._queue.put(fd)

    def end(self) -> None:
        """Let the thread end when it has closed what it has; nobody waits for it."""
        if self._thread is not None:
            self._queue.put(-1)

    def _run(self) -> None:
        while (fd := self._queue.get()) >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
            with self._lock:
                was_full = self.full
                self.waiting -= 1
                now_room = was_full and not self.full
            if now_room:
                self._on_room()


def take_all_rights(sock: socket.socket) -> None:
    """Have descriptors that come with out-of-band bytes come as all others do."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def refuse_rights(sock: socket.socket) -> None:
    """Let nobody send descriptors to a UNIX socket, as far as the kernel knows how; they are refused with EPERM."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def receive_into(sock: socket.socket, target: memoryview, closer: Closer) -> tuple[int, bool]:
    """Read what a socket has; return how many bytes, and whether descriptors came, which nobody wants."""
    got, ancillary, _, _ = sock.recvmsg_into([target], RIGHTS_ROOM, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    for _, _, content in ancillary:
        for fd in array.array("i", content):
            closer.close(fd)
    return got, bool(ancillary)


def close_socket(sock: socket.socket, closer: Closer) -> None:
    """Close a connected socket, in which descriptors may lie unread; `take_all_rights` came before."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # from now on nothing comes
    try:
        unread = bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        unread = False
    if unread:
        closer.close(sock.detach())
    else:
        sock.close()


def close_listening(sock: socket.socket, closer: Closer) -> None:
    """Close a listening socket; those who wait at it, and what they have sent, may take their time."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    try:
        waiting, _ = sock.accept()
    except OSError:
        sock.close()
    else:
        closer.close(waiting.detach())
        closer.close(sock.detach())
