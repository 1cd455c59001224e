"""The PF driver's end of the mailboxes: every message of a VF, answered, and what each VF's driver has been told.

A VF whose driver has not sent RESET may send nothing else: it is told no, at most once in two seconds, and its driver
resets. It is told so when it acknowledges, too: a driver that missed its reset finds out as it looks for the PF.
Replies repeat word 0 with ACK or NACK, and CTS but for RESET's. A VF that is to have no link gets no CTS: its driver
then waits for one before it takes the link for up. It must find no NACK either, which would have it reset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from virtfn.drivers.addresses import Addresses
from virtfn.drivers.policy import VfPolicy
from virtfn.drivers.pools import Pools
from virtfn.drivers.window import Window
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.i82576 import (
    MAILBOX_WORDS,
    MULTICAST_OVERFLOW,
    MacAction,
    Message,
    Opcode,
    Promisc,
    Regs,
    mac_words,
    words_hashes,
    words_mac,
)
from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.hw.i82576.fields import P2VMAILBOX
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import Clock

__all__ = ["PfMailbox"]

_LONGEST = MAX_FRAME + FCS_BYTES
_NACK_PS = 2 * S_PS


@dataclass(slots=True)
class _Peer:
    """What the PF knows of a VF's driver."""

    clear_to_send: bool = False
    allowed: bool = True
    missed_vlans: set[int] = field(default_factory=set)  # asked for in vain: the host's was in their place, or no trunk
    last_nack_ps: int = -_NACK_PS


