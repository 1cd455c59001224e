"""The VF driver: what runs in a guest that was given a VF of the 82576.

States: PROBED -> RUNNING <-> STOPPED; RESET_NEEDED when the PF says so, and `recover` brings it back to where it was.
GONE after the function was pulled.

    probe      mask interrupts, reset, mailbox RESET, learn the address
    start      filters and frame size by mailbox, rings, vectors: 0 transmit, 1 receive, 2 mailbox
    interrupt  receive: poll until idle, the device masked the vector as it fired; mailbox: look at link and PF
    stop       disable queues, reset

Its mailbox is `vfmailbox.py`, its queue pair `rings.py`. Frames are moved by the kernels of
`kernels/i82576/netdev.py` over the row `netdev`. Spec: 82576 datasheet, chapter "Virtual Function driver programming";
the mailbox protocol of `hw/i82576/mailbox.py`.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable
from functools import partial

from virtfn.drivers.moderation import AdaptiveInterval
from virtfn.drivers.rings import RingDriver, Rings
from virtfn.drivers.vfmailbox import MailboxError, VfMailbox
from virtfn.drivers.window import Window
from virtfn.hw.eth import FCS_BYTES
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
from virtfn.hw.i82576.desc import MAX_MTU
from virtfn.hw.i82576.fields import EITR, STATUS, V2PMAILBOX, VTCTRL, VTIVAR, VTIVAR_MISC
from virtfn.hw.types import Mac, format_mac
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import Bar, Clock, DmaMemory, VirtfnError

__all__ = ["Igbvf", "MailboxError", "State"]

TX_VECTOR, RX_VECTOR, MAILBOX_VECTOR = range(3)
_DEFAULT_EITR_US = 122


class State(enum.Enum):
    """Life of the driver's device."""

    PROBED = "probed"
    RUNNING = "running"
    STOPPED = "stopped"
    RESET_NEEDED = "reset needed"
    GONE = "gone"


