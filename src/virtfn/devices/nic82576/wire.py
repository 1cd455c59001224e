"""The card's end of the wire: frames that left and wait for the uplink, and frames that arrive."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.port import Port
from virtfn.hw.types import Ps
from virtfn.kernels._jit import entry
from virtfn.kernels.i82576.cable import carry
from virtfn.kernels.i82576.farend import new_far_end
from virtfn.kernels.i82576.port import wire_in
from virtfn.kernels.i82576.state import DEPARTURE_BYTES, DROP_NO_UPLINK, WIRE
from virtfn.kernels.ranges import address_of
from virtfn.kernels.streams import whole_frames
from virtfn.machine.netports import Card
from virtfn.machine.ports import VirtfnError

__all__ = ["WireEnd"]


class WireEnd:
    """The part of a card that the wire ends at."""

    port: Port

    def now(self) -> Ps:
        """Return the time now."""
        raise NotImplementedError

    def handle(self, events: int) -> None:
        """Do what a call of the data plane asked for."""
        raise NotImplementedError

    def set_wire(self, connected: bool, mbps: int) -> None:
        """Connect the port to an uplink, or not. mbps: 10, 100, 1000, or 0 for a wire without pace."""
        self.port.set_wire(connected, mbps)

    def set_carrier(self, up: bool) -> None:
        """Let whatever is at the other end of the wire come, or go."""
        self.port.set_carrier(up)

    def open_wire(self, *, bare: bool = False) -> None:
        """Keep frames that leave by the wire, from now on, until `release_departures`.

        bare: leave off what fills short IPv4 frames up.
        """
        self.port.nic["port"]["departed_bare"] = bare
        self.port.nic["port"]["departures"] = self.port.nic["departed"].ctypes.data

    def carry_by_kernels(self) -> None:
        """Let kernels carry what leaves to the card at the other end of a cable, where they are told of one."""
        self.port.nic["card"]["carry"] = entry(carry, 3)

    def carry_to(self, far: Card) -> tuple[int, int]:
        """Let what has left arrive at the card at the other end of a cable, which does what its data plane asks for.

        Returns (frames, events of that card). Raises VirtfnError if that is of another model.
        """
        if not isinstance(far, WireEnd):
            raise VirtfnError("a cable joins cards of one model", errno_name="EOPNOTSUPP")
        far.settle()
        frames, events = carry(self.port.address, far.address, self.now())
        far.handle(events)
        return frames, events

    def departures(self) -> npt.NDArray[np.uint8]:
        """Look at the frames that left and wait: each after its length, 4 bytes, big-endian."""
        port = self.port.nic["port"]
        waiting: npt.NDArray[np.uint8] = self.port.nic["departed"][port["departed_head"] : port["departed_tail"]]
        return waiting

    def release_departures(self, nbytes: int) -> None:
        """Forget the first `nbytes` of what waits: frames that the uplink has taken."""
        nic, port = self.port.nic, self.port.nic["port"]
        head, tail = int(port["departed_head"]) + nbytes, int(port["departed_tail"])
        if head > DEPARTURE_BYTES // 2 or head == tail:  # at least as much has been taken as moves now
            nic["departed"][: tail - head] = nic["departed"][head:tail]
            head, tail = 0, tail - head
        port["departed_head"], port["departed_tail"] = head, tail

    def far_end(self, size: int = 512) -> npt.NDArray[np.void]:
        """Make what is at the other end of the wire, as (1,) NETDEV with more behind it; the card keeps what it needs.

        size: frames that wait for the card, at most.
        """
        self.open_wire()
        self._far_end: list[npt.NDArray[np.generic]] = []
        row = new_far_end(self.port.address, size, self._far_end)
        self._far_end.append(row)
        return row

    def discard_departures(self) -> None:
        """Drop, and count, all that waits: the uplink is gone."""
        waiting = self.departures()
        if waiting.size:
            self.port.nic["drops"][WIRE, DROP_NO_UPLINK] += whole_frames(int(waiting.ctypes.data), waiting.size)[0]
            self.release_departures(waiting.size)

    def arrive(
        self,
        store: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        first: int,
        count: int,
    ) -> tuple[int, int]:
        """Receive frames first..first+count-1 of a store from the wire, and do what the data plane asks for.

        offsets, lengths: in bytes, without frame check sequence. Returns (frames taken, events).
        """
        self.port.settle()
        block, now = self.port.address, self.now()
        taken, events = wire_in(block, now, address_of(store, "frames from the wire"), offsets, lengths, first, count)
        self.handle(events)
        return int(taken), events
