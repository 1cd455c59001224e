"""A function in a guest's hands: which accesses trap, which do not, and whose interrupts they are.

    configuration space   traps; virtual (the IOVM's `VirtualConfig`)
    BAR, ring pages       mapped: plain loads and stores, no exit
    BAR, other pages      traps; passed on to the device
    MSI-X table           traps; virtual: the guest's messages are its own, the device gets messages of the host that
                          lead to them

Every trap is an exit, and counted by kind in the guest's meter.
"""

from __future__ import annotations

from typing import Protocol

from virtfn.hw.bits import Decl
from virtfn.hw.pci import MsiXEntry
from virtfn.hw.types import Hva, Rid
from virtfn.machine.function import all_ones
from virtfn.machine.meter import Meter
from virtfn.machine.ports import ConfigSpace, Device, Mapping, VirtfnError
from virtfn.vmm.traps import Traps

__all__ = ["AssignedFunction", "GuestBar", "GuestConfig", "Interrupts"]

_ENTRY = 16
_CONTROL = 3
_WRITABLE = (0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 1)  # of an entry's words


class Interrupts(Protocol):
    """How interrupts of devices reach the guest."""

    def route(self, rid: Rid, address: int, message: int) -> tuple[int, int]:
        """Make a message of the host by which `rid` sends the guest the guest's own message; return it."""

    def unroute(self, address: int, message: int) -> None:
        """Take such a message back: it leads nowhere any more."""


