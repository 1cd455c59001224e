"""MSI-X: the table of messages and the pending bits, in a BAR of their function.

    table   entry v at v * 16: address 63:0, message, vector control (bit 0: masked, set at reset)
    PBA     bit v: vector v was raised while it could not be sent

A vector is sent when the capability enables MSI-X, the function may master the bus, and neither the function nor the
vector is masked. Raised otherwise under MSI-X it becomes pending, and is sent when the last obstacle goes.
Spec: PCI Express Base Specification, 6.1.4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from virtfn.hw.pci import Location, MsiX, MsiXControl, MsiXEntry
from virtfn.kernels.card import MSIX
from virtfn.machine.function import Function, all_ones
from virtfn.machine.ports import Reset
from virtfn.machine.regfile import RegFile

__all__ = ["MsiXTable"]

ENTRY_BYTES = 16


class MsiXTable:
    """The table and PBA of one function; `send(address, message)` is called for each message that leaves.

    rows: (vectors or more,) MSIX, where kernels see what each vector sends.
    """

    def __init__(
        self, function: Function, send: Callable[[int, int], None], rows: npt.NDArray[np.void] | None = None
    ) -> None:
        self._function = function
        self._send = send
        self.vectors = MsiXControl(function[MsiX].peek(MsiX.CONTROL)).TABLE_SIZE + 1
        self.bar = Location(function[MsiX].peek(MsiX.TABLE)).BIR
        self._table = self._offset(MsiX.TABLE.offset)
        self._pba = self._offset(MsiX.PBA.offset)
        self._bytes = np.zeros(self.vectors * ENTRY_BYTES, np.uint8)
        self._entries = [
            RegFile(MsiXEntry, self._bytes[v * ENTRY_BYTES : (v + 1) * ENTRY_BYTES], ENTRY_BYTES)
            for v in range(self.vectors)
        ]
        self._rows = np.zeros(self.vectors, MSIX) if rows is None else rows
        self.pending = 0
        function.on_change.append(self.flush)
        function.on_reset.append(self.reset)

    def _offset(self, register: int) -> int:
        value = self._function.config_read(self._function.offset_of(MsiX) + register, 4)
        return Location(value).OFFSET * 8

    def reset(self, kind: Reset = Reset.POWER_ON) -> None:
        """Forget every message and pending bit, and mask every vector."""
        self.pending = 0
        for entry in self._entries:
            entry.reset()
        self._show()

    @property
    def enabled(self) -> bool:
        """Whether software chose MSI-X for this function."""
        return bool(self._control.ENABLE)

    @property
    def _control(self) -> MsiXControl:
        return MsiXControl(self._function[MsiX].peek(MsiX.CONTROL))

    def message(self, vector: int) -> tuple[int, int]:
        """Return (address, message) of a vector as software wrote them.

        Raises IndexError if there is no such vector.
        """
        entry = self._entries[vector]
        return entry.peek(MsiXEntry.ADDRESS_HIGH) << 32 | entry.peek(MsiXEntry.ADDRESS), entry.peek(MsiXEntry.MESSAGE)

    def masked(self, vector: int) -> bool:
        """Tell whether the vector's own mask bit is set."""
        return bool(self._entries[vector].peek(MsiXEntry.CONTROL) & 1)

    def raise_vector(self, vector: int) -> bool:
        """Send a vector's message, or note it as pending; return whether it was sent. Unknown vectors are ignored."""
        if not 0 <= vector < self.vectors or not self.enabled:
            return False
        if self._open and not self.masked(vector):
            self._send(*self.message(vector))
            return True
        self.pending |= 1 << vector
        return False

    @property
    def _open(self) -> bool:
        control = self._control
        return bool(control.ENABLE) and not control.MASK and self._function.bus_master

    def _show(self) -> None:
        """Keep the kernels' view true."""
        open_now = self._open
        for vector in range(self.vectors):
            address, message = self.message(vector)
            self._rows[vector] = open_now and not self.masked(vector), address - (address >> 63 << 64), message

    def flush(self) -> None:
        """Send what is pending and can leave now."""
        self._show()
        if not self.enabled:
            self.pending = 0
        if not self.pending or not self._open:
            return
        for vector in range(self.vectors):
            if self.pending >> vector & 1 and not self.masked(vector):
                self.pending &= ~(1 << vector)
                self._send(*self.message(vector))

    def read(self, offset: int, size: int) -> int:
        """Read the BAR region of table and PBA; what lies outside them reads 0."""
        if size not in (1, 2, 4, 8):
            return all_ones(4)
        value = 0
        for shift in range(0, size, 4):
            value |= self._read_word(offset + shift, min(size, 4)) << shift * 8
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the table; the PBA and what lies outside the table ignore it."""
        if size not in (1, 2, 4, 8):
            return
        for shift in range(0, size, 4):
            self._write_word(offset + shift, min(size, 4), value >> shift * 8)
        self.flush()

    def _read_word(self, offset: int, size: int) -> int:
        at = offset - self._table
        if 0 <= at < self.vectors * ENTRY_BYTES:
            return self._entries[at // ENTRY_BYTES].read(at % ENTRY_BYTES, size)
        at = offset - self._pba
        if 0 <= at < -(-self.vectors // 64) * 8:
            return self.pending >> at * 8 & all_ones(size)
        return 0

    def _write_word(self, offset: int, size: int, value: int) -> None:
        at = offset - self._table
        if 0 <= at < self.vectors * ENTRY_BYTES:
            self._entries[at // ENTRY_BYTES].write(at % ENTRY_BYTES, size, value)
