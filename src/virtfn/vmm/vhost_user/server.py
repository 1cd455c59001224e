"""A port of the switch at a UNIX socket: one client at a time, no loop, and no thread but the one that closes.

    epoll (this is `fileno`) --+-- listening socket
                               +-- the client's socket

A client that comes while another is there is hung up on. When one goes, its port is empty until the next comes.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections import Counter
from pathlib import Path

from virtfn.devices.virtio import BackEnd, Bridge
from virtfn.vmm.closing import Closer, close_listening, close_socket, take_all_rights
from virtfn.vmm.connection import Connection, DroppedError
from virtfn.vmm.listening import listen, remove
from virtfn.vmm.vhost_user.limits import Limits
from virtfn.vmm.vhost_user.messages import FRAMING
from virtfn.vmm.vhost_user.session import Session

__all__ = ["Server"]

_ACCEPTS = 8  # in one call of `serve`


class Server:
    """Serve a back end at a path. Made by `Switch.listen`.

    path: of the socket, mode 0600; one that a dead server left behind is replaced. back: what its frames are moved by;
    port: its place at the bridge. signals: address of a SIGNALS row. Raises VirtfnError if the path cannot be had.
    """

    def __init__(
        self, path: str | os.PathLike[str], back: BackEnd, bridge: Bridge, port: int, signals: int, limits: Limits
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.back = back
        self.port = port
        self._bridge = bridge
        self._signals = signals
        self._limits = limits
        self._counters: Counter[str] = Counter()
        self._session: Session | None = None
        self._client_fd = -1
        self._last_refusal = ""
        self._listening, self._identity = listen(self.path)
        self._closer = Closer(on_room=self._open_door)
        self._epoll = select.epoll()
        self._door = self._listening.fileno()
        self._epoll.register(self._door, select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `serve` has something to do. -1: closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._session is not None

    @property
    def counters(self) -> dict[str, int]:
        """What came: messages by name, `refused:REASON`, `dropped:REASON`, clients connected and turned away."""
        return {name: count for name, count in self._counters.items() if count}

    @property
    def last_refusal(self) -> str:
        """Why a message was refused last, for people."""
        return self._session.last_refusal if self._session and self._session.last_refusal else self._last_refusal

    def serve(self, budget: int = 16) -> int:
        """Do what is ready, at most `budget` messages, and return how many there were. Never waits."""
        if self._epoll.closed:
            return 0
        ready = dict(self._epoll.poll(0))
        served = 0
        events = ready.get(self._client_fd, 0)
        if events and self._session is not None:
            try:
                served = self._session.serve(events, budget)
            except DroppedError as e:
                self._drop(e.reason)
                served = 1
        # A client that has hung up is about to make room; the next one waits at the door meanwhile.
        leaving = events & select.EPOLLHUP if self._session is not None else False
        if self._door in ready and not leaving:
            served += self._accept()
        return served

    def _drop(self, reason: str) -> None:
        session, self._session, self._client_fd = self._session, None, -1
        if session is not None:
            self._counters[f"dropped:{reason}"] += 1
            self._last_refusal = session.last_refusal  # of each client its own
            session.end()

    def _open_door(self) -> None:
        """Let clients in again, from the closer's thread."""
        with contextlib.suppress(OSError, ValueError):  # the server was closed
            self._epoll.modify(self._door, select.EPOLLIN)

    def _accept(self) -> int:
        for done in range(_ACCEPTS):
            if self._closer.full:
                # Each client leaves descriptors to close: no more of them until somebody lets go of the others'.
                self._epoll.modify(self._door, 0)
                if not self._closer.full:
                    self._open_door()
                return done
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return done
            except OSError:
                self._counters["accept-failed"] += 1
                return done
            if self._session is not None:
                self._counters["turned-away"] += 1
                take_all_rights(sock)
                close_socket(sock, self._closer)
                continue
            self._counters["connected"] += 1
            limits = self._limits
            connection = Connection(sock, self._epoll, self._closer, FRAMING, limits.max_fds, limits.max_output)
            self._client_fd = connection.fileno()
            self._session = Session(
                connection, self.back, self._bridge, self._signals, limits, self._counters
            )  # fmt: skip
            return done + 1  # it may have hung up already: the next call sees that, before it turns anybody away
        return _ACCEPTS

    def close(self) -> None:
        """End the client, remove the socket. Closing twice is harmless."""
        if self._epoll.closed:
            return
        self._drop("server-closed")
        self._epoll.close()
        close_listening(self._listening, self._closer)
        self._closer.end()
        remove(self.path, self._identity)
