"""The VF driver's queue pair: rings and buffers in guest memory, the device's registers that name them, and tails.

A tail is a store into a mapped page. Where none is mapped, it is a store into a word of memory, and `show_tails` after
a burst writes what moved into the registers: one exit a burst. Kernels know only the address, in the row `netdev`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from virtfn.drivers.window import Window
from virtfn.hw.bits import Decl
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.i82576 import VfRegs
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
from virtfn.kernels.i82576.netdev import new_rings
from virtfn.kernels.netdev import BATCH
from virtfn.kernels.ranges import address_of
from virtfn.machine.clock import MS_PS
from virtfn.machine.memory import PAGE, view_bytes
from virtfn.machine.ports import DmaMemory, VirtfnError

__all__ = ["VfRings"]

_FINISHED = RXD_DD | RXD_EOP


@dataclass(slots=True)
class _TrappedTail:
    """A tail register that nothing maps, the word that stands for it, and what the device was shown last."""

    decl: Decl
    word: npt.NDArray[np.uint32]
    shown: int


class VfRings:
    """Rings of `size` descriptors each. mtu: bytes of payload. `row`: (1,) RINGS, for kernels.

    `given_up` counts frames that were in the rings when these were stopped: not sent yet, or not looked at.
    """

    def __init__(self, regs: Window, dma: DmaMemory, size: int, mtu: int) -> None:
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
        self._regs = regs
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
        regs = self._regs
        regs.update(VfRegs.TXDCTL, ENABLE=0)
        regs.set(VfRegs.TDLEN, self.size * DESC_BYTES)
        regs.set(VfRegs.TDBAL, self._tx_ring & 0xFFFFFFFF)
        regs.set(VfRegs.TDBAH, self._tx_ring >> 32)
        regs.set(VfRegs.TDH, 0)
        regs.set(VfRegs.TDT, 0)
        regs.set(VfRegs.TDWBAH, self._done_iova >> 32)
        regs.set(VfRegs.TDWBAL, self._done_iova & 0xFFFFFFFF | TDWBAL.HEAD_WB_EN.mask)
        self._done_head()[0] = self.netdev["tx_tail"] = self.netdev["tx_reaped"] = 0
        self.netdev["tx_tail_register"] = self._tail(VfRegs.TDT, 0, 0)
        regs.set(VfRegs.TXDCTL, TXDCTL.of(ENABLE=1).value)
        regs.wait(VfRegs.TXDCTL, TXDCTL.ENABLE.mask, TXDCTL.ENABLE.mask, 10 * MS_PS)

    def start_receive(self) -> None:
        """Give the device a receive ring full of buffers.

        Raises DeviceTimeoutError if the queue does not start.
        """
        regs, d = self._regs, self.netdev
        srrctl = SRRCTL.of(BSIZEPACKET=self._packet_kib, DESCTYPE=DescType.ADV_ONE_BUFFER, DROP_EN=1)
        regs.set(VfRegs.SRRCTL, srrctl.value)
        regs.update(VfRegs.RXDCTL, ENABLE=0)
        regs.set(VfRegs.RDBAL, self._rx_ring & 0xFFFFFFFF)
        regs.set(VfRegs.RDBAH, self._rx_ring >> 32)
        regs.set(VfRegs.RDLEN, self.size * DESC_BYTES)
        regs.set(VfRegs.RDH, 0)
        regs.set(VfRegs.RDT, 0)
        ring = self._received()
        ring[:, 0] = int(d["rx_iova"]) + np.arange(self.size) * self.buffer_bytes
        ring[:, 1] = 0
        d["rx_next"] = d["empty_polls"] = d["polling"] = 0
        d["rx_tail_register"] = self._tail(VfRegs.RDT, 1, self.size - 1)
        regs.set(VfRegs.RXDCTL, RXDCTL.of(PTHRESH=16, HTHRESH=8, WTHRESH=1, ENABLE=1).value)
        regs.wait(VfRegs.RXDCTL, RXDCTL.ENABLE.mask, RXDCTL.ENABLE.mask, 10 * MS_PS)
        regs.set(VfRegs.RDT, self.size - 1)

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
        self._regs.update(VfRegs.RXDCTL, ENABLE=0)
        self._regs.update(VfRegs.TXDCTL, ENABLE=0)
        # Head write-back survives a reset of the VF: it must not outlive the memory.
        self._regs.set(VfRegs.TDWBAL, 0)
        self._regs.set(VfRegs.TDWBAH, 0)

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
        address = self._regs.bar.mapped(decl.at(0))
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
                self._regs.set(tail.decl, value)
