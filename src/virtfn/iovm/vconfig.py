"""The virtual configuration space of a VF: what a guest finds, an ordinary type 0 function.

    000-03f  virtual: vendor and VF device ID, 64-bit BARs that the guest places, Command with a virtual MEM
    040-fff  the VF's own capabilities, passed through; but for ATS, which is the host's alone, and not in the list

Of Command only Bus Master Enable reaches the VF. A guest's FLR reaches the VF and resets the virtual header with it.
Every write to every offset is safe: the VF's space holds nothing that belongs to another function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from virtfn.hw.bits import Decl
from virtfn.hw.pci import (
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
)
from virtfn.hw.types import Rid, format_rid
from virtfn.iovm.pcim import FoundVf
from virtfn.iovm.walk import ConfigBus, Registers, capability_of, offsets
from virtfn.machine.bars import BarShape
from virtfn.machine.function import Function, all_ones, reaches
from virtfn.machine.ports import Reset, VirtfnError

__all__ = ["VirtualConfig"]


_ATS_BYTES = 8


def _links_around(bus: ConfigBus, rid: Rid, capability: Registers | None) -> tuple[int, int]:
    """Find which extended capability leads to one, and where that one leads; (0, 0) if nothing does."""
    listed = [at for _, at, extended in offsets(bus, rid) if extended]
    if capability is None or capability.base not in listed[1:]:
        return 0, 0
    i = listed.index(capability.base)
    return listed[i - 1], listed[i + 1] if i + 1 < len(listed) else 0


class VirtualConfig:
    """A VF as its guest sees it; a `ConfigSpace`.

    `on_change` is called after each write, which may have moved a BAR, opened or closed it, or reset the VF.
    """

    def __init__(self, bus: ConfigBus, vf: FoundVf) -> None:
        self.vf = vf
        self.on_change: list[Callable[[], None]] = []
        self._bus = bus
        self._own = Registers(bus, vf.rid)
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
        self._ats_links = _links_around(bus, vf.rid, self._ats)
        self._ats_enabled = False
        self._flr_byte = None
        if pcie is not None and DevCap(pcie.get(Pcie.DEVCAP)).FLR:
            self._flr_byte = pcie.base + Pcie.DEVCTL.offset + 1

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; all ones where no bus can carry the access, and everywhere once the VF is gone."""
        if not reaches(offset, size):
            return all_ones(size if size in (1, 2, 4) else 4)
        if offset >= HEADER_SIZE:
            value = self._bus.config_read(self.vf.rid, offset, size)
            return value if self._ats is None else self._without_ats(offset, size, value)
        if not self._take_over():
            return all_ones(size)
        return self._header.config_read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes; ignored where no bus can carry the access."""
        if not reaches(offset, size):
            return
        value &= all_ones(size)
        if offset >= HEADER_SIZE:
            if not self._is_ats(offset):
                self._bus.config_write(self.vf.rid, offset, size, value)
            if self._starts_flr(offset, size, value):
                self._header.reset(Reset.FLR)
                self.restore_ats()
        else:
            self._take_over()
            self._header.config_write(offset, size, value)
            if offset & ~3 == Type0.COMMAND.offset:
                self._pass_on(offset, size, value)
        for hear in self.on_change:
            hear()

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

    def _is_ats(self, offset: int) -> bool:
        return self._ats is not None and 0 <= offset - self._ats.base < _ATS_BYTES

    def _without_ats(self, offset: int, size: int, value: int) -> int:
        """Leave ATS out of what was read."""
        if self._is_ats(offset):
            return 0
        before, following = self._ats_links
        if offset & ~3 != before or value == all_ones(size):
            return value
        header = ExtendedHeader(self._bus.config_read(self.vf.rid, before, 4)).replace(NEXT=following)
        return header.value >> 8 * (offset & 3) & all_ones(size)

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
        """Show the VF's own Bus Master Enable, status and list in the virtual header; False if the VF is gone."""
        header = self._header.header
        status = self._own.get(Type0.STATUS)
        if status == all_ones(2):
            return False
        header.poke(Type0.COMMAND, 0, self._header.command.replace(BME=self.bus_master).value)
        header.poke(Type0.STATUS, 0, status)
        header.poke(Type0.CAP_POINTER, 0, self._own.get(Type0.CAP_POINTER))
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
