"""VFs that are held back: by what they send, by their interrupts, and by how many of their messages are answered.

A VF's owner sets its interrupt throttle (EITR) itself, and may undo this one; `attend` sets it anew, as often as
whoever watches has a look. Messages beyond those that are answered between two looks wait in the mailbox, with its
interrupt masked (MBVFIMR), so that they take no time of the host's.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtfn.drivers.window import Window
from virtfn.hw.i82576 import VF_VECTORS, Regs, vf_vector
from virtfn.hw.i82576.fields import EITR

__all__ = ["Restraint"]

_MESSAGES = 32  # that are answered between two looks
_INTERVAL_US = 1000


@dataclass(slots=True)
class _Held:
    """One VF. throttles: that its owner had set. left: messages that are still answered."""

    mbps: int
    throttles: list[int]
    left: int = _MESSAGES


class Restraint:
    """The VFs of a port that are held back. regs: the PF's."""

    def __init__(self, regs: Window) -> None:
        self._regs = regs
        self._held: dict[int, _Held] = {}

    def start(self) -> None:
        """Begin with none."""
        self._held.clear()

    def hold(self, n: int, mbps: int) -> None:
        """Hold VF `n` back, to so many Mb/s."""
        vectors = [vf_vector(n, v) for v in range(VF_VECTORS)]
        before = self._held.get(n)
        throttles = before.throttles if before else [self._regs.get(Regs.EITR, v) for v in vectors]
        self._held[n] = _Held(mbps, throttles)
        self.attend(n)

    def let_go(self, n: int) -> None:
        """Let VF `n` do as it likes."""
        held = self._held.pop(n, None)
        if held is not None:
            for v, throttle in enumerate(held.throttles):
                self._regs.set(Regs.EITR, throttle, vf_vector(n, v))
            self.open_mailboxes()

    def forget(self, n: int) -> None:
        """Forget VF `n` and its owner: nothing of either is in its throttles."""
        if self._held.pop(n, None) is not None:
            for v in range(VF_VECTORS):
                self._regs.set(Regs.EITR, 0, vf_vector(n, v))
            self.open_mailboxes()

    def rate(self, n: int, mbps: int) -> int:
        """Say what VF `n` may send, if the host's policy is `mbps`; 0: without limit."""
        held = self._held.get(n)
        return mbps if held is None else min(mbps or held.mbps, held.mbps)

    def attend(self, n: int) -> bool:
        """Hold VF `n` back anew, if it is to be; return whether messages of it may wait."""
        held = self._held.get(n)
        if held is None:
            return False
        waits, held.left = held.left <= 0, _MESSAGES
        for v in range(VF_VECTORS):
            self._regs.set(Regs.EITR, EITR.of(INTERVAL=_INTERVAL_US).value, vf_vector(n, v))
        self.open_mailboxes()
        return waits

    def note_message(self, n: int) -> None:
        """Take note of a message of VF `n`, or that it read one; it may have been the last for now."""
        held = self._held.get(n)
        if held is not None:
            held.left -= 1
            if not held.left:
                self.open_mailboxes()

    @property
    def deaf_to(self) -> int:
        """VFs whose messages have to wait, as a bitmap."""
        return sum(1 << n for n, held in self._held.items() if held.left <= 0)

    def open_mailboxes(self) -> None:
        """Let all mailboxes interrupt but those that have to wait."""
        self._regs.set(Regs.MBVFIMR, 0xFF & ~self.deaf_to)