class Igbvf(RingDriver):
    """A network device made of a VF.

    bar: the VF's BAR0. dma: memory of the guest. ring: descriptors of each ring, a multiple of 8 from 80 to 4096. mtu:
    bytes of payload. Raises VirtfnError for a ring or MTU out of range.
    """

    def __init__(self, bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int = 512, mtu: int = 1500) -> None:
        if ring % 8 or not 80 <= ring <= 4096:
            raise VirtfnError(f"a ring has 80 to 4096 descriptors, a multiple of 8, not {ring}", errno_name="EINVAL")
        if not 68 <= mtu <= MAX_MTU:
            raise VirtfnError(f"the MTU is 68 to {MAX_MTU} bytes, not {mtu}", errno_name="EINVAL")
        self.state = State.STOPPED
        self.mac = Mac(0)
        self.link = False
        self.mtu = mtu
        self.multicast: list[Mac] = []
        self.further_macs: list[Mac] = []
        self.vlans: list[int] = []
        self.promiscuous = (False, False)
        self.eitr_us = _DEFAULT_EITR_US
        self._adaptive: AdaptiveInterval | None = None
        self._had = 0, 0
        self.interrupts = 0
        self.resets = 0
        self._regs = Window(bar, clock)
        self._clock = clock
        self._mailbox = VfMailbox(self._regs, clock)
        self._up = False
        self._cleared = False  # to send, by the PF's last word: it has a link for this VF
        self.rings = Rings(self._regs, dma, ring, mtu)

    @property
    def messages(self) -> int:
        """Messages sent and taken."""
        return self._mailbox.messages

    @property
    def broken(self) -> bool:
        """Whether the device has to be reset: the PF was, or does not answer."""
        return self.state is State.RESET_NEEDED

    # Mailbox.

    def _ask(self, words: list[int], reply_words: int = 1) -> list[int]:
        """Ask the PF; an interface that is up needs a reset if it does not answer."""
        try:
            return self._mailbox.ask(words, reply_words)
        except MailboxError:
            if self._up:
                self.state = State.RESET_NEEDED
            raise

    def _command(self, opcode: Opcode, info: int, *body: int) -> None:
        """Send a message whose answer is yes or no.

        Raises MailboxError for no.
        """
        word = Message.of(OPCODE=opcode, INFO=info).value
        answer = Message(self._ask([word, *body])[0])
        if not answer.OPCODE:
            self.state = State.RESET_NEEDED
        self._cleared = bool(answer.CTS)
        if not answer.ACK or opcode != answer.OPCODE:
            raise MailboxError(f"the PF refuses {opcode.name}", word, answer.value, errno_name="EPERM")

    # Start and stop.

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
        self._mailbox.forget()
        self._regs.wait(VfRegs.V2PMAILBOX, V2PMAILBOX.RSTI.mask, 0, 20 * MS_PS)
        reply = self._ask([Message.of(OPCODE=Opcode.RESET).value], 3)
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
        self.rings.allocate()
        self._restore_filters()
        self.rings.start_transmit()
        self._command(Opcode.SET_LPE, 0, self.mtu + 14 + 4 + FCS_BYTES)
        self.rings.start_receive()
        self.rings.put_tags_back(self.vlans)
        self._start_interrupts()
        self.check_link()
        if self.state is State.RESET_NEEDED:
            raise MailboxError("the PF is in reset", 0, errno_name="EAGAIN")
        self._up = True
        self.netdev["up"] = 1
        self.state = State.RUNNING

    def _restore_filters(self) -> None:
        """Ask again for all that the PF forgot with the reset.

        What it refuses now the host has decided meanwhile; the guest goes on without.
        """
        macs, self.further_macs = self.further_macs, []
        vlans, self.vlans = self.vlans, []
        wanted: list[Callable[[], None]] = [
            partial(self.set_multicast, self.multicast),
            *(partial(self.add_mac, mac) for mac in macs),
            *(partial(self.set_vlan, vid) for vid in vlans),
        ]
        if any(self.promiscuous):
            wanted.append(partial(self.set_promiscuous, *self.promiscuous))
            self.promiscuous = False, False
        for ask in wanted:
            try:
                ask()
            except MailboxError:
                if self.state is State.RESET_NEEDED:
                    raise

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

    def stop(self) -> None:
        """Bring the interface down; the device forgets rings and filters.

        Raises DeviceTimeoutError or MailboxError if the PF does not answer.
        """
        self._down()
        self._up = False
        self.rings.stop()
        self._regs.set(VfRegs.VTEIMC, 7)
        self._regs.set(VfRegs.VTEIAC, 0)
        self.rings.give_up()
        self._reset()
        self.rings.free()
        self.state = State.STOPPED

    def _down(self) -> None:
        """Stop the guest's side of the queues."""
        self.netdev["up"] = self.netdev["polling"] = self.netdev["empty_polls"] = 0
        self.link = False

    def remove(self) -> None:
        """Forget a device that is no longer there; no register is touched."""
        self._down()
        self._up = False
        self.rings.give_up()
        self.rings.free()
        self.state = State.GONE

    def recover(self) -> None:
        """Reset, and start again if the interface was up, as after a reset of the PF or a lost mailbox.

        Raises DeviceTimeoutError or MailboxError if the PF is not back; try again later.
        """
        self.state = State.RESET_NEEDED
        self._down()
        self._regs.set(VfRegs.VTEIMC, 7)
        self._regs.set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
        self.rings.give_up()
        self._reset()
        self.state = State.PROBED
        if self._up:
            self.start()

    # Settings.

    def set_mac(self, mac: Mac) -> None:
        """Ask for another address.

        Raises MailboxError if the PF refuses: the host does not trust this guest, or another has the address.
        """
        self._command(Opcode.SET_MAC, MacAction.SET, *mac_words(mac))
        self.mac = mac

    def add_mac(self, mac: Mac) -> None:
        """Ask for frames to a further address.

        Raises MailboxError if the PF refuses or has no room.
        """
        self._command(Opcode.SET_MAC, MacAction.ADD_FILTER, *mac_words(mac))
        self.further_macs.append(mac)

    def clear_macs(self) -> None:
        """Give the further addresses back."""
        self._command(Opcode.SET_MAC, MacAction.CLEAR_FILTERS, *mac_words(Mac(0)))
        self.further_macs.clear()

    def set_multicast(self, groups: list[Mac]) -> None:
        """Ask for frames to these groups; with more than 30, for all multicast frames.

        Raises MailboxError if the PF refuses that many: it does not trust this guest, which hears the first 30.
        """
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
        # Tags of a VLAN that the host put this guest into are none of its business.
        self.rings.put_tags_back(self.vlans)

    def set_promiscuous(self, unicast: bool, multicast: bool) -> None:
        """Ask for frames to any address.

        Raises MailboxError if the PF refuses: it does not trust this guest.
        """
        self._command(Opcode.SET_PROMISC, int(unicast) | int(multicast) << 1)
        self.promiscuous = unicast, multicast

    # Interrupts.

    def interrupt(self, vector: int) -> None:
        """Handle an interrupt: the device has masked its vector (EIAM) and cleared its cause (EIAC)."""
        self.interrupts += 1
        if self.state is State.GONE:
            return
        if vector == RX_VECTOR and self.netdev["up"]:
            self.netdev["polling"] = 1
            self.netdev["empty_polls"] = 0
        elif vector == MAILBOX_VECTOR:
            self.check_link()
            if self.state is not State.RESET_NEEDED:
                self._regs.set(VfRegs.VTEIMS, 1 << MAILBOX_VECTOR)

    def set_interval(self, us: int | None) -> None:
        """Let receive interrupts be `us` apart, at least; None: by traffic, as the driver sees fit."""
        self._adaptive = AdaptiveInterval() if us is None else None
        self.eitr_us = AdaptiveInterval().us if us is None else us
        self._had = int(self.netdev["rx_frames"]), int(self.netdev["rx_bytes"])
        if self._up:
            self._regs.set(VfRegs.VTEITR, EITR.of(INTERVAL=self.eitr_us).value, RX_VECTOR)

    def _moderate(self) -> None:
        """Look at what came since the last interrupt, where traffic decides how far apart they are."""
        if self._adaptive is None:
            return
        had = int(self.netdev["rx_frames"]), int(self.netdev["rx_bytes"])
        frames, nbytes = had[0] - self._had[0], had[1] - self._had[1]
        self._had = had
        if self._adaptive.look(frames, nbytes):
            self.eitr_us = self._adaptive.us
            self._regs.set(VfRegs.VTEITR, EITR.of(INTERVAL=self.eitr_us).value, RX_VECTOR)

    def idle(self) -> None:
        """Polling found nothing for a while: wait for the next interrupt."""
        self.netdev["polling"] = 0
        self.netdev["empty_polls"] = 0
        self._moderate()
        self._regs.set(VfRegs.VTEIMS, 1 << RX_VECTOR)

    def check_link(self) -> None:
        """Look at link and PF: a PF in reset, or one that no longer knows this VF, asks for `recover`."""
        status = self._mailbox.status()
        lost = bool(status.RSTI or status.RSTD)
        if not lost:
            try:
                notice = self._mailbox.notice()
            except MailboxError:
                return
            if notice is not None:
                self._cleared = bool(notice.CTS)
                lost = not notice.CTS and not notice.ACK
        if lost:
            self.state = State.RESET_NEEDED
            self.link = False
            return
        self.link = self._cleared and bool(STATUS(self._regs.get(VfRegs.VTSTATUS)).LU)

    def statistics(self) -> dict[str, int]:
        """Read the VF's counters: 32 bits, running on."""
        names = ("VFGPRC", "VFGPTC", "VFGORC", "VFGOTC", "VFMPRC", "VFGPRLBC", "VFGPTLBC", "VFGORLBC", "VFGOTLBC")
        return {name: self._regs.get(getattr(VfRegs, name)) for name in names}

    def __repr__(self) -> str:
        return f"Igbvf({format_mac(self.mac)}, {self.state.value})"
