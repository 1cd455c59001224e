"""Registers as a driver uses them: by declaration, through a BAR, waiting on the clock."""

from __future__ import annotations

from virtfn.hw.bits import Decl
from virtfn.machine.clock import US_PS
from virtfn.machine.ports import Bar, Clock, VirtfnError

__all__ = ["DeviceTimeoutError", "Window"]


class DeviceTimeoutError(VirtfnError):
    """A device did not do in time what its driver waited for. Carries the register and its last value."""

    def __init__(self, register: str, value: int) -> None:
        super().__init__(f"{register} stayed at {value:#x}", errno_name="ETIMEDOUT")
        self.register = register
        self.value = value


class Window:
    """A BAR's registers, read and written by declaration."""

    def __init__(self, bar: Bar, clock: Clock) -> None:
        self.bar = bar
        self.clock = clock

    def get(self, decl: Decl, index: int = 0) -> int:
        """Read a register."""
        return self.bar.read(decl.at(index))

    def set(self, decl: Decl, value: int, index: int = 0) -> None:
        """Write a register."""
        self.bar.write(decl.at(index), value)

    def update(self, decl: Decl, index: int = 0, **fields: int) -> int:
        """Read a register, change some fields, write it; return what was written."""
        value = decl.kind(self.get(decl, index)).replace(**fields).value
        self.set(decl, value, index)
        return value

    def wait(self, decl: Decl, mask: int, wanted: int, within_ps: int, index: int = 0, step_ps: int = 5 * US_PS) -> int:
        """Read a register until its bits under `mask` are `wanted`; return it.

        Raises DeviceTimeoutError when they are not after `within_ps`: of a read that began after that.
        """
        deadline = self.clock.now() + within_ps
        while True:
            late = self.clock.now() >= deadline  # a machine that does much else may stand still between two lines
            value = self.get(decl, index)
            if value & mask == wanted:
                return value
            if late:
                raise DeviceTimeoutError(decl.label(index), value)
            self.clock.sleep(step_ps)
