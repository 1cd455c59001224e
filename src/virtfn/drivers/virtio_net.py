"""The front end: a guest's driver of a virtio network device. Queues in guest memory, an interrupt for received frames.

    probe      reset, agree on features, learn the address
    start      queues and buffers, tell the device where they are
    interrupt  poll until idle; meanwhile no interrupts are asked for
    recover    start anew, after the device found that something makes no sense

Frames are moved by the kernels of `kernels/virtio/frontend.py` over the row `netdev`. Spec: virtio 1.3, 3.1, 5.1.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import HEADER_BYTES as ETHERNET_BYTES
from virtfn.hw.eth import VLAN_BYTES
from virtfn.hw.types import Hva, Iova, Mac
from virtfn.hw.virtio.net import HEADER_BYTES, Features
from virtfn.hw.virtio.ring import (
    AVAIL_INDEX,
    AVAIL_RING,
    DESC_BYTES,
    DESC_WRITE,
    NO_INTERRUPT,
    avail_bytes,
    used_bytes,
)
from virtfn.kernels.netdev import BATCH
from virtfn.kernels.ranges import address_of
from virtfn.kernels.virtio.frontend import new_rings, quiet, rearm
from virtfn.machine.memory import view_bytes
from virtfn.machine.netports import NetDriver
from virtfn.machine.ports import Clock, DmaMemory, VirtfnError
from virtfn.machine.virtio import RX, TX, VirtioDevice

__all__ = ["FEATURES", "VirtioNet"]

FEATURES = Features.of(CSUM=1, INDIRECT_DESC=1, EVENT_IDX=1, VERSION_1=1).value
_LEAD = 16  # in front of the first buffer: its header
_LINE = 64
_MAX_MTU = 65521  # no more fits into a frame


class VirtioNet(NetDriver):
    """A network device made of a virtio device.

    dma: memory of the guest. ring: descriptors of each queue, a power of two from 2 to 4096. mtu: bytes of payload.
    features: what it asks for, of what is offered. `given_up` counts frames that resets took from the queues. Raises
    VirtfnError for a ring or MTU out of range.
    """

    def __init__(
        self, device: VirtioDevice, dma: DmaMemory, clock: Clock | None = None, *, ring: int = 256, mtu: int = 1500,
        features: int = FEATURES,
    ) -> None:  # fmt: skip
        if ring & (ring - 1) or not 2 <= ring <= 4096:
            raise VirtfnError(f"a queue has 2 to 4096 descriptors, a power of two, not {ring}", errno_name="EINVAL")
        if not 68 <= mtu <= _MAX_MTU:
            raise VirtfnError(f"the MTU is 68 to {_MAX_MTU} bytes, not {mtu}", errno_name="EINVAL")
        self.mac = Mac(0)
        self.mtu = mtu
        self.size = ring
        self.interrupts = 0
        self._device = device
        self._dma = dma
        self._wanted = features
        self._features = 0
        self._given_up = 0
        self._up = False
        self._allocated: list[Iova] = []
        self._row = new_rings()
        self._lengths, self._taken = np.zeros(ring, np.int64), np.zeros((BATCH, 3), np.int64)
        d = self.netdev
        d["tx_lengths"] = address_of(self._lengths, "lengths of frames to send")
        d["taken"] = address_of(self._taken, "received frames")
        d["tx_size"] = d["rx_size"] = ring
        d["longest"] = d["rx_longest"] = mtu + ETHERNET_BYTES + VLAN_BYTES
        # A line of the cache more than a round number, or all buffers would compete for a few lines.
        d["buffer_bytes"] = -(-max(int(d["longest"]) + _LEAD, 2048) // _LINE) * _LINE + _LINE

    @property
    def row(self) -> npt.NDArray[np.void]:
        """The row that kernels move frames by, as (1,) NETDEV with more behind it."""
        return self._row

    @property
    def netdev(self) -> np.void:
        """The row itself."""
        value: np.void = self._row[0]
        return value

    @property
    def features(self) -> int:
        """What was agreed on."""
        return self._features

    # Life.

    def probe(self) -> None:
        """Reset the device, agree on features, learn the address.

        Raises VirtfnError if it does not agree.
        """
        self._device.reset()
        self._features = self._wanted & self._device.offered
        if not self._device.accept(self._features):
            raise VirtfnError("the virtio device does not agree to its own features", errno_name="ENODEV")
        self.mac = self._device.mac

    def start(self) -> None:
        """Bring the interface up: queues, buffers.

        Raises VirtfnError if guest memory is exhausted, or the device does not take a queue.
        """
        if not self._allocated:
            self._allocate()
        d = self.netdev
        for name in ("tx_tail", "tx_index", "tx_reaped", "rx_index", "broken", "in_pieces", "polling", "empty_polls"):
            d[name] = 0
        d["event_idx"] = Features(self._features).EVENT_IDX
        d["tx_kick"] = self._device.kick(TX)
        self._fill_rings()
        for number, parts in ((RX, self._rx), (TX, self._tx)):
            self._device.set_queue(number, self.size, *parts)
        self._device.start()
        self._up = True
        d["up"] = 1

    def _allocate(self) -> None:
        d = self.netdev
        room = self.size * int(d["buffer_bytes"]) + _LEAD
        try:
            (self._rx, d["rx_desc"], d["rx_avail"], d["rx_used"]) = self._alloc_queue()
            (self._tx, d["tx_desc"], d["tx_avail"], d["tx_used"]) = self._alloc_queue()
            tx, here = self._alloc(room)
            self._tx_iova, d["tx_buffers"] = tx + _LEAD, here + _LEAD
            self._rx_iova, d["rx_buffers"] = self._alloc(room)
        except VirtfnError:
            self._free()
            raise

    def _alloc(self, size: int) -> tuple[Iova, Hva]:
        iova, hva = self._dma.alloc(size)
        self._allocated.append(iova)
        return iova, hva

    def _alloc_queue(self) -> tuple[tuple[Iova, Iova, Iova], int, int, int]:
        """Take memory for the three parts of a queue: its addresses for the device, and here."""
        avail = DESC_BYTES * self.size
        used = -(-(avail + avail_bytes(self.size)) // _LINE) * _LINE
        iova, hva = self._alloc(used + used_bytes(self.size))
        return (iova, Iova(iova + avail), Iova(iova + used)), hva, hva + avail, hva + used

    def _free(self) -> None:
        for iova in self._allocated:
            self._dma.free(iova)
        self._allocated.clear()

    def _fill_rings(self) -> None:
        """Write what never changes: descriptors, and all receive buffers as available. Nothing is used yet."""
        d, size = self.netdev, self.size
        places = np.arange(size) * int(d["buffer_bytes"])
        flags = DESC_WRITE << 32
        room = HEADER_BYTES + int(d["rx_longest"])
        for desc, first, word in (
            (d["tx_desc"], self._tx_iova - HEADER_BYTES, 0),
            (d["rx_desc"], self._rx_iova, room | flags),
        ):
            table = view_bytes(int(desc), DESC_BYTES * size).view(np.int64).reshape(-1, 2)
            table[:, 0], table[:, 1] = first + places, word
        for avail, used in ((d["tx_avail"], d["tx_used"]), (d["rx_avail"], d["rx_used"])):
            view_bytes(int(avail), avail_bytes(size))[:] = 0
            view_bytes(int(used), used_bytes(size))[:] = 0
        if not d["event_idx"]:
            # Finished transmissions are reaped when the next frame is sent. With EVENT_IDX the index says so.
            view_bytes(int(d["tx_avail"]), 2).view(np.uint16)[0] = NO_INTERRUPT
        ring = view_bytes(int(d["rx_avail"]), avail_bytes(size)).view(np.uint16)
        ring[AVAIL_RING // 2 : AVAIL_RING // 2 + size] = np.arange(size)
        ring[AVAIL_INDEX // 2] = size
        d["rx_filled"] = size

    def stop(self) -> None:
        """Bring the interface down; the device forgets the queues."""
        self._down()
        self._up = False
        self._free()

    def _down(self) -> None:
        d = self.netdev
        d["up"] = d["polling"] = d["empty_polls"] = 0
        self._device.reset()
        if self._up:
            self._given_up += int(d["tx_index"] - self._index(d["tx_used"])) & 0xFFFF
            self._given_up += int(self._index(d["rx_used"]) - d["rx_index"]) & 0xFFFF

    def _index(self, ring: int) -> int:
        return int(view_bytes(int(ring) + AVAIL_INDEX, 2).view(np.uint16)[0])

    def remove(self) -> None:
        """Forget a device that is no longer there."""
        self.stop()

    @property
    def broken(self) -> bool:
        """Whether the device has to be reset: one of the two found what makes no sense."""
        return self._up and (bool(self.netdev["broken"]) or self._device.needs_reset)

    def recover(self) -> None:
        """Reset, agree anew, and start again if the interface was up."""
        was_up = self._up
        self._down()
        self.probe()
        if was_up:
            self.start()

    # Interrupts.

    def interrupt(self, vector: int) -> None:
        """Handle an interrupt of a queue: of the receive queue, poll for frames, and ask for no more of them."""
        self.interrupts += 1
        if vector == RX and self.netdev["up"]:
            quiet(int(self._row.ctypes.data))
            self.netdev["polling"], self.netdev["empty_polls"] = 1, 0

    def idle(self) -> None:
        """Polling found nothing for a while: wait for the next interrupt, unless a frame has just come."""
        self.netdev["empty_polls"] = 0
        if not self.netdev["up"] or rearm(int(self._row.ctypes.data)):
            self.netdev["polling"] = 0
        else:
            quiet(int(self._row.ctypes.data))

    @property
    def traps(self) -> bool:
        """Whether what kernels show the device reaches it only by `show_tails`: no, by kicks."""
        return False

    def show_tails(self) -> None:
        """Show the device nothing: kernels have kicked it."""

    @property
    def tx_pending(self) -> bool:
        """Whether the device still has frames to send."""
        d = self.netdev
        return bool(d["up"]) and int(d["tx_index"]) != self._index(d["tx_used"])

    @property
    def given_up(self) -> int:
        """Frames that resets took: not sent yet, or received and not looked at."""
        return self._given_up

    # Settings.

    def set_context(self, index: int, l3: int, l4: int, tcp: bool, tag: int = 0) -> None:
        """Tell what frames with context `index`, 0 or 1, are like, that ask for a checksum (`kernels/netdev.py`).

        l4: bytes before the transport header. tcp: whether that is TCP, not UDP. Raises VirtfnError for a tag.
        """
        if tag:
            raise VirtfnError("a virtio device inserts no VLAN tags", errno_name="EOPNOTSUPP")
        self.netdev[f"context{index}_start"], self.netdev[f"context{index}_offset"] = l4, 16 if tcp else 6

    def set_promiscuous(self, unicast: bool, multicast: bool) -> None:
        """Ask for frames to any address.

        Raises VirtfnError: a bridge gives a port what is for it, for several, or for nobody it knows.
        """
        if unicast or multicast:
            raise VirtfnError("this virtio device has no promiscuous mode", errno_name="EOPNOTSUPP")

    def set_multicast(self, groups: list[Mac]) -> None:
        """Ask for frames to these groups: a bridge gives them to every port."""

    def set_vlan(self, vid: int, member: bool = True) -> None:
        """Join or leave a VLAN: tags pass as they are, and nothing has to be asked for."""