class PfMailbox:
    """The server of all VFs' messages. policies: the host's decisions, by VF."""

    def __init__(
        self, regs: Window, pools: Pools, addresses: Addresses, policies: list[VfPolicy], clock: Clock
    ) -> None:
        self._regs = regs
        self._pools = pools
        self._addresses = addresses
        self._policies = policies
        self._clock = clock
        self._peers: list[_Peer] = []
        self._handlers: dict[int, Callable[[int, Message, list[int]], bool]] = {
            Opcode.SET_MAC: self._set_mac,
            Opcode.SET_MULTICAST: self._set_multicast,
            Opcode.SET_VLAN: self._set_vlan,
            Opcode.SET_LPE: self._set_lpe,
            Opcode.SET_PROMISC: self._set_promisc,
        }
        self.messages = 0

    def start(self, vfs: int) -> None:
        """Begin with `vfs` VFs that have said nothing yet."""
        self._peers = [_Peer() for _ in range(vfs)]

    def clear_to_send(self, n: int) -> bool:
        """Tell whether VF `n`'s driver has introduced itself since the last reset."""
        return self._peers[n].clear_to_send

    def allow(self, n: int, allowed: bool) -> None:
        """Let VF `n` run, from its RESET message on, or keep it stopped, and without a link; its driver is told."""
        self._peers[n].allowed = allowed
        self.settle(n)
        if self._peers[n].clear_to_send:
            self.ping(n)

    def _runs(self, n: int) -> bool:
        """Tell whether the host lets VF `n` run."""
        return self._peers[n].allowed and self._policies[n].running

    def settle(self, n: int) -> None:
        """Let VF `n` receive and transmit, if its driver has introduced itself and the host lets it."""
        self._pools.enable(n, self._peers[n].clear_to_send and self._runs(n))

    def recall(self, n: int) -> None:
        """Have VF `n`'s driver introduce itself again: something that it was told holds no more."""
        self._peers[n].clear_to_send = False
        self.ping(n)

    def forget(self, n: int) -> None:
        """Forget VF `n`'s driver, and clear the mailbox's words."""
        self._peers[n] = _Peer()
        for word in range(MAILBOX_WORDS):
            self._regs.set(Regs.VMBMEM, 0, MAILBOX_WORDS * n + word)
        self._regs.set(Regs.P2VMAILBOX, P2VMAILBOX.RVFU.mask, n)

    def vlans_changed(self, n: int) -> None:
        """Keep VF `n` to its trunk. If it may now be in VLANs that it asked for in vain, its driver is to ask again."""
        policy, missed = self._policies[n], self._peers[n].missed_vlans
        if policy.trunk:
            missed |= set(self._pools.keep_to(n, policy.trunk))
        if any(self._may_join(n, vid) for vid in missed):
            missed.clear()
            self.recall(n)

    def _may_join(self, n: int, vid: int) -> bool:
        policy = self._policies[n]
        return not policy.vlan and (not vid or not policy.trunk or vid in policy.trunk)

    def distrust(self, n: int) -> None:
        """Give VF `n` no more than its own frames."""
        self._pools.end_promiscuity(n)

    def was_reset(self, n: int) -> None:
        """VF `n` was reset: its driver must introduce itself, and nothing that it asked for stays."""
        self._peers[n].clear_to_send = False
        self._peers[n].missed_vlans.clear()
        self._pools.new_driver(n, self._policies[n].vlan)

    def ping(self, n: int) -> bool:
        """Ring VF `n`: look at the link, and at whether the PF still knows you. False if the VF holds the buffer."""
        return self._send(n, [self._notice(n)])

    def _notice(self, n: int) -> int:
        """Say what VF `n` is to know: CTS, it has a link; ACK alone, it is known, and has none; neither, it is not."""
        known, runs = self._peers[n].clear_to_send, self._runs(n)
        return Message.of(OPCODE=Opcode.CONTROL, CTS=int(known and runs), ACK=int(known and not runs)).value

    def _take(self, n: int) -> bool:
        self._regs.set(Regs.P2VMAILBOX, P2VMAILBOX.PFU.mask, n)
        return bool(self._regs.get(Regs.P2VMAILBOX, n) & P2VMAILBOX.PFU.mask)

    def _send(self, n: int, words: list[int]) -> bool:
        if not self._take(n):
            return False
        for i, word in enumerate(words):
            self._regs.set(Regs.VMBMEM, word, MAILBOX_WORDS * n + i)
        self._regs.set(Regs.P2VMAILBOX, P2VMAILBOX.STS.mask, n)
        self.messages += 1
        return True

    def serve(self, n: int) -> None:
        """Read the message of VF `n`, do what it asks, answer."""
        if not self._take(n):
            # A driver that keeps the buffer after REQ would block its own mailbox for good.
            self._regs.set(Regs.P2VMAILBOX, P2VMAILBOX.RVFU.mask, n)
            if not self._take(n):
                return
        words = [self._regs.get(Regs.VMBMEM, MAILBOX_WORDS * n + i) for i in range(MAILBOX_WORDS)]
        self._regs.set(Regs.P2VMAILBOX, P2VMAILBOX.ACK.mask, n)
        message = Message(words[0])
        peer = self._peers[n]
        if message.value & (Message.ACK.mask | Message.NACK.mask):
            return
        if message.OPCODE == Opcode.RESET:
            self._send(n, self._reset(n))
            return
        if not peer.clear_to_send:
            self._refuse(n)
            return
        handler = self._handlers.get(message.OPCODE)
        done = handler is not None and handler(n, message, words)
        link = int(self._runs(n))
        answer = Message.of(OPCODE=message.OPCODE, INFO=message.INFO, CTS=link, ACK=int(done), NACK=int(not done))
        self._send(n, [answer.value])

    def acknowledged(self, n: int) -> None:
        """VF `n`'s driver has read the buffer: one that must introduce itself finds out here that it must.

        What it finds next, when it looks for its link, must be no refusal that it has read already.
        """
        if not self._peers[n].clear_to_send:
            self._refuse(n)
        elif not self._runs(n) and self._take(n):
            self._regs.set(Regs.VMBMEM, self._notice(n), MAILBOX_WORDS * n)
            self._regs.set(Regs.P2VMAILBOX, 0, n)

    def _refuse(self, n: int) -> None:
        peer = self._peers[n]
        if self._clock.now() - peer.last_nack_ps >= _NACK_PS:
            peer.last_nack_ps = self._clock.now()
            self._send(n, [Message.NACK.mask])

    def _reset(self, n: int) -> list[int]:
        peer = self._peers[n]
        peer.missed_vlans.clear()
        self._pools.new_driver(n, self._policies[n].vlan)
        if not self._policies[n].vlan:
            self._pools.admit(n, 0)
        self._addresses.apply(n)
        mac = self._addresses.of(n)
        peer.clear_to_send = True
        self.settle(n)
        # Without an address there is nothing to acknowledge: a guest chooses one then, and gets it if it is trusted.
        word = Message.of(OPCODE=Opcode.RESET, ACK=int(mac != 0), NACK=int(mac == 0))
        return [word.value, *mac_words(mac)]

    def _set_mac(self, n: int, message: Message, words: list[int]) -> bool:
        mac = words_mac(words[1], words[2])
        match message.INFO:
            case MacAction.SET:
                return self._addresses.take(n, mac)
            case MacAction.CLEAR_FILTERS:
                self._pools.clear_addresses(n)
                return True
            case MacAction.ADD_FILTER:
                return self._addresses.add(n, mac)
            case _:
                return False

    def _set_multicast(self, n: int, message: Message, words: list[int]) -> bool:
        overflow = bool(message.INFO & MULTICAST_OVERFLOW)
        everything = overflow and self._policies[n].trust
        self._pools.set_multicast(n, words_hashes(words[1:], message.INFO & 0x1F), everything)
        return everything or not overflow

    def _set_vlan(self, n: int, message: Message, words: list[int]) -> bool:
        vid, joins = words[1], bool(message.INFO & 1)
        if not 0 <= vid <= 4095:
            return False
        if not self._may_join(n, vid):
            missed = self._peers[n].missed_vlans
            if joins and vid:
                missed.add(vid)
            elif not joins:
                missed.discard(vid)
                self._pools.leave_vlan(n, vid)
            return False
        if joins:
            return self._pools.admit(n, vid)
        self._pools.leave_vlan(n, vid)
        return True

    def _set_lpe(self, n: int, message: Message, words: list[int]) -> bool:
        if not 64 <= words[1] <= _LONGEST:
            return False
        self._pools.set_max_frame(n, words[1])
        return True

    def _set_promisc(self, n: int, message: Message, words: list[int]) -> bool:
        wanted = Promisc(message.INFO & 3)
        if wanted and not self._policies[n].trust:
            return False
        self._pools.set_promiscuous(n, bool(wanted & Promisc.UNICAST), bool(wanted & Promisc.MULTICAST))
        return True