class AssignedFunction:
    """One function assigned to one guest.

    config: the virtual configuration space. interrupts: how they reach the guest. msix_bar, vectors: where its MSI-X
    table is, and how long. mapped: map what can be mapped. meter: of the guest, where exits are counted. traps:
    what catches writes of the guest's compiled code. A configuration write that resets the function empties its virtual
    MSI-X table too.
    """

    def __init__(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        interrupts: Interrupts,
        *,
        msix_bar: int,
        vectors: int,
        mapped: bool = True,
        meter: Meter | None = None,
        traps: Traps | None = None,
    ) -> None:
        self.traps = traps
        self.device = device
        self.rid = rid
        self.config = GuestConfig(self, config)
        self.meter = Meter() if meter is None else meter
        self.attached = True
        self._interrupts = interrupts
        self._msix_bar = msix_bar
        self._table = [[0, 0, 0, 1] for _ in range(vectors)]
        self._messages: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}  # by vector: the guest's, ours
        self._mapped = mapped

    def bar(self, number: int) -> GuestBar:
        """Open a BAR as the guest sees it."""
        return GuestBar(self, number)

    def mappings(self, bar: int) -> list[Mapping]:
        """List the parts of a BAR whose accesses do not trap."""
        return self.device.bar_mappings(self.rid, bar) if self._mapped and self.attached else []

    def mapped(self, bar: int, offset: int) -> Hva | None:
        """Find where a plain access reaches a register; None if it traps."""
        for part in self.mappings(bar):
            at = offset - part.offset
            if 0 <= at < part.bytes.size:
                return Hva(int(part.bytes.ctypes.data) + at)
        return None

    def read(self, bar: int, offset: int, size: int = 4) -> int:
        """Handle a trapped read of a BAR; all ones once the function is gone."""
        if not self.attached:
            return all_ones(size)
        if bar == self._msix_bar and 0 <= offset < len(self._table) * _ENTRY:
            self.meter.add("exit_msix")
            words = self._table[offset // _ENTRY]
            at = offset % _ENTRY
            # Only whole words and pairs of them are defined; a narrow read gets its part of the word.
            value = words[at // 4] >> at % 4 * 8 | (words[at // 4 + 1] << 32 if size == 8 and at < 12 else 0)
            return value & all_ones(size)
        self.meter.add("exit_bar")
        return self.device.bar_read(self.rid, bar, offset, size)

    def write(self, bar: int, offset: int, value: int, size: int = 4) -> None:
        """Handle a trapped write of a BAR; ignored once the function is gone."""
        if not self.attached:
            return
        if bar == self._msix_bar and 0 <= offset < len(self._table) * _ENTRY:
            self.meter.add("exit_msix")
            if size in (4, 8) and offset % size == 0:
                for shift in range(0, size, 4):
                    self._write_table((offset + shift) // _ENTRY, (offset + shift) % _ENTRY // 4, value >> 8 * shift)
        else:
            self.meter.add("exit_bar")
            self.device.bar_write(self.rid, bar, offset, size, value)

    def _write_table(self, vector: int, word: int, value: int) -> None:
        """Store the guest's word; once the vector is unmasked, give the device a message of the host's for it."""
        self._table[vector][word] = value & _WRITABLE[word]
        if word != _CONTROL:
            return
        masked = self._table[vector][_CONTROL]
        if not masked:
            low, high, data, _ = self._table[vector]
            wanted = low | high << 32, data
            if vector in self._messages and self._messages[vector][0] != wanted:
                self._interrupts.unroute(*self._messages.pop(vector)[1])
            if vector not in self._messages:
                self._messages[vector] = wanted, self._interrupts.route(self.rid, *wanted)
            address, message = self._messages[vector][1]
            self._tell(vector, MsiXEntry.ADDRESS, address & 0xFFFFFFFF)
            self._tell(vector, MsiXEntry.ADDRESS_HIGH, address >> 32)
            self._tell(vector, MsiXEntry.MESSAGE, message)
        self._tell(vector, MsiXEntry.CONTROL, masked)

    def _tell(self, vector: int, decl: Decl, value: int) -> None:
        """Write a word of the device's own table."""
        self.device.bar_write(self.rid, self._msix_bar, vector * _ENTRY + decl.offset, 4, value)

    def follow_reset(self) -> None:
        """Empty the virtual table if the device's has been: a vector that was open here is masked there."""
        for vector, words in enumerate(self._table):
            at = vector * _ENTRY + MsiXEntry.CONTROL.offset
            if not words[_CONTROL] and self.device.bar_read(self.rid, self._msix_bar, at, 4) & 1:
                self._table = [[0, 0, 0, 1] for _ in self._table]
                return

    def forget(self) -> None:
        """Take its messages and its virtual table away, as of a function that is new."""
        for _, ours in self._messages.values():
            self._interrupts.unroute(*ours)
        self._messages.clear()
        self._table = [[0, 0, 0, 1] for _ in self._table]

    def release(self) -> None:
        """Take the function out of the guest's hands: every access reads all ones, no interrupt comes any more."""
        self.attached = False
        self.forget()


class GuestConfig:
    """Configuration space as the guest reaches it: each access is an exit."""

    def __init__(self, function: AssignedFunction, space: ConfigSpace) -> None:
        self._function = function
        self._space = space

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes."""
        self._function.meter.add("exit_config")
        return self._space.read(offset, size) if self._function.attached else all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""
        self._function.meter.add("exit_config")
        if self._function.attached:
            self._space.write(offset, size, value)
            self._function.follow_reset()


class GuestBar:
    """A BAR as the guest's driver holds it; a `Bar`."""

    def __init__(self, function: AssignedFunction, number: int) -> None:
        if number < 0:
            raise VirtfnError(f"there is no BAR {number}", errno_name="EINVAL")
        self._function = function
        self._number = number

    def read(self, offset: int) -> int:
        """Read a 32-bit register: an exit."""
        return self._function.read(self._number, offset)

    def write(self, offset: int, value: int) -> None:
        """Write a 32-bit register: an exit."""
        self._function.write(self._number, offset, value & 0xFFFFFFFF)

    def mapped(self, offset: int) -> Hva | None:
        """Find the address where a plain access reaches register `offset`."""
        return self._function.mapped(self._number, offset)

    def trapped(self, offset: int, value: int) -> Hva | None:
        """Find the address of a word where a store is an exit that compiled code answers."""
        traps = self._function.traps
        return traps.word(offset, value) if traps is not None and self._number == 0 else None
