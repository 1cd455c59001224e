"""The VF driver: what runs in a guest that was given a VF of the 82576.

States: PROBED -> RUNNING <-> STOPPED; RESET_NEEDED when the PF says so, and `recover` brings it back to where it was.

    probe      mask interrupts, reset, mailbox RESET, learn the address
    start      filters and frame size by mailbox, rings, vectors: 0 transmit, 1 receive, 2 mailbox
    interrupt  receive: poll until idle, the device masked the vector as it fired; mailbox: look at link and PF
    stop       disable queues, reset

Frames are moved by the kernels of `kernels/netdev.py` over the row `netdev`. Spec: 82576 datasheet, chapter "Virtual
Function driver programming"; the mailbox protocol of `hw/i82576/mailbox.py`.
"""

from __future__ import annotations

import enum
import secrets

import numpy as np

from virtfn.drivers.window import DeviceTimeoutError, Window
from virtfn.hw.i82576 import (
    MAILBOX_WORDS,
    MULTICAST_OVERFLOW,
    MacAction,
    Message,
    Opcode,
    VfRegs,
    hash_words,
    mac_words,
    multicast_hash,
    words_mac,
)
from virtfn.hw.i82576.desc import DESC_BYTES, FCS_BYTES
from virtfn.hw.i82576.fields import EITR, STATUS, V2PMAILBOX, VTCTRL, VTIVAR, VTIVAR_MISC, DescType
from virtfn.hw.i82576.rxtx import RXDCTL, SRRCTL, TDWBAL, TXDCTL
from virtfn.hw.types import Hva, Iova, Mac, format_mac
from virtfn.kernels.netdev import NETDEV
from virtfn.machine.clock import MS_PS, US_PS
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import Bar, Clock, DmaMemory, VirtfnError

__all__ = ["Igbvf", "MailboxError", "State"]

TX_VECTOR, RX_VECTOR, MAILBOX_VECTOR = range(3)
_READ_TO_CLEAR = V2PMAILBOX.PFSTS.mask | V2PMAILBOX.PFACK.mask | V2PMAILBOX.RSTD.mask
_MAILBOX_PS = 1000 * MS_PS
_DEFAULT_EITR_US = 122


class MailboxError(VirtfnError):
    """The PF did not answer, or said no. Carries the message and the answer's first word, if any."""

    def __init__(self, message: str, sent: int, answer: int | None = None, errno_name: str = "EIO") -> None:
        super().__init__(message, errno_name=errno_name)
        self.sent = sent
        self.answer = answer


class State(enum.Enum):
    """Life of the driver's device."""

    PROBED = "probed"
    RUNNING = "running"
    STOPPED = "stopped"
    RESET_NEEDED = "reset needed"
    GONE = "gone"


