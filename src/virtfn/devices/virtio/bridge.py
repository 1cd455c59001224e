"""The bridge that back ends share, and its uplink: the rings of a card's driver. Frames move by `kernels/virtio`.

To whoever runs it, it is what a card is: an address to serve, `settle` before, `handle` after.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from virtfn.devices.virtio.backend import BackEnd
from virtfn.hw.types import Mac
from virtfn.kernels._jit import entry
from virtfn.kernels.card import EV_IDLE
from virtfn.kernels.clock import CLOCK, set_up_clock
from virtfn.kernels.ranges import address_of, row_address
from virtfn.kernels.virtio.bridge import BRIDGE, DROP_NAMES, FRONT_END, NOTHING, PORTS, RINGS, serve_bridge
from virtfn.kernels.virtio.channel import KICK_EVENT_BYTES, KICK_EVENTS
from virtfn.kernels.virtio.macs import WAYS, place_of
from virtfn.kernels.virtio.state import new_areas
from virtfn.machine.clock import S_PS
from virtfn.machine.netports import Served
from virtfn.machine.ports import VirtfnError

__all__ = ["Bridge"]

_ADDRESSES, _UPLINK_ADDRESSES = 64, 2048  # of a port, at most


@dataclass(slots=True)
class _Port:
    """Who is at a port: what its kernels go by, and whom to tell."""

    back: BackEnd | None = None
    on_call: Callable[[int], None] | None = None
    netdev: npt.NDArray[np.void] | None = None
    idle: Callable[[], None] | None = None


class Bridge:
    """Ports, and the frames between them. block: (1,) BRIDGE, for kernels. address: of that.

    ageing_ps: after which an address that is not heard of is forgotten. spin: turns without a frame before a front end
    is asked for kicks again.
    """

    def __init__(self, *, ageing_ps: int = 300 * S_PS, spin: int = 0) -> None:
        self.block = np.zeros(1, BRIDGE)
        self.row: np.void = self.block[0]
        self.address = row_address(self.block, "a bridge")
        self._areas = new_areas(self.row["frame"])
        self._clock = np.zeros(1, CLOCK)
        self._events = np.zeros(KICK_EVENTS * KICK_EVENT_BYTES, np.uint8)
        self.kicks = select.epoll()
        own = self.row["own"]
        own["ageing"], own["spin"] = ageing_ps, spin
        own["kicks"], own["events"] = -1, address_of(self._events, "room for kicks")
        self.row["card"]["serve"] = entry(serve_bridge, 3)
        self._ports: dict[int, _Port] = {}
        self._beneath: Served | None = None

    # Ports.

    def add(self, back: BackEnd, on_call: Callable[[int], None] | None = None) -> int:
        """Give a front end a port. on_call: interrupts its driver, for queue 0 or 1, where no eventfd does.

        Raises VirtfnError if all ports are taken.
        """
        return self._take(_Port(back=back, on_call=on_call), FRONT_END, back.address, _ADDRESSES)

    def add_netdev(self, netdev: npt.NDArray[np.void], idle: Callable[[], None] | None = None) -> int:
        """Give the rings of a card's driver a port: (1,), begins with a NETDEV row. idle: as in `NetDriver`.

        Raises VirtfnError if all ports are taken.
        """
        address = int(netdev.ctypes.data)
        return self._take(_Port(netdev=netdev, idle=idle), RINGS, address, _UPLINK_ADDRESSES)

    def _take(self, port: _Port, kind: int, address: int, most: int) -> int:
        n = next((n for n in range(PORTS) if n not in self._ports), None)
        if n is None:
            raise VirtfnError(f"a bridge has {PORTS} ports at most", errno_name="ENOSPC")
        row = self.row["ports"][n]
        self.row["ports"][n] = np.zeros((), row.dtype)
        self.row["drops"][n] = 0
        row["kind"], row["address"], row["most"] = kind, address, most
        self._ports[n] = port
        self.row["own"]["ports"] = max(self._ports) + 1
        return n

    def remove(self, n: int) -> None:
        """Take a port away, and the addresses behind it."""
        del self._ports[n]
        self.row["ports"][n]["kind"] = NOTHING
        self.forget(n)
        self.row["own"]["ports"] = max(self._ports, default=-1) + 1

    def forget(self, n: int) -> None:
        """Forget the addresses behind a port, pinned ones too."""
        self.row["macs"]["mac"][self.row["macs"]["port"] == n] = 0
        self.row["ports"][n]["learned"] = 0

    def pin(self, n: int, mac: Mac, *, check: bool = False) -> None:
        """Let an address be behind a port for good. check: the port may send by no other.

        Raises VirtfnError if there is no place for it.
        """
        places = self.row["macs"]
        first = int(place_of.py_func(int(mac)))  # type: ignore[attr-defined]
        here = [i for i in range(first, first + WAYS) if int(places[i]["mac"]) == mac]
        free = [i for i in range(first, first + WAYS) if not places[i]["mac"] or int(places[i]["seen"]) >= 0]
        if not here and not free:
            raise VirtfnError("the bridge has no place for such an address left", errno_name="ENOSPC")
        i = (here or free)[0]
        if places[i]["mac"] and int(places[i]["seen"]) >= 0:
            self.row["ports"][int(places[i]["port"])]["learned"] -= 1
        places[i] = int(mac), n, -1
        row = self.row["ports"][n]
        row["mac"], row["check"] = int(mac), int(check)

    def set_card(self, card: Served | None) -> None:
        """Let a card move what the rings hold, in the same turns."""
        self._beneath = card
        self.row["own"]["beneath"] = 0 if card is None else card.address

    # Kicks of other processes.

    def watch(self, fd: int) -> None:
        """Let an eventfd be one by which a front end of another process kicks; its back end's row has it, too."""
        self.kicks.register(fd, select.EPOLLIN | select.EPOLLET)
        self.row["own"]["kicks"] = self.kicks.fileno()

    def unwatch(self, fd: int) -> None:
        """Let go of an eventfd, which is not closed yet."""
        self.kicks.unregister(fd)

    def close(self) -> None:
        """Let go of what the system has given."""
        self.row["own"]["kicks"] = -1
        self.kicks.close()

    # Turns.

    def settle(self) -> None:
        """Do what comes before kernels are called."""
        if self._beneath is not None:
            self._beneath.settle()

    def serve(self, budget: int = 64, now: int = 0) -> tuple[int, int]:
        """Give each port a turn, and do what comes of it. Returns (frames, events)."""
        self.settle()
        moved, events = serve_bridge(self.address, now, budget)
        self.handle(events)
        return moved, events

    def handle(self, events: int) -> None:
        """Do what a call of kernels asked for: interrupts of front ends; what the card beneath wants."""
        for port in list(self._ports.values()):
            if port.back is not None:
                for queue in port.back.take_calls():
                    if port.on_call is not None:
                        port.on_call(queue)
            elif port.netdev is not None and port.idle is not None and events & EV_IDLE:
                row = port.netdev[0]
                if row["polling"] and row["empty_polls"] >= 32:
                    port.idle()
        if self._beneath is not None:
            self._beneath.handle(events)

    def follow_time(self, limit_ps: int) -> None:
        """Let kernels see the machine's time pass, and work for `limit_ps` at most."""
        self._clock["limit"] = limit_ps
        self.row["card"]["clock"] = set_up_clock(self._clock)
        if self._beneath is not None:
            self._beneath.follow_time(limit_ps)

    @property
    def waits(self) -> bool:
        """Whether the card beneath has a frame that holds up its line."""
        return self._beneath is not None and self._beneath.waits

    # What observers see.

    def counters(self) -> dict[str, int]:
        """Count what became of frames: forwarded to one port, flooded to several; addresses without a place."""
        own = self.row["own"]
        return {
            "forwarded": int(self.row["card"]["forwarded"]),
            "flooded": int(own["flooded"]),
            "unlearned": int(own["unlearned"]),
        }

    def port(self, n: int) -> dict[str, int]:
        """Count the frames of a port: sent by it to others, received by it, and copies into rings."""
        row = self.row["ports"][n]
        names = ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "flooded", "copies", "copy_bytes")
        return {name: int(row[name]) for name in names}

    def drops(self, n: int) -> dict[str, int]:
        """Count frames dropped on their way to a port, or from it, by reason; reasons without any are left out."""
        return {name: int(count) for name, count in zip(DROP_NAMES, self.row["drops"][n], strict=True) if count}

    def addresses(self, n: int) -> list[Mac]:
        """List the addresses behind a port, as they are remembered."""
        places = self.row["macs"]
        return [Mac(int(mac)) for mac in places["mac"][(places["port"] == n) & (places["mac"] != 0)]]
