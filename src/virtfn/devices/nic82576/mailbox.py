"""Mailboxes between PF and VFs: 16 shared words each, ownership bits, and a doorbell both ways.

    VF: V2PMAILBOX  REQ ACK VFU | PFU PFSTS PFACK RSTI RSTD     PF: P2VMAILBOX  STS ACK | VFU | PFU RVFU

Ownership: either side writes its bit to take the buffer, and gets it only if the other has not; a write without the bit
releases it. REQ and ACK of a VF set MBVFICR and ICR.VMMB; STS and ACK of the PF raise the VF's mailbox vector.
Spec: 82576 datasheet, chapter "VF mailbox".
"""

from __future__ import annotations

from collections.abc import Callable

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import MAILBOX_WORDS, VFS, Regs
from virtfn.hw.i82576.fields import MBVFICR, P2VMAILBOX, V2PMAILBOX
from virtfn.machine.regfile import Handlers, on_write

__all__ = ["Mailboxes"]


class Mailboxes(Handlers):
    """All mailboxes of a port.

    to_pf: called with nothing when a cause for the PF appears. to_vf: called with the VF when the PF rings.
    on_message: called with (VF, to the PF, words) for each message, for whoever watches.
    """

    def __init__(self, registers: PortRegisters, to_pf: Callable[[], None], to_vf: Callable[[int], None]) -> None:
        self._registers = registers
        self._to_pf = to_pf
        self._to_vf = to_vf
        self.on_message: Callable[[int, bool, list[int]], None] | None = None
        self.messages = [0] * VFS
        registers.bind(self)

    def words(self, vf: int) -> list[int]:
        """Read the buffer of VF `vf`."""
        return [self._registers.peek(Regs.VMBMEM, MAILBOX_WORDS * vf + i) for i in range(MAILBOX_WORDS)]

    def _set(self, vf: int, **bits: int) -> None:
        value = V2PMAILBOX(self._registers.peek(Regs.V2PMAILBOX, vf))
        self._registers.poke(Regs.V2PMAILBOX, vf, value.replace(**bits).value)

    def _set_pf(self, vf: int, **bits: int) -> None:
        value = P2VMAILBOX(self._registers.peek(Regs.P2VMAILBOX, vf))
        self._registers.poke(Regs.P2VMAILBOX, vf, value.replace(**bits).value)

    @on_write(Regs.V2PMAILBOX)
    def _vf_writes(self, vf: int, written: int, old: int) -> None:
        command = V2PMAILBOX(written)
        owned = command.VFU and not V2PMAILBOX(old).PFU
        self._set(vf, VFU=int(owned))
        self._set_pf(vf, VFU=int(owned))
        if command.REQ or command.ACK:
            if command.REQ:
                self._noted(vf, to_pf=True)
            causes = self._registers.peek(Regs.MBVFICR)
            causes |= MBVFICR.of(VFREQ=command.REQ << vf, VFACK=command.ACK << vf).value
            self._registers.poke(Regs.MBVFICR, 0, causes)
            if self._registers.peek(Regs.MBVFIMR) >> vf & 1:
                self._to_pf()

    @on_write(Regs.P2VMAILBOX)
    def _pf_writes(self, vf: int, written: int, old: int) -> None:
        command = P2VMAILBOX(written)
        if command.RVFU:
            self._set(vf, VFU=0)
            self._set_pf(vf, VFU=0)
            causes = self._registers.peek(Regs.MBVFICR) & ~MBVFICR.of(VFREQ=1 << vf, VFACK=1 << vf).value
            self._registers.poke(Regs.MBVFICR, 0, causes)
        owned = command.PFU and not V2PMAILBOX(self._registers.peek(Regs.V2PMAILBOX, vf)).VFU
        self._set(vf, PFU=int(owned))
        self._set_pf(vf, PFU=int(owned))
        if command.STS:
            self._noted(vf, to_pf=False)
            self._set(vf, PFSTS=1)
        if command.ACK:
            self._set(vf, PFACK=1)
        if command.STS or command.ACK:
            self._to_vf(vf)

    def _noted(self, vf: int, *, to_pf: bool) -> None:
        self.messages[vf] += 1
        if self.on_message is not None:
            self.on_message(vf, to_pf, self.words(vf))

    def reset_vf(self, vf: int) -> None:
        """Give the buffer back and forget what was under way; a pending RSTI or RSTD stays for the VF to see."""
        value = V2PMAILBOX(self._registers.peek(Regs.V2PMAILBOX, vf))
        self._registers.poke(Regs.V2PMAILBOX, vf, V2PMAILBOX.of(RSTI=value.RSTI, RSTD=value.RSTD).value)
        self._registers.poke(Regs.P2VMAILBOX, vf, 0)

    def pf_reset(self) -> None:
        """Tell every VF that the PF is in reset, until `pf_reset_done`."""
        for vf in range(VFS):
            self._registers.poke(Regs.V2PMAILBOX, vf, V2PMAILBOX.of(RSTI=1).value)
            self._registers.poke(Regs.P2VMAILBOX, vf, 0)

    def pf_reset_done(self) -> None:
        """Tell every VF that the PF's reset is done."""
        for vf in range(VFS):
            self._set(vf, RSTI=0, RSTD=1)
