"""A driver that means harm: what a hostile guest puts in the place of its VF's own.

It holds what every guest holds, registers of its VF through its BAR and memory of its own, and programs the rings with
whatever addresses it likes: of host memory, of other guests, of tables, of interrupts.

    own memory     transmit ring | receive ring | head write-back | frames | receive buffers     one page or more each
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from virtfn.drivers.vfmailbox import MailboxError, VfMailbox
from virtfn.drivers.window import Window
from virtfn.hw.i82576 import MacAction, Message, Opcode, Promisc, VfRegs, mac_words
from virtfn.hw.i82576.desc import (
    DESC_BYTES,
    RXD_DD,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
)
from virtfn.hw.i82576.fields import VTIVAR, DescType
from virtfn.hw.i82576.rxtx import RXDCTL, SRRCTL, TDWBAL, TXDCTL
from virtfn.hw.types import Hva, Mac, Rid
from virtfn.machine.memory import PAGE, view_bytes
from virtfn.vmm.assign import AssignedFunction
from virtfn.vmm.guest import Guest

__all__ = ["ETHERTYPE", "RING", "Attacker", "data_word"]

RING = PAGE // DESC_BYTES
"""Descriptors of each ring: a page."""
BUFFERS = 16
BUFFER_BYTES = 2048
ETHERTYPE = b"\x88\xb6"  # for local experiments, and not what the guests' ordinary work uses


def data_word(length: int, total: int, *, last: bool = True) -> int:
    """Make the second word of a data descriptor: `length` bytes of a frame of `total`."""
    word = TXD_DTYP_DATA | TXD_DEXT | TXD_IFCS | length | total << TXD_PAYLEN_SHIFT
    return word | TXD_EOP | TXD_RS if last else word


class Attacker:
    """The hostile driver of a guest's first function. Addresses that it takes are a device's, of any kind."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.tx_ring, tx = self.alloc(PAGE)
        self.rx_ring, rx = self.alloc(PAGE)
        self.word, self._word = self.alloc(PAGE)
        self.frames, self._frames = self.alloc(16 * PAGE)
        self.buffers, self._buffers = self.alloc(BUFFERS * BUFFER_BYTES)
        self.tx: npt.NDArray[np.int64] = view_bytes(tx, PAGE).view(np.int64).reshape(-1, 2)
        self.rx: npt.NDArray[np.int64] = view_bytes(rx, PAGE).view(np.int64).reshape(-1, 2)
        self._next_frame = 0
        self._tail = 0
        self.regs = Window(self.function.bar(0), guest.clock)
        self.mac: Mac = guest.nics[0].driver.mac

    def alloc(self, size: int) -> tuple[int, Hva]:
        """Take zeroed memory of the guest's: address for the device, address here."""
        return self.guest.dma.alloc(size)

    @property
    def function(self) -> AssignedFunction:
        """The function that the guest has now."""
        return self.guest.nics[0].function

    @property
    def rid(self) -> Rid:
        """The requester that its DMA comes from."""
        return self.function.rid

    def seize(self) -> None:
        """Take the function over from the guest's ordinary driver."""
        self.regs = Window(self.function.bar(0), self.guest.clock)
        self.guest.nics[0].driver.stop()

    def renew(self) -> None:
        """Reset the VF and introduce it to the PF anew, so that nothing of the last attempt hinders the next."""
        self.regs.set(VfRegs.TXDCTL, 0)
        self.regs.set(VfRegs.RXDCTL, 0)
        self.regs.set(VfRegs.TDWBAL, 0)
        self.regs.set(VfRegs.TDWBAH, 0)
        self.guest.nics[0].driver.probe()

    # Frames.

    def frame(
        self, target: Mac, payload: bytes = b"", *, source: Mac | None = None, length: int = 0
    ) -> tuple[int, int]:
        """Write a frame into own memory, zero-padded to `length`; return (address, bytes)."""
        head = target.to_bytes(6, "little") + (self.mac if source is None else source).to_bytes(6, "little")
        body = (head + ETHERTYPE + payload).ljust(length, b"\0")
        at = self._next_frame
        self._next_frame = (at + BUFFER_BYTES) % (16 * PAGE)
        view_bytes(self._frames + at, len(body))[:] = np.frombuffer(body, np.uint8)
        return self.frames + at, len(body)

    def view_frame(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """Look at a frame written before, as (size,) uint8."""
        return view_bytes(self._frames + address - self.frames, size)

    # Transmit.

    def arm_transmit(self, *, ring: int | None = None, write_back: int | None = None, head: int = 0) -> None:
        """Point the transmit queue at a ring, and its head write-back somewhere, or nowhere."""
        regs, ring = self.regs, self.tx_ring if ring is None else ring
        regs.set(VfRegs.TXDCTL, 0)
        regs.set(VfRegs.TDBAL, ring & 0xFFFFFFFF)
        regs.set(VfRegs.TDBAH, ring >> 32)
        regs.set(VfRegs.TDLEN, RING * DESC_BYTES)
        regs.set(VfRegs.TDH, head)
        regs.set(VfRegs.TDT, head)
        self.point_write_back(write_back)
        regs.set(VfRegs.TXDCTL, TXDCTL.of(ENABLE=1).value)
        self._tail = head

    def point_write_back(self, address: int | None) -> None:
        """Have the device write its transmit head to `address` when a frame is done, or nowhere."""
        self.regs.set(VfRegs.TDWBAH, (address or 0) >> 32)
        enabled = 0 if address is None else address & 0xFFFFFFFF | TDWBAL.HEAD_WB_EN.mask
        self.regs.set(VfRegs.TDWBAL, enabled)

    def put(self, *pieces: tuple[int, int]) -> None:
        """Describe one frame by its pieces, (address, bytes) each, without showing it to the device yet."""
        total = sum(size for _, size in pieces)
        for i, (address, size) in enumerate(pieces):
            self.tx[self._tail, 0] = np.uint64(address & (1 << 64) - 1).view(np.int64)
            self.tx[self._tail, 1] = data_word(size, total, last=i == len(pieces) - 1)
            self._tail = (self._tail + 1) % RING

    def kick(self, tail: int | None = None) -> None:
        """Show the device everything put, or `tail`."""
        self.regs.set(VfRegs.TDT, self._tail if tail is None else tail)

    def send(self, *pieces: tuple[int, int]) -> None:
        """Transmit one frame made of pieces of memory."""
        self.put(*pieces)
        self.kick()

    def write_word(self, address: int, value: int) -> None:
        """Put a small number at any address, as the head that the device writes back; 1 to 255 can be had."""
        self.point_write_back(address)
        self.regs.set(VfRegs.TDH, value - 1)
        self._tail = value - 1
        self.send(self.frame(self.mac, length=60))

    # Receive.

    def arm_receive(
        self, buffers: Sequence[int] | None = None, *, ring: int | None = None, buffer_kib: int = 2
    ) -> None:
        """Point the receive queue at a ring, and its buffers anywhere; without any, at own ones."""
        regs, ring = self.regs, self.rx_ring if ring is None else ring
        if buffers is None:
            view_bytes(self._buffers, BUFFERS * BUFFER_BYTES)[:] = 0
            buffers = [self.buffers + i * BUFFER_BYTES for i in range(BUFFERS)]
        self.rx[:] = 0
        self.rx[: len(buffers), 0] = np.array(buffers, np.uint64).view(np.int64)
        regs.set(VfRegs.RXDCTL, 0)
        layout = SRRCTL.of(BSIZEPACKET=buffer_kib, DESCTYPE=DescType.ADV_ONE_BUFFER, DROP_EN=1)
        regs.set(VfRegs.SRRCTL, layout.value)
        regs.set(VfRegs.RDBAL, ring & 0xFFFFFFFF)
        regs.set(VfRegs.RDBAH, ring >> 32)
        regs.set(VfRegs.RDLEN, RING * DESC_BYTES)
        regs.set(VfRegs.RDH, 0)
        regs.set(VfRegs.RDT, 0)
        regs.set(VfRegs.RXDCTL, RXDCTL.of(ENABLE=1).value)
        regs.set(VfRegs.RDT, len(buffers))

    def received(self) -> list[bytes]:
        """Read the frames in own buffers, as far as the device has filled them."""
        done = []
        for i in range(BUFFERS):
            word = int(self.rx[i, 1])
            if word & RXD_DD:
                done.append(view_bytes(self._buffers + i * BUFFER_BYTES, word >> 32 & 0x7FF).tobytes())
        return done

    # Interrupts and mailbox.

    def open_vectors(self) -> None:
        """Route both queues to vector 0, and unmask all vectors, without any throttle."""
        self.regs.set(VfRegs.VTIVAR, VTIVAR.of(RX0=0, RX0_VALID=1, TX0=0, TX0_VALID=1).value)
        for vector in range(3):
            self.regs.set(VfRegs.VTEITR, 0, vector)
        self.regs.set(VfRegs.VTEIMS, 7)

    def ask(self, opcode: Opcode, info: int, *body: int) -> bool:
        """Ask the PF for something; False for a refusal, or no answer."""
        word = Message.of(OPCODE=opcode, INFO=info).value
        try:
            (answer,) = VfMailbox(self.regs, self.guest.clock).ask([word, *body])
        except MailboxError:
            return False
        return bool(Message(answer).ACK)

    def ask_for_mac(self, action: MacAction, mac: Mac) -> bool:
        """Ask the PF for an address; False for a refusal."""
        return self.ask(Opcode.SET_MAC, action, *mac_words(mac))

    def ask_for_everything(self) -> bool:
        """Ask the PF for everyone's frames; False for a refusal."""
        return self.ask(Opcode.SET_PROMISC, Promisc.UNICAST | Promisc.MULTICAST)
