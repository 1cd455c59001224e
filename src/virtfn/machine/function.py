"""One PCI Express function: 4 KiB of configuration space that behaves as its register maps say.

    000 header (type 0 or 1)   040 capabilities, linked by one byte   100 extended capabilities, linked by 12 bits

Whoever builds a function places its capabilities; the links follow from their order. The owner hears of resets through
`on_reset` and of every configuration write through `on_change`. Root ports, the 82576's functions and the virtual
configuration spaces of guests are all this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from virtfn.hw.bits import Decl, RegMap
from virtfn.hw.pci import (
    CONFIG_SIZE,
    EXTENDED_START,
    HEADER_SIZE,
    ROM_BAR,
    SURVIVES_FLR,
    Aer,
    Command,
    CorrectableError,
    DevCap,
    DevCtl,
    DevSta,
    ExtendedHeader,
    Pcie,
    PciStatus,
    Pm,
    PmControl,
    RomAddress,
    Type0,
    Type1,
    UncorrectableError,
)
from virtfn.machine.bars import Bars, BarShape
from virtfn.machine.ports import Reset, VirtfnError
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["Capability", "Function", "all_ones", "reaches"]

D0, D3HOT = 0, 3
_STATE, _IO, _MEM, _BME = PmControl.STATE.mask, Command.IO.mask, Command.MEM.mask, Command.BME.mask


def all_ones(size: int) -> int:
    """What the bus returns when nobody answers a read of `size` bytes."""
    return (1 << 8 * size) - 1


def reaches(offset: int, size: int) -> bool:
    """Tell whether PCI Express can carry such a configuration access: 1 to 4 bytes inside one word of the 4 KiB."""
    return size in (1, 2, 4) and 0 <= offset < CONFIG_SIZE and offset % 4 + size <= 4


@dataclass(frozen=True, slots=True)
class Capability:
    """A register map placed in configuration space.

    values: reset values of this function, where they are not the map's. writable: bits that software can change, where
    they are fewer than the map's. linked: whether the list leads to it.
    """

    regs: type[RegMap]
    offset: int
    values: Mapping[Decl, int] = field(default_factory=dict)
    writable: Mapping[Decl, int] = field(default_factory=dict)
    linked: bool = True

    @property
    def size(self) -> int:
        """Bytes up to the last register, in whole words."""
        return max(-(-(at + decl.size) // 4) * 4 for decl, _, at in self.regs.elements())


def _chain(parts: Sequence[Capability]) -> Iterator[tuple[Capability, int]]:
    """Pair each capability with the offset of the next one, the last with 0."""
    return zip(parts, [*(p.offset for p in parts[1:]), 0], strict=False)


class Function:
    """One function's configuration space. regs: Type0 or Type1.

    Raises VirtfnError when capabilities overlap or lie outside their region. Power states: D0, D3hot.
    """

    def __init__(
        self,
        regs: type[RegMap],
        capabilities: Sequence[Capability] = (),
        *,
        values: Mapping[Decl, int],
        writable: Mapping[Decl, int] | None = None,
        bars: Mapping[int, BarShape] | None = None,
        rom_size: int = 0,
    ) -> None:
        self.bytes = np.zeros(CONFIG_SIZE, np.uint8)
        self.on_reset: list[Callable[[Reset], None]] = []
        self.on_change: list[Callable[[], None]] = []
        self.rom_size = rom_size
        self._parts = [Capability(regs, 0, values, writable or {}), *capabilities]
        self._files: dict[type[RegMap], RegFile] = {}
        self._offsets: dict[type[RegMap], int] = {}
        self._owner: dict[int, tuple[RegFile, int]] = {}
        for part in self._parts:
            self._place(part)
        self.header = self._files[regs]
        self._rom = Type1.ROM if regs is Type1 else Type0.ROM
        self.header.limit(self._rom, 0, ~(rom_size - 1) & 0xFFFFFFFF | RomAddress.ENABLE.mask if rom_size else 0)
        self._restore_values()
        self.bars = Bars(self.header, Type1.BAR if regs is Type1 else Type0.BAR, bars or {})
        if Pm in self:
            self[Pm].bind(_Power(self))
        if Pcie in self:
            self[Pcie].bind(_DeviceControl(self))

    def _place(self, part: Capability) -> None:
        inside = {0: HEADER_SIZE}.get(part.offset, EXTENDED_START if part.offset < EXTENDED_START else CONFIG_SIZE)
        size = HEADER_SIZE if part.offset == 0 else part.size
        words = range(part.offset, part.offset + size, 4)
        if (
            part.offset % 4
            or part.offset + size > inside
            or part.regs in self._files
            or self._owner.keys() & set(words)
        ):
            raise VirtfnError(f"{part.regs.__name__} cannot lie at {part.offset:#x}", errno_name="EINVAL")
        file = RegFile(part.regs, self.bytes[part.offset : part.offset + size], size)
        self._files[part.regs] = file
        self._offsets[part.regs] = part.offset
        for word in words:
            self._owner[word] = file, part.offset
        for decl, bits in part.writable.items():
            file.limit(decl, 0, bits)

    def __contains__(self, regs: type[RegMap]) -> bool:
        return regs in self._files

    def __getitem__(self, regs: type[RegMap]) -> RegFile:
        """Get the register file of a capability or of the header.

        Raises KeyError if the function has none.
        """
        return self._files[regs]

    def offset_of(self, regs: type[RegMap]) -> int:
        """Where a capability lies.

        Raises KeyError if the function has none.
        """
        return self._offsets[regs]

    def config_read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; reserved space reads 0, an access that no bus can carry reads all ones."""
        if not reaches(offset, size):
            return all_ones(size if size in (1, 2, 4) else 4)
        owner = self._owner.get(offset & ~3)
        return 0 if owner is None else owner[0].read(offset - owner[1], size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes; reserved space and an access that no bus can carry ignore it."""
        owner = self._owner.get(offset & ~3) if reaches(offset, size) else None
        if owner is None:
            return
        owner[0].write(offset - owner[1], size, value)
        for hear in self.on_change:
            hear()

    def reset(self, kind: Reset) -> None:
        """Return every register to its reset value, but for what `kind` leaves alone, and tell the owner."""
        kept: list[tuple[RegFile, Decl, int, int]] = []
        if kind is not Reset.POWER_ON:
            kept = [
                (file, decl, bits, file.peek(decl) & bits)
                for file in self._files.values()
                for decl, bits in SURVIVES_FLR.items()
                if file.map.lookup(decl.offset) == (decl, 0)
            ]
        self._restore_values()
        self.bars.reset()
        for file, decl, bits, value in kept:
            file.poke(decl, 0, file.peek(decl) & ~bits | value)
        for hear in self.on_reset:
            hear(kind)

    def _restore_values(self) -> None:
        for part in self._parts:
            file = self._files[part.regs]
            file.reset()
            for decl, value in part.values.items():
                file.poke(decl, 0, value)
        linked = [p for p in self._parts[1:] if p.linked]
        first = [p for p in linked if p.offset < EXTENDED_START]
        self.header.poke(Type0.CAP_POINTER, 0, first[0].offset if first else 0)
        status = PciStatus(self.header.peek(Type0.STATUS)).replace(CAP_LIST=bool(first))
        self.header.poke(Type0.STATUS, 0, status.value)
        for part, following in _chain(first):
            self.bytes[part.offset + 1] = following
        for part, following in _chain([p for p in linked if p.offset >= EXTENDED_START]):
            file, header = self._files[part.regs], part.regs.INDEX[0][0]
            file.poke(header, 0, ExtendedHeader(file.peek(header)).replace(NEXT=following).value)

    @property
    def command(self) -> Command:
        """The Command register."""
        return Command(self.header.peek(Type0.COMMAND))

    @property
    def power_state(self) -> int:
        """0: D0; 3: D3hot, where only configuration accesses are answered."""
        return self[Pm].peek(Pm.PMCSR) & _STATE if Pm in self else D0

    @property
    def bus_master(self) -> bool:
        """Whether the function may send DMA and messages now."""
        return self._may(_BME)

    @property
    def memory_enabled(self) -> bool:
        """Whether the function's memory BARs answer now."""
        return self._may(_MEM)

    @property
    def io_enabled(self) -> bool:
        """Whether the function's I/O BARs answer now."""
        return self._may(_IO)

    def _may(self, bit: int) -> bool:
        return self.header.peek(Type0.COMMAND) & bit != 0 and self.power_state == D0

    def bar_address(self, number: int) -> int:
        """Address that software gave BAR `number`, 0 at first; 6 is the expansion ROM."""
        if number == ROM_BAR:
            return self.header.peek(self._rom) & ~0x7FF
        return self.bars.address(number)

    def bar_at(self, address: int, *, io: bool = False) -> tuple[int, int] | None:
        """Find the (BAR, offset) that claims an address now."""
        if not (self.io_enabled if io else self.memory_enabled):
            return None
        found = self.bars.find(address, io=io)
        if found is None and not io and RomAddress(self.header.peek(self._rom)).ENABLE:
            offset = address - self.bar_address(ROM_BAR)
            found = (ROM_BAR, offset) if 0 <= offset < self.rom_size else None
        return found

    def unsupported_request(self) -> None:
        """Record that a request reached the card which none of its functions supports.

        Spec: PCI Express Base Specification, 6.2.3.2.4.1 (advisory non-fatal errors).
        """
        if Pcie not in self:
            return
        pcie, fatal, cause = self[Pcie], False, UncorrectableError.UNSUPPORTED_REQUEST.mask
        if Aer in self:
            aer = self[Aer]
            fatal = bool(aer.peek(Aer.UE_SEVERITY) & cause)
            advisory = CorrectableError.ADVISORY_NON_FATAL.mask
            if not fatal:
                aer.poke(Aer.CE_STATUS, 0, aer.peek(Aer.CE_STATUS) | advisory)
            if fatal or not aer.peek(Aer.CE_MASK) & advisory:
                aer.poke(Aer.UE_STATUS, 0, aer.peek(Aer.UE_STATUS) | cause)
        seen = DevSta.FATAL.mask if fatal else DevSta.CORRECTABLE.mask
        pcie.poke(Pcie.DEVSTA, 0, pcie.peek(Pcie.DEVSTA) | seen | DevSta.UNSUPPORTED_REQUEST.mask)


class _Power(Handlers):
    """Power states: D1 and D2 are not offered; leaving D3hot resets a function that says so."""

    def __init__(self, function: Function) -> None:
        self._function = function

    @on_write(Pm.PMCSR)
    def _pmcsr(self, index: int, written: int, old: int) -> None:
        file = self._function[Pm]
        value, before = PmControl(file.peek(Pm.PMCSR)), PmControl(old)
        if value.STATE not in (D0, D3HOT):
            file.poke(Pm.PMCSR, 0, value.replace(STATE=before.STATE).value)
        elif before.STATE == D3HOT and value.STATE == D0 and not value.NO_SOFT_RESET:
            self._function.reset(Reset.WAKE)


class _DeviceControl(Handlers):
    """Initiate Function Level Reset."""

    def __init__(self, function: Function) -> None:
        self._function = function

    @on_write(Pcie.DEVCTL)
    def _devctl(self, index: int, written: int, old: int) -> None:
        capable = DevCap(self._function[Pcie].peek(Pcie.DEVCAP)).FLR
        if capable and DevCtl(written).FLR:
            self._function.reset(Reset.FLR)
