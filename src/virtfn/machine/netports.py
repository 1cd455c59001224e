"""What crosses between network cards, their drivers, and all who know neither's model: Protocols only.

Card           a device that moves frames, by kernels
Served         the part of it that whoever serves it sees
NetDriver      a driver of a network function in a guest, whose frames move by kernels, too
CopiesQueues   a device whose queues can run by copies of their registers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from virtfn.hw.bits import RegMap
from virtfn.hw.types import Mac, Rid
from virtfn.machine.ports import Device, VirtfnError
from virtfn.machine.taps import Tap, TapInterface

__all__ = [
    "Captured",
    "Card",
    "Carrier",
    "Conduct",
    "CopiesQueues",
    "CountsFrames",
    "Moved",
    "NetDriver",
    "QueueCopy",
    "Served",
    "Tally",
    "Vectors",
    "Ways",
]


class Vectors(NamedTuple):
    """Where kernels find the interrupts of a function.

    function: its number as the card counts them. msix: address of its MSIX rows. first: its first vector. bits: all of
    its vectors, as bits; 0: Python alone looks after them. plain: whether plain registers are for kernels, too.
    """

    function: int
    msix: int
    first: int
    bits: int
    plain: bool


class Moved(NamedTuple):
    """Frames that a function sent and received, and their bytes without frame check sequences.

    rx_multicast, rx_broadcast: of the frames received, those to groups, and to everybody.
    """

    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    rx_multicast: int = 0
    rx_broadcast: int = 0


class Conduct(NamedTuple):
    """What the owner of a VF has done, by the card's counters: they run on, whoever has it.

    spoofed: frames that were not its to send. malformed: descriptors that make no sense. messages: to and from the PF's
    driver. resets: of the VF, by whom ever.
    """

    spoofed: int = 0
    malformed: int = 0
    messages: int = 0
    resets: int = 0


class Ways(NamedTuple):
    """Which ways a function's frames went, with bytes of frames without check sequences.

    Those to the wire, and those to other functions (a frame to a group may be both); those from the wire, and those
    from other functions; to groups and to everybody, of those received. dropped_bytes: with check sequences, of dropped
    frames whose length is known.
    """

    tx_wire_frames: int = 0
    tx_wire_bytes: int = 0
    tx_hairpin_frames: int = 0
    tx_hairpin_bytes: int = 0
    rx_wire_frames: int = 0
    rx_wire_bytes: int = 0
    rx_hairpin_frames: int = 0
    rx_hairpin_bytes: int = 0
    rx_multicast: int = 0
    rx_broadcast: int = 0
    dropped_bytes: int = 0


class Tally(NamedTuple):
    """All that a card counts of a VF, of one moment. drops: by reason; messages: between it and the PF, both ways."""

    moved: Moved
    ways: Ways
    drops: dict[str, int]
    messages: int


class InForce(NamedTuple):
    """What a card's registers say of a VF, whoever has written them. max_tx_rate: in Mb/s; 0: no limit."""

    mac: Mac
    vlan: int = 0
    qos: int = 0
    spoof_check: bool = False
    max_tx_rate: int = 0


class Captured(NamedTuple):
    """A frame that a card has recorded. n: the VF, None for the wire. time_ps: of its passing."""

    n: int | None
    outbound: bool
    time_ps: int
    frame: npt.NDArray[np.uint8]


@runtime_checkable
class CountsFrames(Protocol):
    """A device that counts what it moves."""

    def moved(self, rid: Rid) -> Moved:
        """Count the frames of a function, and their bytes, since the start; of a PF: of the whole port."""


class Served(Protocol):
    """What compiled code serves: a card, or who moves frames between cards. address: of its row, begun by CARD."""

    address: int

    def settle(self) -> None:
        """Bring what kernels look up in line with the registers, and let timers fire: before they are called."""

    def handle(self, events: int) -> None:
        """Do what a call of kernels asked for; it is over now."""

    @property
    def waits(self) -> bool:
        """Whether a frame holds up the line."""
        return False

    def follow_time(self, limit_ps: int) -> None:
        """Let kernels see the machine's time pass, and work for `limit_ps` at most."""


class Carrier(Served, Protocol):
    """Who moves the frames of functions: their card, or what is served in place of that."""

    def vectors(self, rid: Rid) -> Vectors:
        """Tell kernels where to find the interrupts of a function."""


