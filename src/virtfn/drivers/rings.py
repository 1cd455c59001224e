"""A driver's queue pair: rings and buffers in guest memory, the device's registers that name them, and tails.

A VF's registers are those of `VfRegs`, a PF's those of `Regs`, which has all queues: only their places differ.

A tail is a store into a mapped page, or into a word that traps where a VMM catches that in compiled code. Where neither
is, it is a store into a word of memory, and `show_tails` after a burst writes what moved into the registers: one exit a
burst. Kernels know only the address, in the row `netdev`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from virtfn.drivers.byhand import put_frames, take_frames
from virtfn.drivers.window import Window
from virtfn.hw.bits import Decl
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.desc import (
    DESC_BYTES,
    MAX_FRAME,
    RXD_DD,
    RXD_EOP,
    TXC_L4T_SHIFT,
    TXC_L4T_TCP,
    TXC_L4T_UDP,
    TXC_MACLEN_SHIFT,
    TXC_VLAN_SHIFT,
    TXD_DEXT,
    TXD_DTYP_CONTEXT,
    TXD_IDX_SHIFT,
)
from virtfn.hw.i82576.fields import DescType
from virtfn.hw.i82576.rxtx import RXDCTL, SRRCTL, TDWBAL, TXDCTL
from virtfn.hw.types import Hva, Iova
from virtfn.kernels.i82576.netdev import new_rings, rx_return, rx_take, tx_room, tx_send
from virtfn.kernels.netdev import BATCH
from virtfn.kernels.ranges import address_of
from virtfn.machine.clock import MS_PS
from virtfn.machine.memory import PAGE, view_bytes
from virtfn.machine.netports import NetDriver
from virtfn.machine.ports import DmaMemory, VirtfnError

__all__ = ["RingDriver", "Rings"]

RegisterMap = type[Regs] | type[VfRegs]

_FINISHED = RXD_DD | RXD_EOP


@dataclass(slots=True)
class _TrappedTail:
    """A tail register that nothing maps, the word that stands for it, and what the device was shown last."""

    decl: Decl
    word: npt.NDArray[np.uint32]
    shown: int


class Rings:
    """Rings of `size` descriptors each, of queue `queue` of a register map. mtu: bytes of payload.

    row: (1,) RINGS, for kernels.

    `given_up` counts frames that were in the rings when these were stopped: not sent yet, or not looked at.
    """

    def __init__(
        self, regs: Window, dma: DmaMemory, size: int, mtu: int, *, names: RegisterMap = VfRegs, queue: int = 0
    ) -> None:
        self.size = size
        self.given_up = 0
        self.row = new_rings()
        self.netdev: np.void = self.row[0]
        self._lengths, self._taken = np.zeros(size, np.int64), np.zeros((BATCH, 3), np.int64)
        self.netdev["tx_lengths"] = address_of(self._lengths, "lengths of frames to send")
        self.netdev["taken"] = address_of(self._taken, "received frames")
        self._vlans = np.zeros(4096 // 8, np.uint8)
        self.netdev["vlans"] = address_of(self._vlans, "VLANs of a guest")
        # Whole KiB, enough for a tagged frame; and a line of the cache, or all buffers would compete for a few of them.
        self._packet_kib = -(-max(mtu + 18, 2048) // 1024)
        self.buffer_bytes = self._packet_kib * 1024 + 64
        self.netdev["longest"] = min(self._packet_kib * 1024 - FCS_BYTES, MAX_FRAME)
        self._regs, self._names, self._queue = regs, names, queue
        self._dma = dma
        self._allocated: list[Iova] = []
        self._bounce = self._shadow = Hva(0)
        self._tails: dict[int, _TrappedTail] = {}

    # Memory.

    def allocate(self) -> None:
        """Take memory for rings and buffers; nothing happens if there is some.

        Raises VirtfnError if the guest has no more; then nothing is taken.
        """
        if self._allocated:
            return
        d = self.netdev
        d["tx_size"] = d["rx_size"] = self.size
        d["buffer_bytes"] = self.buffer_bytes
        try:
            self._tx_ring, d["tx_ring"] = self._alloc(self.size * DESC_BYTES)
            self._rx_ring, d["rx_ring"] = self._alloc(self.size * DESC_BYTES)
            d["tx_iova"], d["tx_buffers"] = self._alloc(self.size * self.buffer_bytes)
            d["rx_iova"], d["rx_buffers"] = self._alloc(self.size * self.buffer_bytes)
            self._done_iova, d["tx_done_head"] = self._alloc(PAGE)
            _, self._bounce = self._alloc(self.buffer_bytes + PAGE)
            _, self._shadow = self._alloc(PAGE)
        except VirtfnError:
            self.free()
            raise

    def _alloc(self, size: int) -> tuple[Iova, Hva]:
        iova, hva = self._dma.alloc(size)
        self._allocated.append(iova)
        return iova, hva

    def free(self) -> None:
        """Give the memory back; the device must know it no longer."""
        self._tails.clear()
        for iova in self._allocated:
            self._dma.free(iova)
        self._allocated.clear()

    def _received(self) -> npt.NDArray[np.int64]:
        """Look at the receive ring as (size, 2) 64-bit words."""
        return view_bytes(int(self.netdev["rx_ring"]), self.size * DESC_BYTES).view(np.int64).reshape(-1, 2)

    def _done_head(self) -> npt.NDArray[np.uint32]:
        """Look at the word where the device writes its transmit head, as (1,) uint32."""
        return view_bytes(int(self.netdev["tx_done_head"]), 4).view(np.uint32)

    # Queues.

    def start_transmit(self) -> None:
        """Give the device an empty transmit ring.

        Raises DeviceTimeoutError if the queue does not start.
        """
        regs, names, q = self._regs, self._names, self._queue
        regs.update(names.TXDCTL, q, ENABLE=0)
        regs.set(names.TDLEN, self.size * DESC_BYTES, q)
        regs.set(names.TDBAL, self._tx_ring & 0xFFFFFFFF, q)
        regs.set(names.TDBAH, self._tx_ring >> 32, q)
        regs.set(names.TDH, 0, q)
        regs.set(names.TDT, 0, q)
        regs.set(names.TDWBAH, self._done_iova >> 32, q)
        regs.set(names.TDWBAL, self._done_iova & 0xFFFFFFFF | TDWBAL.HEAD_WB_EN.mask, q)
        self._done_head()[0] = self.netdev["tx_tail"] = self.netdev["tx_reaped"] = 0
        self.netdev["tx_tail_register"] = self._tail(names.TDT, 0, 0)
        regs.set(names.TXDCTL, TXDCTL.of(ENABLE=1).value, q)
        regs.wait(names.TXDCTL, TXDCTL.ENABLE.mask, TXDCTL.ENABLE.mask, 10 * MS_PS, q)

    def start_receive(self) -> None:
        """Give the device a receive ring full of buffers.

        Raises DeviceTimeoutError if the queue does not start.
        """
        regs, names, q, d = self._regs, self._names, self._queue, self.netdev
        srrctl = SRRCTL.of(BSIZEPACKET=self._packet_kib, DESCTYPE=DescType.ADV_ONE_BUFFER, DROP_EN=1)
        regs.set(names.SRRCTL, srrctl.value, q)
        regs.update(names.RXDCTL, q, ENABLE=0)
        regs.set(names.RDBAL, self._rx_ring & 0xFFFFFFFF, q)
        regs.set(names.RDBAH, self._rx_ring >> 32, q)
        regs.set(names.RDLEN, self.size * DESC_BYTES, q)
        regs.set(names.RDH, 0, q)
        regs.set(names.RDT, 0, q)
        ring = self._received()
        ring[:, 0] = int(d["rx_iova"]) + np.arange(self.size) * self.buffer_bytes
        ring[:, 1] = 0
        d["rx_next"] = d["empty_polls"] = d["polling"] = 0
        d["rx_tail_register"] = self._tail(names.RDT, 1, self.size - 1)
        regs.set(names.RXDCTL, RXDCTL.of(PTHRESH=16, HTHRESH=8, WTHRESH=1, ENABLE=1).value, q)
        regs.wait(names.RXDCTL, RXDCTL.ENABLE.mask, RXDCTL.ENABLE.mask, 10 * MS_PS, q)
        regs.set(names.RDT, self.size - 1, q)

    def set_context(self, index: int, l3: int, l4: int, tcp: bool, tag: int = 0) -> None:
        """Tell the device, before the next frame, what frames with context `index`, 0 or 1, are like.

        l3, l4: bytes before the network header, and before the transport header. tcp: whether that is TCP, not UDP.
        tag: the VLAN tag to insert. It takes a free place of the ring, and that place's buffer is not sent.
        """
        tail, carried = int(self.netdev["tx_tail"]), TXC_L4T_TCP if tcp else TXC_L4T_UDP
        ring = view_bytes(int(self.netdev["tx_ring"]), self.size * DESC_BYTES).view(np.int64).reshape(-1, 2)
        ring[tail] = (
            l4 - l3 | l3 << TXC_MACLEN_SHIFT | tag << TXC_VLAN_SHIFT,
            TXD_DEXT | TXD_DTYP_CONTEXT | carried << TXC_L4T_SHIFT | index << TXD_IDX_SHIFT,
        )
        self.netdev["tx_tail"] = (tail + 1) % self.size

    def stop(self) -> None:
        """Stop both queues, and make the device forget where it writes the head."""
        regs, names, q = self._regs, self._names, self._queue
        regs.update(names.RXDCTL, q, ENABLE=0)
        regs.update(names.TXDCTL, q, ENABLE=0)
        # Head write-back survives a reset of the VF: it must not outlive the memory.
        regs.set(names.TDWBAL, 0, q)
        regs.set(names.TDWBAH, 0, q)

    def give_up(self) -> None:
        """Count the frames that the rings still hold as given up; the device has stopped."""
        if not self._allocated:
            return
        tail, done, ring = int(self.netdev["tx_tail"]), self._done_head(), self._received()
        self.given_up += (tail - int(done[0])) % self.size
        self.given_up += int(np.count_nonzero(ring[:, 1] & _FINISHED == _FINISHED))
        done[0] = tail
        ring[:, 1] = 0

    @property
    def tx_pending(self) -> bool:
        """Whether the device still has frames to send."""
        return bool(self._allocated) and int(self._done_head()[0]) != int(self.netdev["tx_tail"])

    def put_tags_back(self, vlans: Sequence[int]) -> None:
        """Let kernels put stripped tags of these VLANs back, and priority tags with them; without any, none at all."""
        self._vlans[:] = 0
        for vid in (0, *vlans):
            self._vlans[vid >> 3] |= 1 << (vid & 7)
        self.netdev["bounce"] = self._bounce if vlans else 0

    # Tails.

    def _tail(self, decl: Decl, slot: int, value: int) -> int:
        """Find where a store shows the device a tail that begins at `value`: the register, or a word of memory."""
        bar, at = self._regs.bar, decl.at(self._queue)
        address = bar.mapped(at)
        if address is None:
            address = bar.trapped(at, value)
        if address is None:
            address = Hva(self._shadow + 4 * slot)
            word = view_bytes(address, 4).view(np.uint32)
            word[0] = value
            self._tails[slot] = _TrappedTail(decl, word, value)
        return address

    @property
    def traps(self) -> bool:
        """Whether tails reach the device only by `show_tails`."""
        return bool(self._tails)

    def show_tails(self) -> None:
        """Write the tails that have moved into the registers that nothing maps."""
        for tail in self._tails.values():
            value = int(tail.word[0])
            if value != tail.shown:
                tail.shown = value
                self._regs.set(tail.decl, value, self._queue)


class RingDriver(NetDriver):
    """What a driver shows of its rings. rings: they are set once, when the driver is made."""

    rings: Rings

    @property
    def row(self) -> npt.NDArray[np.void]:
        """The row that kernels move frames by, as (1,) NETDEV with more behind it."""
        return self.rings.row

    @property
    def netdev(self) -> np.void:
        """The row itself."""
        return self.rings.netdev

    def send(self, frames: Sequence[bytes]) -> int:
        """Put frames into the transmit ring; return how many found room. Raises VirtfnError as `put_frames`."""
        count = put_frames(self.row, frames, tx_room, tx_send)
        self.show_tails()
        return count

    def receive(self) -> list[bytes]:
        """Take all frames that were received."""
        frames = take_frames(self.row, rx_take, rx_return)
        self.show_tails()
        return frames

    @property
    def tx_pending(self) -> bool:
        """Whether the device still has frames to send."""
        return self.rings.tx_pending

    @property
    def traps(self) -> bool:
        """Whether tails reach the device only by `show_tails`."""
        return self.rings.traps

    def show_tails(self) -> None:
        """Write the tails that have moved into the registers that nothing maps."""
        self.rings.show_tails()

    @property
    def given_up(self) -> int:
        """Frames that resets and removals took: not sent yet, or received and not looked at."""
        return self.rings.given_up
