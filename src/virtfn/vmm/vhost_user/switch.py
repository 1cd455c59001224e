"""The switch: a bridge whose ports are sockets, and whose turns are those of an actor. It can rest for a world, too."""

from __future__ import annotations

import os
import select

import numpy as np

from virtfn.devices.virtio import BackEnd, Bridge
from virtfn.hw.types import Ps
from virtfn.kernels.card import URGENT
from virtfn.kernels.posix import POLLIN
from virtfn.kernels.ranges import address_of, row_address
from virtfn.kernels.virtio.channel import SIGNALS
from virtfn.kernels.virtio.loop import run_bridge
from virtfn.machine.clock import MS_PS, S_PS, US_PS, WallClock
from virtfn.machine.ports import Actor
from virtfn.vmm.vfio_user.eventfds import Signals
from virtfn.vmm.vhost_user.limits import Limits
from virtfn.vmm.vhost_user.server import Server

__all__ = ["Switch"]

_LIMIT_PS = 5 * MS_PS
_POLL_PS = 100 * US_PS
_OUTCOMES, _OUTCOME_BYTES = 64, 32


class Switch(Actor):
    """A learning bridge with ports at sockets; a `with` block. bridge: also takes ports of this process.

    ageing_ps: after which an address is forgotten. bridge: to give such ports to, instead of one of its own; it stays
    its owner's. Not for use by several threads at a time. Raises VirtfnError if the system has no asynchronous I/O.
    """

    def __init__(self, *, ageing_ps: int = 300 * S_PS, bridge: Bridge | None = None) -> None:
        self.bridge = Bridge(ageing_ps=ageing_ps) if bridge is None else bridge
        self._own = bridge is None
        self.servers: list[Server] = []
        self._clock = WallClock()
        self._scratch = np.zeros(2, np.int64)
        address_of(self._scratch, "room for the time")
        self._signals = Signals()
        request = np.frombuffer(self._signals.request(0), np.uint8).copy()
        listed = np.array([address_of(request, "a signal")], np.int64)
        outcomes, no_time = np.zeros(_OUTCOMES * _OUTCOME_BYTES, np.uint8), np.zeros(2, np.int64)
        self._kept = request, listed, outcomes, no_time
        where = (address_of(request), address_of(listed), address_of(outcomes), _OUTCOMES, address_of(no_time))
        self._row = np.zeros(1, SIGNALS)
        self._row[0] = *self._signals.calls, *where
        self._signals_address = row_address(self._row, "signals")
        self._epoll = select.epoll()
        self._epoll.register(self.bridge.kicks.fileno(), select.EPOLLIN)

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(
        self, path: str | os.PathLike[str], *, features: int | None = None, limits: Limits | None = None
    ) -> Server:
        """Give the switch a port at a socket. features: what is offered to its client; None: all.

        Raises VirtfnError if the path cannot be had, or all ports are taken.
        """
        back = BackEnd() if features is None else BackEnd(offered=features)
        port = self.bridge.add(back)
        try:
            server = Server(path, back, self.bridge, port, self._signals_address, limits or Limits())
        except BaseException:
            self.bridge.remove(port)
            raise
        self.servers.append(server)
        self._epoll.register(server.fileno(), select.EPOLLIN)
        return server

    def remove(self, server: Server) -> None:
        """Take a port away, and end its client."""
        self.servers.remove(server)
        self._epoll.unregister(server.fileno())
        server.close()
        self.bridge.remove(server.port)

    # An actor.

    def turn(self, now: Ps) -> int:
        """Answer messages, and move frames; return how much was done."""
        done = self.answer()
        moved, _ = self.bridge.serve(64, now)
        return done + moved

    def answer(self) -> int:
        """Answer messages alone; return how many."""
        return sum(server.serve() for server in self.servers)

    def due(self) -> Ps | None:
        """Say when the next turn is wanted, though nothing wakes: soon, where a client has given no kick."""
        return Ps(self._clock.now() + _POLL_PS) if self._polls else None

    @property
    def _polls(self) -> bool:
        rows = (server.back.row["tx"] for server in self.servers)
        return any(row["started"] and not row["kick"] for row in rows)

    def fileno(self) -> int:
        """Return the descriptor that can be read when there is something to do; -1: closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def rest(self, limit_ps: int) -> None:
        """Move frames as they come, for `limit_ps` at most, or until there are messages."""
        asked = [self.bridge.kicks.fileno(), *(server.fileno() for server in self.servers)]
        waited = np.array([fd | POLLIN for fd in asked], np.int64)
        address_of(waited, "what is waited for")
        limit_ps = min(limit_ps, _POLL_PS if self._polls else _LIMIT_PS)
        _, events = run_bridge(
            self.bridge.address, self._scratch.ctypes.data, waited, URGENT, limit_ps
        )  # fmt: skip
        self.bridge.handle(events)

    def __call__(self) -> None:
        """Take a turn, then move frames for some milliseconds, or until there are messages: a tick."""
        self.turn(self._clock.now())
        self.rest(_LIMIT_PS)

    def close(self) -> None:
        """End all clients, remove the sockets. Closing twice is harmless."""
        if self._epoll.closed:
            return
        while self.servers:
            self.remove(self.servers[-1])
        self._epoll.close()
        if self._own:
            self.bridge.close()
        self._signals.close()
