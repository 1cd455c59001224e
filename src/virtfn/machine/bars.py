"""A row of base address registers: type bits, size masks, and who claims an address.

The header of a function and its SR-IOV capability each hold one such row. A BAR of `size` bytes hardwires its low
address bits to zero, which is how software that writes ones learns the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from virtfn.hw.bits import Decl
from virtfn.hw.pci import Address
from virtfn.machine.ports import VirtfnError
from virtfn.machine.regfile import RegFile

__all__ = ["BarShape", "Bars"]

MEM64 = 2


@dataclass(frozen=True, slots=True)
class BarShape:
    """What a BAR is, before it has an address. size: bytes, a power of two; a `wide` one takes two registers.

    Raises VirtfnError when no BAR can be so.
    """

    size: int
    wide: bool = False
    io: bool = False
    prefetchable: bool = False

    def __post_init__(self) -> None:
        least = 4 if self.io else 16
        if self.size < least or self.size & (self.size - 1) or (self.io and (self.wide or self.prefetchable)):
            raise VirtfnError(f"no BAR can be {self}", errno_name="EINVAL")

    @property
    def type_bits(self) -> int:
        """The hardwired low bits."""
        kind = Address.of(IO=self.io, MEM_TYPE=MEM64 if self.wide else 0, PREFETCHABLE=self.prefetchable)
        return kind.value


class Bars:
    """The BARs `decl` of one register file. shapes: by number of their first register; the others read 0."""

    def __init__(self, file: RegFile, decl: Decl, shapes: Mapping[int, BarShape]) -> None:
        self.shapes = dict(shapes)
        self._file = file
        self._decl = decl
        self.reset()

    def reset(self, page_size: int = 0) -> None:
        """Take all addresses away; no BAR is then smaller than `page_size`."""
        for i in range(self._decl.count):
            self._file.limit(self._decl, i, 0)
            self._file.poke(self._decl, i, 0)
        for i, shape in self.shapes.items():
            self._file.poke(self._decl, i, shape.type_bits)
        self.resize(page_size)

    def resize(self, page_size: int) -> None:
        """Let no BAR be smaller than `page_size` bytes: addresses lose the bits that are too low."""
        self._page_size = page_size
        for i, shape in self.shapes.items():
            mask = ~(self.size(i) - 1)
            low = mask & (0xFFFFFFFC if shape.io else 0xFFFFFFF0)
            self._file.limit(self._decl, i, low)
            self._file.poke(self._decl, i, self._file.peek(self._decl, i) & low | shape.type_bits)
            if shape.wide:
                high = mask >> 32 & 0xFFFFFFFF
                self._file.limit(self._decl, i + 1, high)
                self._file.poke(self._decl, i + 1, self._file.peek(self._decl, i + 1) & high)

    def size(self, number: int) -> int:
        """Bytes that BAR `number` claims; 0 if it is not implemented."""
        shape = self.shapes.get(number)
        if shape is None:
            return 0
        return shape.size if shape.io else max(shape.size, self._page_size)

    def address(self, number: int) -> int:
        """Address that software gave BAR `number`; 0 at first."""
        shape = self.shapes.get(number)
        if shape is None:
            return 0
        value = self._file.peek(self._decl, number) & (~3 if shape.io else ~15)
        return value | self._file.peek(self._decl, number + 1) << 32 if shape.wide else value

    def place(self, number: int, address: int) -> None:
        """Give BAR `number` an address from inside the model."""
        shape = self.shapes[number]
        base = address & ~(self.size(number) - 1)
        self._file.poke(self._decl, number, base & 0xFFFFFFFF | shape.type_bits)
        if shape.wide:
            self._file.poke(self._decl, number + 1, base >> 32)

    def find(self, address: int, *, io: bool = False, copies: int = 1) -> tuple[int, int] | None:
        """Find (BAR, offset) of an address; `copies` windows of each BAR lie end to end, as those of VFs do."""
        for i, shape in self.shapes.items():
            offset = address - self.address(i)
            if shape.io == io and 0 <= offset < self.size(i) * copies:
                return i, offset
        return None
