"""The wire: carries frames between a NIC's port and its uplink, and makes the link follow."""

from __future__ import annotations

from pathlib import Path

from virtfn.machine.netports import Card
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.vmm.uplink.cable import CableEnd
from virtfn.vmm.uplink.stream import StreamUplink
from virtfn.vmm.uplink.tap import TapUplink
from virtfn.vmm.uplink.uplink import NOTHING, Burst, PcapUplink, Uplink

__all__ = ["Wire", "open_uplink"]

_LISTEN = "listen:"


def open_uplink(where: str, folder: Path, clock: Clock) -> Uplink | None:
    """Open what `where` names: pcap:FILE, tap:NAME, stream:SOCKET, stream:listen:SOCKET; None for none, and a cable.

    folder: where file names start from. Raises VirtfnError as the uplinks do, and for other words.
    """
    kind, _, name = where.partition(":")
    match kind:
        case "none" | "cable":  # whoever has both cards makes a cable
            return None
        case "pcap":
            return PcapUplink(folder / name)
        case "tap":
            return TapUplink(name, clock)
        case "stream":
            return StreamUplink(folder / name.removeprefix(_LISTEN), clock, listening=name.startswith(_LISTEN))
    raise VirtfnError(f"{where} is no uplink; use none, pcap:FILE, tap:NAME or stream:SOCKET", errno_name="EINVAL")


class Wire:
    """A wire between `nic` and `uplink`, which it closes at its end. mbps: its pace; 0: none."""

    def __init__(self, nic: Card, uplink: Uplink, mbps: int = 0) -> None:
        self.uplink = uplink
        self._nic = nic
        self._burst: Burst = NOTHING
        self._next = 0
        self._up = uplink.attend()
        nic.set_wire(True, mbps)
        nic.set_carrier(self._up)
        nic.open_wire(bare=uplink.bare)
        if isinstance(uplink, CableEnd):
            uplink.card = nic
            nic.carry_by_kernels()

    @property
    def up(self) -> bool:
        """Whether somebody is at the other end."""
        return self._up

    @property
    def nic(self) -> Card:
        """The card at this end."""
        return self._nic

    @property
    def far_card(self) -> Card | None:
        """The card at the other end of a cable, where both ends are plugged in; None for another uplink."""
        return self.uplink.far_card if self._up and isinstance(self.uplink, CableEnd) else None

    @property
    def arriving(self) -> bool:
        """Whether frames are on the wire that the NIC has not taken yet."""
        return self._next < len(self._burst)

    @property
    def departing(self) -> bool:
        """Whether frames wait for the uplink, and there is one."""
        return self._up and self._nic.departures().size > 0

    def serve(self, budget: int = 64) -> tuple[int, int]:
        """Carry what can be carried now: all that leaves, up to `budget` frames that arrive.

        Returns (frames that arrived, and 1 if any left; events of the NIC). By a cable it carries what leaves, and
        returns (frames; events of the card at the other end).
        """
        up = self.uplink.attend()
        if up != self._up:
            self._up = up
            self._nic.set_carrier(up)
        far = self.far_card
        if far is not None:
            return self._nic.carry_to(far)
        moved = self._send()
        if not self.arriving:
            self._burst, self._next = self.uplink.receive(), 0
        if not self.arriving:
            return moved, 0
        burst = self._burst
        count = min(budget, len(burst) - self._next)
        taken, events = self._nic.arrive(burst.bytes, burst.offsets, burst.lengths, self._next, count)
        self._next += taken
        return moved + taken, events

    def _send(self) -> int:
        departures = self._nic.departures()
        if not departures.size:
            return 0
        if not self._up or isinstance(self.uplink, CableEnd):  # nothing is plugged in at the other end
            self._nic.discard_departures()
            return 1
        sent = self.uplink.send(departures)
        if sent:
            self._nic.release_departures(sent)
        return int(sent > 0)

    def fileno(self) -> int:
        """Return a descriptor that is readable when frames arrive, or -1."""
        return self.uplink.fileno()

    def close(self) -> None:
        """Pull the cable."""
        self.uplink.close()
        self._nic.set_carrier(False)
