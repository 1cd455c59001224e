"""The virtual configuration space of a VF: what a guest finds, an ordinary type 0 function.

    000-03f  virtual: vendor and VF device ID, 64-bit BARs that the guest places, Command with a virtual MEM
    040-fff  the VF's own capabilities, passed through; but for ATS, which is the host's alone, and not in the list

Of Command only Bus Master Enable reaches the VF. A guest's FLR reaches the VF and resets the virtual header with it.
Every write to every offset is safe: the VF's space holds nothing that belongs to another function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from virtfn.hw.bits import Decl, RegMap
from virtfn.hw.pci import (
    EXTENDED_START,
    HEADER_SIZE,
    Ats,
    AtsControl,
    ClassRevision,
    Command,
    DevCap,
    DevCtl,
    ExtendedHeader,
    Pcie,
    Type0,
    capability_id,
)
from virtfn.hw.types import Rid, format_rid
from virtfn.iovm.pcim import FoundVf
from virtfn.iovm.walk import ConfigBus, Registers, capability_of, offsets
from virtfn.machine.bars import BarShape
from virtfn.machine.function import Function, all_ones, reaches
from virtfn.machine.ports import Reset, VirtfnError

__all__ = ["VirtualConfig"]


def _left_out(bus: ConfigBus, rid: Rid, hidden: tuple[type[RegMap], ...]) -> tuple[list[range], dict[int, int]]:
    """Find where hidden capabilities lie, and what leads past them: offset of a capability, offset of the next."""
    sizes = {capability_id(regs): max(decl.at(decl.count - 1) + decl.size for decl in regs.DECLS) for regs in hidden}
    closed: list[range] = []
    links: dict[int, int] = {}
    listed = offsets(bus, rid)
    for kind in (False, True):
        chain = {at: sizes.get((number, extended)) for number, at, extended in listed if extended == kind}
        closed += [range(at, at + size) for at, size in chain.items() if size is not None]
        shown = [at for at, size in chain.items() if size is None]
        own = dict(zip(chain, [*list(chain)[1:], 0], strict=True))
        links |= {at: to for at, to in zip(shown, [*shown[1:], 0], strict=True) if to != own[at]}
    return closed, links


class VirtualConfig:
    """A VF as its guest sees it; a `ConfigSpace`. HIDDEN: capabilities that are not in the list, and read 0.

    `on_change` is called after each write, which may have moved a BAR, opened or closed it, or reset the VF.
    """

    HIDDEN: ClassVar[tuple[type[RegMap], ...]] = (Ats,)

    def __init__(self, bus: ConfigBus, vf: FoundVf) -> None:
        self.vf = vf
        self.on_change: list[Callable[[], None]] = []
        self._bus = bus
        self._own = Registers(bus, vf.rid)
        self._first_capability = self._own.get(Type0.CAP_POINTER)
        values: Mapping[Decl, int] = {
            Type0.VENDOR_ID: vf.vendor_id,
            Type0.DEVICE_ID: vf.device_id,
            Type0.CLASS_REVISION: ClassRevision.of(CLASS=vf.class_code, REVISION=vf.revision).value,
            Type0.SUBSYSTEM_VENDOR_ID: self._own.get(Type0.SUBSYSTEM_VENDOR_ID),
            Type0.SUBSYSTEM_ID: self._own.get(Type0.SUBSYSTEM_ID),
        }
        shapes = {r.bar: BarShape(r.size, wide=r.wide, prefetchable=r.prefetchable) for r in vf.bars}
        allowed = Command.of(MEM=1, BME=1, INTX_DISABLE=1).value
        self._header = Function(Type0, values=values, writable={Type0.COMMAND: allowed}, bars=shapes)
        pcie = capability_of(bus, vf.rid, Pcie)
        self._ats = capability_of(bus, vf.rid, Ats)
        self._ats_enabled = False
        self._closed, self._links = _left_out(bus, vf.rid, self.HIDDEN)
        self._flr_byte = None
        if pcie is not None and DevCap(pcie.get(Pcie.DEVCAP)).FLR:
            self._flr_byte = pcie.base + Pcie.DEVCTL.offset + 1

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; all ones where no bus can carry the access, and everywhere once the VF is gone."""
        if not reaches(offset, size):
            return all_ones(size if size in (1, 2, 4) else 4)
        if offset >= HEADER_SIZE:
            return self._read_own(offset, size)
        if not self._take_over():
            return all_ones(size)
        return self._header.config_read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes; ignored where no bus can carry the access."""
        if not reaches(offset, size):
            return
        value &= all_ones(size)
        if offset >= HEADER_SIZE:
            if not self._is_hidden(offset):
                self._bus.config_write(self.vf.rid, offset, size, value)
            if self._starts_flr(offset, size, value):
                self._reset_header()
                self.restore_ats()
        else:
            self._take_over()
            self._header.config_write(offset, size, value)
            if offset & ~3 == Type0.COMMAND.offset:
                self._pass_on(offset, size, value)
        for hear in self.on_change:
            hear()

    def _reset_header(self) -> None:
        """Follow a reset of the function by its guest."""
        self._header.reset(Reset.FLR)

    def reset(self) -> None:
        """Forget what a guest set in the virtual header, as power-on does; the VF itself is not touched."""
        self._header.reset(Reset.POWER_ON)

    @property
    def has_ats(self) -> bool:
        """Whether the VF can have a device TLB."""
        return self._ats is not None

    def set_ats(self, on: bool) -> None:
        """Let the VF cache translations, or not."""
        self._ats_enabled = on
        self.restore_ats()

    def restore_ats(self) -> None:
        """Put ATS back as it was before the VF was reset."""
        if self._ats is not None:
            self._ats.set(Ats.CONTROL, AtsControl.of(ENABLE=int(self._ats_enabled)).value)

    def _is_hidden(self, offset: int) -> bool:
        return any(offset in part for part in self._closed)

    def _read_own(self, offset: int, size: int) -> int:
        """Read the function's own capabilities, past those that are hidden."""
        if self._is_hidden(offset):
            return 0
        value = self._bus.config_read(self.vf.rid, offset, size)
        at = offset & ~3
        if at not in self._links or value == all_ones(size):
            return value
        word = self._bus.config_read(self.vf.rid, at, 4)
        if at >= EXTENDED_START:
            word = ExtendedHeader(word).replace(NEXT=self._links[at]).value
        else:
            word = word & ~0xFF00 | self._links[at] << 8
        return word >> 8 * (offset - at) & all_ones(size)

    def place(self, bar: int, address: int) -> None:
        """Give a BAR an address from outside the guest, as firmware would.

        Raises VirtfnError if there is no such BAR.
        """
        if bar not in self._header.bars.shapes:
            raise VirtfnError(f"{format_rid(self.vf.rid)} has no BAR {bar}", errno_name="EINVAL")
        self._header.bars.place(bar, address)

    @property
    def bars(self) -> Mapping[int, BarShape]:
        """The BARs by number."""
        return self._header.bars.shapes

    @property
    def memory_enabled(self) -> bool:
        """Whether the guest let the BARs answer."""
        return self._header.memory_enabled

    @property
    def bus_master(self) -> bool:
        """Whether the VF itself may master the bus."""
        value = self._own.get(Type0.COMMAND)
        return value != all_ones(2) and bool(Command(value).BME)

    def bar_address(self, bar: int) -> int:
        """Guest physical address of a BAR; 0 before the guest places it."""
        return self._header.bar_address(bar)

    def bar_at(self, address: int) -> tuple[int, int] | None:
        """Find the (BAR, offset) that claims a guest physical address now."""
        return self._header.bar_at(address)

    def _take_over(self) -> bool:
        """Show the VF's own Bus Master Enable and status in the virtual header; False if the VF is gone."""
        header = self._header.header
        word = self._bus.config_read(self.vf.rid, Type0.COMMAND.offset, 4)  # the status is its upper half
        if word == all_ones(4):
            return False
        header.poke(Type0.COMMAND, 0, self._header.command.replace(BME=Command(word & 0xFFFF).BME).value)
        header.poke(Type0.STATUS, 0, word >> 16)
        header.poke(Type0.CAP_POINTER, 0, self._first_capability)
        return True

    def _pass_on(self, offset: int, size: int, value: int) -> None:
        """Carry Bus Master Enable, and status bits to clear, to the VF."""
        wanted = self._header.command.BME
        if wanted != self.bus_master:
            self._own.set(Type0.COMMAND, Command.of(BME=wanted).value)
        lanes = value << (offset & 3) * 8
        if lanes >> 16:
            self._own.set(Type0.STATUS, lanes >> 16)

    def _starts_flr(self, offset: int, size: int, value: int) -> bool:
        at = self._flr_byte
        if at is None or not offset <= at < offset + size:
            return False
        return bool(value >> (at - offset) * 8 & DevCtl.FLR.mask >> 8)