class Card(Device, CountsFrames, Carrier, Protocol):
    """A network card: a device whose frames move in batches, by kernels.

    By default it leads nowhere, records nothing, and has neither mailbox nor device TLB.
    address: of its state, which begins with a CARD row (`kernels/card.py`). n: a VF's number; None: the wire. Only one
    thread may be in its data half at a time. Whoever watches is told: on_access (routing ID, registers, offset, value,
    write or read), on_reset (routing ID, kind), on_message (routing ID of the VF, to the PF or from it, words, in
    words).
    """

    address: int
    on_access: Callable[[Rid, type[RegMap], int, int, bool], None] | None
    on_reset: Callable[[Rid, str], None] | None
    on_message: Callable[[Rid, bool, Sequence[int], str], None] | None

    @property
    def pf_rid(self) -> Rid:
        """Routing ID of the PF."""

    def vf_rid(self, n: int) -> Rid:
        """Routing ID of a VF."""

    @property
    def vfs(self) -> int:
        """Enabled VFs."""

    # Frames.

    def serve(self, budget: int = 64) -> tuple[int, int]:
        """Move up to `budget` frames of each queue, and do what comes of it; return (frames, events)."""

    # The wire.

    def set_wire(self, connected: bool, mbps: int) -> None:
        """Connect the port to an uplink, or not. mbps: its pace; 0: none."""

    def set_carrier(self, up: bool) -> None:
        """Let whatever is at the other end of the wire come, or go."""

    def carry_by_kernels(self) -> None:
        """Let kernels carry what leaves to the card at the other end of a cable, where they are told of one."""

    def carry_to(self, far: Card) -> tuple[int, int]:
        """Let what has left arrive at the card at the other end of a cable, which does what its data plane asks for.

        Returns (frames, events of that card).
        """
        return 0, 0

    def open_wire(self, *, bare: bool = False) -> None:
        """Keep frames that leave by the wire. bare: without what fills short IPv4 frames up.

        Raises VirtfnError for a card without a wire.
        """
        raise VirtfnError("this card has no wire", errno_name="EOPNOTSUPP")

    def departures(self) -> npt.NDArray[np.uint8]:
        """Look at the frames that left and wait: each after its length, 4 bytes, big-endian."""
        return np.zeros(0, np.uint8)

    def release_departures(self, nbytes: int) -> None:
        """Forget the first `nbytes` of what waits."""

    def far_end(self) -> npt.NDArray[np.void]:
        """Make the other end of the wire, for who sends to the card and hears it by kernels, as (1,) NETDEV.

        Raises VirtfnError for a card without a wire.
        """
        raise VirtfnError("this card has no wire", errno_name="EOPNOTSUPP")

    def discard_departures(self) -> None:
        """Drop, and count, all that waits."""

    def arrive(
        self,
        store: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        first: int,
        count: int,
    ) -> tuple[int, int]:
        """Receive frames first..first+count-1 of a store from the wire; return (frames taken, events)."""
        return 0, 0

    # What observers see.

    @property
    def frames(self) -> int:
        """Count the frames that have moved, from and to anyone; cheap enough to be asked all the time."""

    def traffic(self) -> npt.NDArray[np.int64]:
        """Count frames from and to each function, as (functions,), in the order of their numbers (`Vectors`)."""

    def counters(self) -> dict[str, int]:
        """Count what became of frames; `forwarded` to one function and `flooded` to several are always there."""

    def drops(self, n: int | None) -> dict[str, int]:
        """Count dropped frames of a VF, or of the wire, by reason; reasons without any are left out."""

    def all_drops(self) -> dict[str, int]:
        """Count all dropped frames by reason."""

    def tally(self) -> list[Tally]:
        """Count all of each VF that is enabled, by number; a copy, cheap enough to be taken each second."""
        vfs = range(self.vfs)
        return [Tally(self.moved(self.vf_rid(n)), Ways(), self.drops(n), self.mailbox_messages(n)) for n in vfs]

    def mailbox_messages(self, n: int) -> int:
        """Count messages between a VF and the PF, both ways."""
        return 0

    def conduct(self) -> list[Conduct]:
        """Count what the owner of each VF has done, by number; cheap enough to be asked several times a second."""
        return [Conduct()] * self.vfs

    def device_tlb(self) -> dict[str, int]:
        """Count what the card's device TLB did; nothing where there is none."""
        return {}

    @property
    def link_up(self) -> bool:
        """Whether the port has a link."""
        return False

    def in_force(self, n: int | None) -> InForce:
        """Read what is in force for a VF; of the PF (None), its address alone."""
        return InForce(Mac(0))

    def start_capture(self) -> None:
        """Record what each function sends and receives from now on; `take_capture` must keep up."""

    def stop_capture(self) -> None:
        """Record no more; what was recorded can still be taken."""

    def take_capture(self) -> Sequence[Captured]:
        """Take the frames recorded since the last call."""
        return ()

    def state(self) -> Mapping[str, object]:
        """Read all that decides what becomes of a frame, as JSON, for its model's `explain` (`cards.py`).

        Raises VirtfnError (EOPNOTSUPP) for a card that nobody explains.
        """
        raise VirtfnError("nobody can explain this card", errno_name="EOPNOTSUPP")

    def tap_interfaces(self) -> Sequence[TapInterface]:
        """List what taps can see frames at, now."""
        return ()

    def drop_reasons(self) -> Sequence[str]:
        """List the reasons for which it drops frames, as taps number them."""
        return ()

    def open_tap(self, points: int, interfaces: int, snap: int, size: int) -> Tap:
        """Copy frames for another process from now on (`machine/taps.py`).

        Raises VirtfnError if there are too many taps (EBUSY), or the card has none (EOPNOTSUPP).
        """
        raise VirtfnError("this card's frames cannot be tapped", errno_name="EOPNOTSUPP")

    def close(self) -> None:
        """Release memory."""


