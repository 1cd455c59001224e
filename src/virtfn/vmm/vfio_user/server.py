"""The server: a UNIX socket at a path, one client at a time, no loop, and no thread but the one that closes.

    epoll (this is `fileno`) --+-- listening socket
                               +-- the client's socket
                               +-- a few of others, that are told EBUSY
                               +-- while something is in the middle, a descriptor that can always be read

Whoever embeds it waits until `fileno()` is readable, alone or among others, and calls `serve()`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections import Counter
from pathlib import Path
from types import TracebackType

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.closing import Closer, close_listening
from virtfn.vmm.connection import Connection, DroppedError
from virtfn.vmm.listening import listen, remove
from virtfn.vmm.vfio_user.client import Client
from virtfn.vmm.vfio_user.device import VfioUserDevice
from virtfn.vmm.vfio_user.eventfds import Signals
from virtfn.vmm.vfio_user.limits import Limits
from virtfn.vmm.vfio_user.memory import DmaMapper, MmapMapper
from virtfn.vmm.vfio_user.messages import FIRST_MESSAGE, FRAMING, NO_REPLY, Header, IrqFlags, error_reply
from virtfn.vmm.vfio_user.session import Offer, Session
from virtfn.vmm.vfio_user.steps import Going, Steps

_ACCEPTS = 8  # in one call of `serve`
_OTHERS = 4


class Server:
    """Serve a device at a path.

    path: of the socket, mode 0600; one that a dead server left behind is replaced. mapper: who places the client's
    memory; a MmapMapper of its own if None. Not for use by several threads at a time.

    Raises VirtfnError if the path cannot be had, the device's regions or interrupt types cannot be, or it has some that
    are signalled by eventfds and the system has no asynchronous I/O.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: VfioUserDevice,
        *,
        mapper: DmaMapper | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.path = Path(path)
        regions = dict(device.regions())
        for index, region in regions.items():
            region.validate(index)
        irqs = dict(device.irqs())
        for index, irq in irqs.items():
            irq.validate(index)
        self.mapper: DmaMapper = mapper if mapper is not None else MmapMapper()
        self._counters: Counter[str] = Counter()
        self._session: Session | None = None
        self._client_fd = -1
        self._others: dict[int, Connection[Header]] = {}
        self._last_refusal = ""
        self._listening, self._identity = listen(self.path)
        self._closer = Closer(on_room=self._open_door)
        self._signals: Signals | None = None
        if any(irq.count and irq.flags & IrqFlags.EVENTFD for irq in irqs.values()):
            try:
                self._signals = Signals()
            except VirtfnError:
                self._listening.close()
                remove(self.path, self._identity)
                raise
        self._offer = Offer(device, regions, irqs, self._signals, self.mapper, limits or Limits())
        self._epoll = select.epoll()
        self._door = self._listening.fileno()
        self._epoll.register(self._door, select.EPOLLIN)
        self._ending: Steps[None] | None = None
        self._more = os.eventfd(1, os.EFD_CLOEXEC)
        self._told_more = False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `serve` has something to do; it stays the same. -1: closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    @property
    def client(self) -> Client | None:
        """The client that is served now."""
        session = self._session
        if session is None or session.client.capabilities is None or session.lost:
            return None
        return session.client

    @property
    def counters(self) -> dict[str, int]:
        """What came: messages by command, `refused:REASON`, `dropped:REASON`, clients connected and turned away."""
        return {name: count for name, count in self._counters.items() if count}

    @property
    def closing(self) -> int:
        """How many descriptors of clients are being closed: who sent one may hold that up, and nothing else."""
        return self._closer.waiting

    @property
    def last_refusal(self) -> str:
        """Why a request was refused last, for people."""
        return self._session.last_refusal if self._session and self._session.last_refusal else self._last_refusal

    def serve(self, budget: int = 64, going: Going = lambda: True) -> int:
        """Do what is ready, at most `budget` messages, and return how many there were. Never waits.

        going: asked after each message, and each step of a long one; what is left when it says no goes on next time.
        """
        if self._epoll.closed:
            return 0
        ready = dict(self._epoll.poll(0))
        events = ready.pop(self._client_fd, 0)
        served = self._serve_client(events, budget, going) if events or self._told_more else 0
        if self._ending is not None:
            self._go_on_ending(going)
        self._tell_more()
        for fd in ready.keys() & self._others.keys():
            self._tell_busy(fd)
        # A client that has hung up is about to make room; the next one waits at the door meanwhile.
        leaving = events & select.EPOLLHUP if self._session is not None else self._ending is not None
        if self._door in ready and not self._epoll.closed and not leaving:
            self._accept()
        return served

    def _serve_client(self, events: int, budget: int, going: Going) -> int:
        session = self._session
        if session is None:
            return 0
        try:
            return session.serve(events, budget, going)
        except DroppedError as e:
            self._drop(e.reason)
            return 0

    def _tell_more(self) -> None:
        """Let the descriptor be readable as long as something is in the middle."""
        more = self._ending is not None or (self._session is not None and self._session.unfinished)
        if more is not self._told_more and not self._epoll.closed:
            self._told_more = more
            if more:
                self._epoll.register(self._more, select.EPOLLIN)
            else:
                self._epoll.unregister(self._more)

    def _go_on_ending(self, going: Going = lambda: True) -> None:
        """Take back what a client had that is gone, until there is no time."""
        for _ in self._ending or ():
            if not going():
                return
        self._ending = None

    def _drop(self, reason: str) -> None:
        session, self._session, self._client_fd = self._session, None, -1
        if session is not None:
            self._counters[f"dropped:{reason}"] += 1
            self._last_refusal = session.last_refusal  # of each client its own
            self._ending = session.end()

    def _open_door(self) -> None:
        """Let clients in again, from the closer's thread."""
        with contextlib.suppress(OSError, ValueError):  # the server was closed
            self._epoll.modify(self._door, select.EPOLLIN)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if self._closer.full:
                # Each client leaves a socket to close: no more of them until somebody lets go of the others' files.
                self._epoll.modify(self._door, 0)
                if not self._closer.full:
                    self._open_door()
                return
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:
                self._counters["accept-failed"] += 1
                return
            limits = self._offer.limits
            if self._session is not None:
                self._counters["turned-away"] += 1
                if len(self._others) == _OTHERS:
                    self._hang_up(next(iter(self._others)))
                other = Connection(sock, self._epoll, self._closer, FRAMING, limits.max_msg_fds, FIRST_MESSAGE)
                self._others[sock.fileno()] = other
                continue
            self._counters["connected"] += 1
            connection = Connection(sock, self._epoll, self._closer, FRAMING, limits.max_msg_fds, limits.max_output)
            self._session, self._client_fd = Session(connection, self._offer, self._counters), connection.fileno()
            return  # it may have hung up already: the next call sees that, before it turns anybody away

    def _tell_busy(self, fd: int) -> None:
        """Answer a client that has to go, and let it hang up: QEMU aborts if that is done to it while it starts."""
        connection = self._others[fd]
        try:
            message = connection.receive()
        except DroppedError:
            self._hang_up(fd)
            return
        if message is not None:
            message.close_fds()
            if not message.header.is_reply and not message.header.flags & NO_REPLY:
                connection.send(error_reply(message.header, errno.EBUSY))
        if connection.lost:
            self._hang_up(fd)

    def _hang_up(self, fd: int) -> None:
        self._others.pop(fd).close()

    def close(self) -> None:
        """End the client, remove the socket. Closing twice is harmless."""
        if self._epoll.closed:
            return
        self._go_on_ending()
        self._drop("server-closed")
        self._go_on_ending()
        for fd in list(self._others):
            self._hang_up(fd)
        self._epoll.close()
        os.close(self._more)
        close_listening(self._listening, self._closer)
        self._closer.end()
        if self._signals is not None:
            self._signals.close()
        remove(self.path, self._identity)
