"""Size BARs and place them: the address space of cards, behind the windows of their ports.

Every port gets one memory window, whole megabytes of 32-bit space, and one I/O window of 4 KiB steps. Inside, the
largest BAR comes first, so that each is aligned to its size without gaps. A PF's VF BAR takes room for all the VFs it
can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from virtfn.hw.bits import Decl
from virtfn.hw.pci import ROM_BAR, Address, Command, SrIov, Type0, Type1, Window
from virtfn.hw.types import Rid, format_rid
from virtfn.iovm.walk import ConfigBus, Registers, SrIovView
from virtfn.machine.ports import VirtfnError

__all__ = ["Range", "Windows", "place", "size_bars"]

MIB = 1 << 20
IO_STEP = 4096
Placeable = tuple[Rid, bool, list["Range"], list["Range"], int]


@dataclass(slots=True)
class Range:
    """A BAR and its place. bar: number of its first register, 6 for the ROM; address 0: none given yet."""

    bar: int
    size: int
    wide: bool = False
    io: bool = False
    prefetchable: bool = False
    address: int = 0

    def part(self, n: int) -> Range:
        """Cut out the slice of VF `n`."""
        return replace(self, address=self.address + n * self.size)


@dataclass(frozen=True, slots=True)
class Windows:
    """Address space that the host gives to cards, first and past the last address."""

    memory: tuple[int, int] = (0xC000_0000, 0xFEC0_0000)
    io: tuple[int, int] = (0x1000, 0x1_0000)


def size_bars(regs: Registers, bars: Decl, rom: Decl | None) -> list[Range]:
    """Size a row of BARs, and a ROM, by writing ones; what stood there before is put back."""
    found: list[Range] = []
    i = 0
    while i < bars.count:
        low = _probe(regs, bars, i)
        kind = Address(low)
        wide = not kind.IO and kind.MEM_TYPE == 2 and i + 1 < bars.count
        mask = low & (0xFFFFFFFC if kind.IO else 0xFFFFFFF0)
        if wide:
            mask |= _probe(regs, bars, i + 1) << 32
        elif mask:
            # A BAR may leave the upper half of I/O addresses out.
            mask |= 0xFFFFFFFF_00000000 | (0xFFFF0000 if kind.IO else 0)
        if mask:
            size = (mask & -mask) if wide else (~mask & 0xFFFFFFFF) + 1
            found.append(Range(i, size, wide, bool(kind.IO), bool(kind.PREFETCHABLE)))
        i += 2 if wide else 1
    if rom is not None:
        mask = _probe(regs, rom, 0) & ~0x7FF
        if mask:
            found.append(Range(ROM_BAR, mask & -mask))
    return found


def _probe(regs: Registers, decl: Decl, index: int) -> int:
    before = regs.get(decl, index)
    regs.set(decl, 0xFFFFFFFE if decl.name == "ROM" else 0xFFFFFFFF, index)
    sized = regs.get(decl, index)
    regs.set(decl, before, index)
    return sized


def place(bus: ConfigBus, windows: Windows, functions: Sequence[Placeable]) -> None:
    """Give every BAR an address and open the ports' windows.

    functions: (routing ID, bridge, header BARs, VF BARs, TotalVFs) of all of them. Raises VirtfnError (ENOMEM) when
    address space runs out.
    """
    memory, io = windows.memory[0], windows.io[0]
    for rid, is_bridge, bars, _, _ in functions:
        if is_bridge:
            header = Registers(bus, rid)
            below = range(header.get(Type1.SECONDARY), header.get(Type1.SUBORDINATE) + 1)
            cards = [f for f in functions if f[0] >> 8 in below and not f[1]]
            memory_end = _fill(bus, cards, memory, io=False)
            io_end = _fill(bus, cards, io, io=True)
            if memory_end > windows.memory[1] or io_end > windows.io[1]:
                raise VirtfnError(f"no address space left for the cards below {format_rid(rid)}", errno_name="ENOMEM")
            memory_end, io_end = _up(memory_end, MIB), _up(io_end, IO_STEP)
            _open(header, (memory, memory_end), (io, io_end))
            memory, io = memory_end, io_end
        elif rid >> 8 == 0 and bars:
            memory = _fill(bus, [f for f in functions if f[0] == rid], memory, io=False)
            memory = _up(memory, MIB)


def _fill(bus: ConfigBus, cards: Sequence[Placeable], start: int, *, io: bool) -> int:
    """Place the BARs of one space from `start` on, largest first; return the end."""
    wanted: list[tuple[int, Range, Registers, Decl]] = []
    for rid, _, bars, vf_bars, total in cards:
        header, rom = Registers(bus, rid), {ROM_BAR: Type0.ROM}
        wanted += [(bar.size, bar, header, rom.get(bar.bar, Type0.BAR)) for bar in bars if bar.io == io]
        if vf_bars and not io:
            regs = SrIovView(bus, rid).regs
            wanted += [(bar.size * total, bar, regs, SrIov.VF_BAR) for bar in vf_bars]
    at = start
    for room, bar, regs, decl in sorted(wanted, key=lambda w: -w[1].size):
        at = _up(at, bar.size)
        bar.address = at
        index = 0 if bar.bar == ROM_BAR else bar.bar
        regs.set(decl, at & 0xFFFFFFFF, index)
        if bar.wide:
            regs.set(decl, at >> 32, index + 1)
        at += room
    return at


def _open(header: Registers, memory: tuple[int, int], io: tuple[int, int]) -> None:
    """Program a port's windows; an empty one is closed by a base above its limit."""
    # The whole megabytes from the first to the last; closed: base FFF, limit 0.
    first, last = (memory[0] // MIB, memory[1] // MIB - 1) if memory[1] > memory[0] else (0xFFF, 0)
    header.set(Type1.MEMORY_BASE, Window.of(BITS=first).value)
    header.set(Type1.MEMORY_LIMIT, Window.of(BITS=last).value)
    header.set(Type1.PREFETCH_BASE, 0xFFF0)
    header.set(Type1.PREFETCH_LIMIT, 0)
    low, high = (io[0] >> 12, (io[1] >> 12) - 1) if io[1] > io[0] else (0xF, 0)
    header.set(Type1.IO_BASE, low << 4)
    header.set(Type1.IO_LIMIT, high << 4)
    header.set(Type1.PREFETCH_BASE_HIGH, 0)
    header.set(Type1.PREFETCH_LIMIT_HIGH, 0)
    header.set(Type0.COMMAND, header.get(Type0.COMMAND) | Command.of(IO=1, MEM=1, BME=1).value)


def _up(address: int, step: int) -> int:
    return -(-address // step) * step
