"""The unit's own interrupts: fault event, invalidation completion event, page request event.

    condition --> IM clear: the message goes out
                  IM set:   IP, until software unmasks (it goes out), or has dealt with what it was about (withdrawn)

Each has four registers: control, data, address, upper address.

Spec: VT-d, fault event, invalidation event and page request event registers.
"""

from __future__ import annotations

from collections.abc import Callable

from virtfn.hw.bits import Decl
from virtfn.hw.vtd.regs import EventControl
from virtfn.machine.regfile import RegFile

__all__ = ["EventInterrupt", "Send"]

Send = Callable[[int, int], None]
"""Takes an interrupt of the unit away: address, message."""


class EventInterrupt:
    """One of them, by its four registers."""

    def __init__(self, regfile: RegFile, send: Send, control: Decl, message: Decl, address: Decl, upper: Decl) -> None:
        self._regs = regfile
        self._send = send
        self._control = control
        self._message = message
        self._address = address
        self._upper = upper
        regfile.on(control, write=self._unmasked)

    def notify(self) -> None:
        """Send the message, or keep it pending while it is masked."""
        control = EventControl(self._regs.peek(self._control))
        self._regs.poke(self._control, 0, control.replace(IP=control.IM).value)
        if not control.IM:
            address = self._regs.peek(self._upper) << 32 | self._regs.peek(self._address)
            self._send(address, self._regs.peek(self._message))

    def withdraw(self) -> None:
        """Forget a pending message: software has dealt with what it was about."""
        control = EventControl(self._regs.peek(self._control))
        self._regs.poke(self._control, 0, control.replace(IP=0).value)

    def _unmasked(self, index: int, written: int, old: int) -> None:
        if EventControl(self._regs.peek(self._control)).IP:
            self.notify()