class Igbvf:
    """A network device made of a VF.

    bar: the VF's BAR0. dma: memory of the guest. ring: descriptors of each ring, a multiple of 8 from 80 to 4096. mtu:
    bytes of payload. Raises VirtfnError for a ring or MTU out of range.
    """

    def __init__(self, bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int = 512, mtu: int = 1500) -> None:
        if ring % 8 or not 80 <= ring <= 4096:
            raise VirtfnError(f"a ring has 80 to 4096 descriptors, a multiple of 8, not {ring}", errno_name="EINVAL")
        if not 68 <= mtu <= 9706:
            raise VirtfnError(f"the MTU is 68 to 9706 bytes, not {mtu}", errno_name="EINVAL")
        self.state = State.STOPPED
        self.mac = Mac(0)
        self.link = False
        self.ring = ring
        self.mtu = mtu
        self.multicast: list[Mac] = []
        self.vlans: list[int] = []
        self.promiscuous = False
        self.eitr_us = _DEFAULT_EITR_US
        self.messages = 0
        self.interrupts = 0
        self.resets = 0
        self.row = np.zeros(1, NETDEV)
        self.netdev: np.void = self.row[0]
        self._regs = Window(bar, clock)
        self._clock = clock
        self._dma = dma
        self._held = 0
        self._allocated: list[Iova] = []

    # Mailbox.

    def _status(self) -> int:
        """Read V2PMAILBOX; what reading clears is held until it is used."""
        value = self._regs.get(VfRegs.V2PMAILBOX) | self._held
        self._held |= value & _READ_TO_CLEAR
        return value

    def _poll(self, mask: int) -> bool:
        deadline = self._clock.now() + _MAILBOX_PS
        while not self._status() & mask:
            if self._clock.now() >= deadline:
                return False
            self._clock.sleep(500 * US_PS)
        self._held &= ~mask
        return True

    def _take_buffer(self) -> None:
        for _ in range(20):
            self._regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.VFU.mask)
            if self._status() & V2PMAILBOX.VFU.mask:
                return
            self._clock.sleep(500 * US_PS)
        raise MailboxError("the PF keeps the mailbox", 0, errno_name="EBUSY")

    def ask(self, words: list[int], reply_words: int = 1) -> list[int]:
        """Send a message to the PF and return `reply_words` of its answer.

        Raises MailboxError if the PF does not answer within a second.
        """
        self._take_buffer()
        self._held &= ~(V2PMAILBOX.PFSTS.mask | V2PMAILBOX.PFACK.mask)
        for i, word in enumerate(words):
            self._regs.set(VfRegs.VMBMEM, word, i)
        self._regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.REQ.mask)
        self.messages += 1
        if not self._poll(V2PMAILBOX.PFACK.mask) or not self._poll(V2PMAILBOX.PFSTS.mask):
            raise MailboxError("the PF does not answer", words[0], errno_name="ETIMEDOUT")
        self._take_buffer()
        reply = [self._regs.get(VfRegs.VMBMEM, i) for i in range(reply_words)]
        self._regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask)
        self.messages += 1
        return reply

    def _command(self, opcode: Opcode, info: int, *body: int) -> None:
        """Send a message whose answer is yes or no.

        Raises MailboxError for no.
        """
        word = Message.of(OPCODE=opcode, INFO=info).value
        answer = Message(self.ask([word, *body])[0])
        if not answer.CTS:
            self.state = State.RESET_NEEDED
        if not answer.ACK or opcode != answer.OPCODE:
            raise MailboxError(f"the PF refuses {opcode.name}", word, answer.value, errno_name="EPERM")

    # Life.

    def probe(self) -> None:
        """Reset the VF and introduce it to the PF.

        Raises DeviceTimeoutError if the PF stays in reset, MailboxError if it does not answer as it should.
        """
        self._regs.set(VfRegs.VTEIMC, 7)
        self._regs.set(VfRegs.VTEIAC, 0)
        self._reset()
        self.state = State.PROBED

    def _reset(self) -> None:
        self._regs.set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
        self._held = 0
        busy = V2PMAILBOX.RSTI.mask | V2PMAILBOX.RSTD.mask
        deadline = self._clock.now() + 20 * MS_PS
        while (value := self._regs.get(VfRegs.V2PMAILBOX)) & busy:
            if self._clock.now() >= deadline:
                raise DeviceTimeoutError("V2PMAILBOX", value)
            self._clock.sleep(5 * US_PS)
        reply = self.ask([Message.of(OPCODE=Opcode.RESET).value], 3)
        given = words_mac(reply[1], reply[2])
        if reply[0] == Message.of(OPCODE=Opcode.RESET, ACK=1).value and given:
            self.mac = given
        elif reply[0] != Message.of(OPCODE=Opcode.RESET, NACK=1).value:
            raise MailboxError("the PF refuses the reset", int(Opcode.RESET), reply[0])
        elif not self.mac:
            # Nobody gave this VF an address: choose a locally administered one.
            self.mac = Mac(secrets.randbits(48) & ~0xFF | 0x02)
        self.resets += 1
        self._command(Opcode.SET_MAC, MacAction.SET, *mac_words(self.mac))

    def start(self) -> None:
        """Bring the interface up: filters, rings, interrupts.

        Raises VirtfnError if guest memory is exhausted, MailboxError if the PF refuses.
        """
        self.set_multicast(self.multicast)
        for vid in self.vlans:
            self._command(Opcode.SET_VLAN, 1, vid)
        if not self._allocated:
            self._allocate()
        self._start_transmit()
        self._start_receive()
        self._start_interrupts()
        self.check_link()
        self.netdev["up"] = 1
        self.state = State.RUNNING

    @property
    def buffer_bytes(self) -> int:
        """Bytes of one buffer: whole KiB, enough for a frame with a VLAN tag."""
        return -(-max(self.mtu + 18, 2048) // 1024) * 1024

    def _alloc(self, size: int) -> tuple[Iova, Hva]:
        iova, hva = self._dma.alloc(size)
        self._allocated.append(iova)
        return iova, hva

    def _allocate(self) -> None:
        d = self.netdev
        d["tx_size"] = d["rx_size"] = self.ring
        d["buffer_bytes"] = self.buffer_bytes
        self._tx_ring, d["tx_ring"] = self._alloc(self.ring * DESC_BYTES)
        self._rx_ring, d["rx_ring"] = self._alloc(self.ring * DESC_BYTES)
        d["tx_iova"], d["tx_buffers"] = self._alloc(self.ring * self.buffer_bytes)
        d["rx_iova"], d["rx_buffers"] = self._alloc(self.ring * self.buffer_bytes)
        self._done_iova, d["tx_done_head"] = self._alloc(4096)
        _, d["bounce"] = self._alloc(self.buffer_bytes + 4096)

    def _stop_queue(self, decl_name: str) -> None:
        decl = VfRegs.TXDCTL if decl_name == "tx" else VfRegs.RXDCTL
        self._regs.update(decl, ENABLE=0)

    def _start_transmit(self) -> None:
        self._stop_queue("tx")
        regs = self._regs
        regs.set(VfRegs.TDLEN, self.ring * DESC_BYTES)
        regs.set(VfRegs.TDBAL, self._tx_ring & 0xFFFFFFFF)
        regs.set(VfRegs.TDBAH, self._tx_ring >> 32)
        regs.set(VfRegs.TDH, 0)
        regs.set(VfRegs.TDT, 0)
        regs.set(VfRegs.TDWBAH, self._done_iova >> 32)
        regs.set(VfRegs.TDWBAL, self._done_iova & 0xFFFFFFFF | TDWBAL.HEAD_WB_EN.mask)
        view_bytes(int(self.netdev["tx_done_head"]), 4)[:] = 0
        for name in ("tx_tail", "tx_reaped"):
            self.netdev[name] = 0
        self.netdev["tx_tail_register"] = self._tail(VfRegs.TDT.at(0))
        regs.set(VfRegs.TXDCTL, TXDCTL.of(ENABLE=1).value)
        regs.wait(VfRegs.TXDCTL, TXDCTL.ENABLE.mask, TXDCTL.ENABLE.mask, 10 * MS_PS)

    def _start_receive(self) -> None:
        regs, d = self._regs, self.netdev
        srrctl = SRRCTL.of(BSIZEPACKET=self.buffer_bytes // 1024, DESCTYPE=DescType.ADV_ONE_BUFFER, DROP_EN=1)
        regs.set(VfRegs.SRRCTL, srrctl.value)
        self._stop_queue("rx")
        regs.set(VfRegs.RDBAL, self._rx_ring & 0xFFFFFFFF)
        regs.set(VfRegs.RDBAH, self._rx_ring >> 32)
        regs.set(VfRegs.RDLEN, self.ring * DESC_BYTES)
        regs.set(VfRegs.RDH, 0)
        regs.set(VfRegs.RDT, 0)
        self._command(Opcode.SET_LPE, 0, self.mtu + 14 + 4 + FCS_BYTES)
        ring = view_bytes(int(d["rx_ring"]), self.ring * DESC_BYTES).view(np.int64).reshape(-1, 2)
        ring[:, 0] = int(d["rx_iova"]) + np.arange(self.ring) * self.buffer_bytes
        ring[:, 1] = 0
        d["rx_next"] = d["empty_polls"] = d["polling"] = 0
        d["rx_tail_register"] = self._tail(VfRegs.RDT.at(0))
        regs.set(VfRegs.RXDCTL, RXDCTL.of(PTHRESH=16, HTHRESH=8, WTHRESH=1, ENABLE=1).value)
        regs.wait(VfRegs.RXDCTL, RXDCTL.ENABLE.mask, RXDCTL.ENABLE.mask, 10 * MS_PS)
        regs.set(VfRegs.RDT, self.ring - 1)

    def _tail(self, offset: int) -> int:
        address = self._regs.bar.direct(offset)
        if address is None:
            raise VirtfnError("the ring registers are not mapped into this guest", errno_name="ENODEV")
        return address

    def _start_interrupts(self) -> None:
        regs = self._regs
        ivar = VTIVAR.of(RX0=RX_VECTOR, RX0_VALID=1, TX0=TX_VECTOR, TX0_VALID=1)
        regs.set(VfRegs.VTIVAR, ivar.value)
        regs.set(VfRegs.VTIVAR_MISC, VTIVAR_MISC.of(MAILBOX=MAILBOX_VECTOR, MAILBOX_VALID=1).value)
        for vector in (TX_VECTOR, RX_VECTOR):
            regs.set(VfRegs.VTEITR, EITR.of(INTERVAL=self.eitr_us).value, vector)
        regs.get(VfRegs.VTEICR)
        regs.set(VfRegs.VTEIAC, 7)
        regs.set(VfRegs.VTEIAM, 7)
        # Finished transmissions are reaped when the next frame is sent: their vector stays masked.
        regs.set(VfRegs.VTEIMS, 1 << RX_VECTOR | 1 << MAILBOX_VECTOR)

    @property
    def tx_pending(self) -> bool:
        """Whether the device still has frames to send."""
        done = int.from_bytes(view_bytes(int(self.netdev["tx_done_head"]), 4).tobytes(), "little")
        return done != int(self.netdev["tx_tail"])

    def stop(self) -> None:
        """Bring the interface down; the device forgets rings and filters."""
        self.netdev["up"] = self.netdev["polling"] = 0
        self._stop_queue("rx")
        self._stop_queue("tx")
        self._regs.set(VfRegs.VTEIMC, 7)
        self._regs.set(VfRegs.VTEIAC, 0)
        # Head write-back survives a reset of the VF: it must not outlive the memory.
        self._regs.set(VfRegs.TDWBAL, 0)
        self._regs.set(VfRegs.TDWBAH, 0)
        self._reset()
        self._free()
        self.link = False
        self.state = State.STOPPED

    def _free(self) -> None:
        for iova in self._allocated:
            self._dma.free(iova)
        self._allocated.clear()

    def remove(self) -> None:
        """Forget a device that is no longer there; no register is touched."""
        self.netdev["up"] = self.netdev["polling"] = 0
        self._free()
        self.link = False
        self.state = State.GONE

    def recover(self) -> None:
        """Reset and start again, as after a reset of the PF or a lost mailbox.

        Raises DeviceTimeoutError or MailboxError if the PF is not back.
        """
        self.netdev["up"] = self.netdev["polling"] = 0
        self._regs.set(VfRegs.VTEIMC, 7)
        self._reset()
        self.start()

    # Settings.

    def set_mac(self, mac: Mac) -> None:
        """Ask for another address.

        Raises MailboxError if the PF refuses: the host chose the address and does not trust this guest.
        """
        self._command(Opcode.SET_MAC, MacAction.SET, *mac_words(mac))
        self.mac = mac

    def add_mac(self, mac: Mac) -> None:
        """Ask for frames to a further address.

        Raises MailboxError if the PF refuses or has no room.
        """
        self._command(Opcode.SET_MAC, MacAction.ADD_FILTER, *mac_words(mac))

    def clear_macs(self) -> None:
        """Give the further addresses back."""
        self._command(Opcode.SET_MAC, MacAction.CLEAR_FILTERS, *mac_words(Mac(0)))

    def set_multicast(self, groups: list[Mac]) -> None:
        """Ask for frames to these groups; with more than 30, for all multicast frames."""
        self.multicast = list(groups)
        hashes = [multicast_hash(mac) for mac in groups]
        overflow = MULTICAST_OVERFLOW if len(hashes) > 30 else 0
        body = hash_words(hashes)
        self._command(Opcode.SET_MULTICAST, min(len(hashes), 30) | overflow, *body[: MAILBOX_WORDS - 1])

    def set_vlan(self, vid: int, member: bool = True) -> None:
        """Join or leave a VLAN.

        Raises MailboxError if the PF refuses: the host put this guest into a VLAN of its own.
        """
        self._command(Opcode.SET_VLAN, int(member), vid)
        if member and vid not in self.vlans:
            self.vlans.append(vid)
        elif not member and vid in self.vlans:
            self.vlans.remove(vid)

    def set_promiscuous(self, unicast: bool, multicast: bool) -> None:
        """Ask for frames to any address.

        Raises MailboxError if the PF refuses: it does not trust this guest.
        """
        self._command(Opcode.SET_PROMISC, int(unicast) | int(multicast) << 1)
        self.promiscuous = unicast

    # Interrupts.

    def interrupt(self, vector: int) -> None:
        """Handle an interrupt: the device has masked its vector (EIAM) and cleared its cause (EIAC)."""
        self.interrupts += 1
        if self.state is State.GONE:
            return
        if vector == RX_VECTOR:
            self.netdev["polling"] = 1
            self.netdev["empty_polls"] = 0
        elif vector == MAILBOX_VECTOR:
            self.check_link()
            if self.state is not State.RESET_NEEDED:
                self._regs.set(VfRegs.VTEIMS, 1 << MAILBOX_VECTOR)

    def idle(self) -> None:
        """Polling found nothing for a while: wait for the next interrupt."""
        self.netdev["polling"] = 0
        self.netdev["empty_polls"] = 0
        self._regs.set(VfRegs.VTEIMS, 1 << RX_VECTOR)

    def check_link(self) -> None:
        """Look at link and PF: a PF in reset, or one that no longer knows this VF, asks for `recover`."""
        value = self._status()
        if value & (V2PMAILBOX.RSTI.mask | V2PMAILBOX.RSTD.mask):
            self.state = State.RESET_NEEDED
            self.link = False
            return
        if value & V2PMAILBOX.PFSTS.mask:
            self._held &= ~V2PMAILBOX.PFSTS.mask
            try:
                self._take_buffer()
            except MailboxError:
                return
            word = Message(self._regs.get(VfRegs.VMBMEM, 0))
            self._regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask)
            self.messages += 1
            if not word.CTS:
                self.state = State.RESET_NEEDED
                self.link = False
                return
        self.link = bool(STATUS(self._regs.get(VfRegs.VTSTATUS)).LU)

    def statistics(self) -> dict[str, int]:
        """Read the VF's counters: 32 bits, running on."""
        names = ("VFGPRC", "VFGPTC", "VFGORC", "VFGOTC", "VFMPRC", "VFGPRLBC", "VFGPTLBC", "VFGORLBC", "VFGOTLBC")
        return {name: self._regs.get(getattr(VfRegs, name)) for name in names}

    def __repr__(self) -> str:
        return f"Igbvf({format_mac(self.mac)}, {self.state.value})"