class QueueCopy(Protocol):
    """A queue that runs by a copy of its registers: what is shown to its driver has to be carried over.

    receive: or it transmits. Descriptors have 16 bytes.
    """

    receive: bool

    def ring(self) -> tuple[int, int, int, int, int]:
        """Tell the driver's ring from others: how often it started anew, base, length in bytes, head, enabled or 0."""

    def look(self) -> object:
        """Return what changes whenever either copy does."""

    def restart(self) -> None:
        """Run by what is shown, but without a descriptor: as after a reset."""

    def follow(self) -> bool:
        """Carry over what the driver has set; False if the card has stopped the queue, which is shown then."""

    @property
    def tail(self) -> int:
        """The tail that the driver has shown."""

    @property
    def head(self) -> int:
        """Where the card is."""

    def hand_over(self, tail: int) -> None:
        """Let the card have descriptors up to `tail`."""

    def show_head(self, head: int) -> None:
        """Show the driver where the card is."""

    def stop(self) -> None:
        """Stop the queue as where its ring cannot be read."""

    def to_send(self, descriptor: bytes) -> tuple[int, int] | None:
        """Tell what a transmit descriptor names: address and bytes; None if nothing."""

    def received(self, given: bytes, written: bytes) -> list[tuple[int, int]]:
        """Tell where the bytes of a receive descriptor are, by what was given and what the card wrote."""

    def reports(self, given: bytes) -> bool:
        """Tell whether the driver wants to hear that a transmit descriptor is done."""

    @property
    def head_word(self) -> int:
        """Where the card writes its head for a driver that wants to hear; 0: nowhere."""


@runtime_checkable
class CopiesQueues(Protocol):
    """A device whose queues can run by copies of their registers."""

    def copy_queues(self, rid: Rid) -> list[QueueCopy]:
        """Let the queues of a function run by copies of their registers, from now on until `end_copies`."""

    def end_copies(self, copies: Sequence[QueueCopy]) -> None:
        """Let queues run by the registers that their driver sees again."""


class NetDriver(Protocol):
    """A driver of a network function, in a guest.

    mac: its address. row: (1,), begins with a NETDEV row (`kernels/netdev.py`), by which kernels move frames.
    """

    mac: Mac

    @property
    def row(self) -> npt.NDArray[np.void]:
        """The row that kernels move frames by."""

    @property
    def netdev(self) -> np.void:
        """The row itself."""

    def probe(self) -> None:
        """Find the device and reset it. Raises VirtfnError if it is not as it should be."""

    def start(self) -> None:
        """Bring the interface up. Raises VirtfnError if it cannot be."""

    def stop(self) -> None:
        """Bring the interface down. Raises VirtfnError if the device does not answer."""

    def remove(self) -> None:
        """Forget a device that is no longer there."""

    def send(self, frames: Sequence[bytes]) -> int:
        """Put frames into the transmit ring by hand; return how many found room.

        Raises VirtfnError: EOPNOTSUPP for a driver whose frames move by kernels alone.
        """
        raise VirtfnError("this driver's frames move by kernels alone", errno_name="EOPNOTSUPP")

    def receive(self) -> list[bytes]:
        """Take all frames that were received, by hand. Raises VirtfnError as `send`."""
        raise VirtfnError("this driver's frames move by kernels alone", errno_name="EOPNOTSUPP")

    @property
    def broken(self) -> bool:
        """Whether the device has to be reset."""
        return False

    def recover(self) -> None:
        """Reset the device, and bring the interface up again if it was. Raises VirtfnError if that is for later."""

    def interrupt(self, vector: int) -> None:
        """Handle an interrupt."""

    def idle(self) -> None:
        """Stop polling: wait for the next interrupt."""

    @property
    def traps(self) -> bool:
        """Whether what kernels show the device reaches it only by `show_tails`."""

    def show_tails(self) -> None:
        """Show the device what kernels have done."""

    @property
    def tx_pending(self) -> bool:
        """Whether the device still has frames to send."""

    @property
    def given_up(self) -> int:
        """Frames that resets and removals took."""

    def set_promiscuous(self, unicast: bool, multicast: bool) -> None:
        """Ask for frames to any address. Raises VirtfnError if that is refused."""

    def set_multicast(self, groups: list[Mac]) -> None:
        """Ask for frames to these groups. Raises VirtfnError if that is refused."""

    def set_vlan(self, vid: int, member: bool = True) -> None:
        """Join or leave a VLAN. Raises VirtfnError if that is refused."""
