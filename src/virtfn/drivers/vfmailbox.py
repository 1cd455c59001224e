"""The VF driver's end of the mailbox: ask the PF and wait for its answer, or read what it says unasked.

Some bits of V2PMAILBOX are cleared by reading; they are held here until they are used.
"""

from __future__ import annotations

from virtfn.drivers.window import Window
from virtfn.hw.i82576 import Message, VfRegs
from virtfn.hw.i82576.fields import V2PMAILBOX
from virtfn.machine.clock import MS_PS, US_PS
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["MailboxError", "VfMailbox"]

_READ_TO_CLEAR = V2PMAILBOX.PFSTS.mask | V2PMAILBOX.PFACK.mask | V2PMAILBOX.RSTD.mask
_PATIENCE_PS = 1000 * MS_PS
_STEP_PS = 500 * US_PS


class MailboxError(VirtfnError):
    """The PF did not answer, or said no. Carries the message and the answer's first word, if any."""

    def __init__(self, message: str, sent: int, answer: int | None = None, errno_name: str = "EIO") -> None:
        super().__init__(message, errno_name=errno_name)
        self.sent = sent
        self.answer = answer


class VfMailbox:
    """The mailbox of one VF. regs: the VF's BAR0."""

    def __init__(self, regs: Window, clock: Clock) -> None:
        self.messages = 0
        self._regs = regs
        self._clock = clock
        self._held = 0

    def forget(self) -> None:
        """Drop what was held, as after a reset of the VF."""
        self._held = 0

    def status(self) -> V2PMAILBOX:
        """Read V2PMAILBOX, with what earlier reads cleared and nobody has used."""
        value = self._regs.get(VfRegs.V2PMAILBOX) | self._held
        self._held |= value & _READ_TO_CLEAR
        return V2PMAILBOX(value)

    def _poll(self, mask: int) -> bool:
        deadline = self._clock.now() + _PATIENCE_PS
        while not self.status().value & mask:
            if self._clock.now() >= deadline:
                return False
            self._clock.sleep(_STEP_PS)
        self._held &= ~mask
        return True

    def _take_buffer(self) -> None:
        for _ in range(20):
            self._regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.VFU.mask)
            if self.status().VFU:
                return
            self._clock.sleep(_STEP_PS)
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
        return self._receive(reply_words)

    def notice(self) -> Message | None:
        """Take what the PF has said unasked, if anything.

        Raises MailboxError if the PF keeps the mailbox.
        """
        if not self.status().PFSTS:
            return None
        self._held &= ~V2PMAILBOX.PFSTS.mask
        return Message(self._receive(1)[0])

    def _receive(self, count: int) -> list[int]:
        self._take_buffer()
        words = [self._regs.get(VfRegs.VMBMEM, i) for i in range(count)]
        self._regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask)
        self.messages += 1
        return words
