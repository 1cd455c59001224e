"""A PF given whole to a guest with the VFs that it can have: the guest is a host of its own, which makes them.

    PF   as a PF without VFs (`whole.py`), and SR-IOV and ARI besides. Of the SR-IOV capability, VF BARs, page size and
         ARI Capable Hierarchy are the guest's alone; NumVFs, VF Enable and VF MSE reach the card
    VF   vendor and device ID FFFF, as every VF has; what a VMM emulates of its BARs; its own capabilities

The card keeps the routing IDs that PCIM gave its VFs; the guest finds them where First VF Offset leads with ARI, on the
PF's own bus. A VF that is not enabled shows what it had when it was found, and takes no write.
Spec: PCI Express Base Specification, 9.3.3 and 9.3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from virtfn.devices.pci import SrIovUnit
from virtfn.hw.bits import Decl
from virtfn.hw.pci import CONFIG_SIZE, NO_DEVICE, Ats, Command, Msi, PageRequests, SrIov, Type0
from virtfn.hw.types import Ps, Rid, format_rid
from virtfn.iovm.pcim import Found, FoundVf
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.iovm.walk import ConfigBus, SrIovView
from virtfn.iovm.whole import WholeConfig
from virtfn.machine.bars import BarShape
from virtfn.machine.function import Capability, Function, all_ones, reaches
from virtfn.machine.ports import Reset, VirtfnError

__all__ = ["NestedPf", "NestedVf"]

_SHOWN = (
    SrIov.CAPABILITIES,
    SrIov.INITIAL_VFS,
    SrIov.TOTAL_VFS,
    SrIov.DEPENDENCY_LINK,
    SrIov.FIRST_VF_OFFSET,
    SrIov.VF_STRIDE,
    SrIov.VF_DEVICE_ID,
    SrIov.SUPPORTED_PAGE_SIZES,
)
_CAPABILITY = range(0x40)


class NestedPf(WholeConfig):
    """The PF of such a card; a `PfSpace`. Raises VirtfnError if it has no SR-IOV, or its VFs do not fit on its bus."""

    HIDDEN = (Msi, Ats, PageRequests)

    def __init__(self, bus: ConfigBus, found: Found, now: Callable[[], Ps]) -> None:
        super().__init__(bus, found)
        self.on_vfs: list[Callable[[int], None]] = []
        self._card = SrIovView(bus, found.rid)
        regs = self._card.regs
        self._at = regs.base
        without, with_ari = self._offsets()
        values: dict[Decl, int] = {decl: regs.get(decl) for decl in _SHOWN}
        self._capability = Function(Type0, [Capability(SrIov, self._at, values)], values={})
        shapes = {bar.bar: BarShape(bar.size, wide=bar.wide, prefetchable=bar.prefetchable) for bar in found.vf_bars}
        self._unit = SrIovUnit(self._capability, shapes, first_vf_offset=(without, with_ari), now=now)
        self._unit.on_change.append(self._carry)
        self._header.on_reset.append(self._capability.reset)
        self.first_function, self.stride = with_ari, regs.get(SrIov.VF_STRIDE)
        if self.function_of(found.total_vfs - 1) > 0xFF:
            raise VirtfnError(f"{format_rid(found.rid)}: its VFs do not fit on its bus", errno_name="EOPNOTSUPP")

    def _offsets(self) -> tuple[int, int]:
        """Learn First VF Offset without and with ARI Capable Hierarchy; the bit stays as PCIM set it."""
        regs, before, found = self._card.regs, self._card.control, []
        for ari in (0, 1):
            regs.set(SrIov.CONTROL, before.replace(ARI=ari).value)
            found.append(regs.get(SrIov.FIRST_VF_OFFSET))
        regs.set(SrIov.CONTROL, before.value)
        return found[0], found[1]

    @property
    def vfs(self) -> int:
        """VFs that the guest has enabled."""
        return self._unit.count

    def function_of(self, n: int) -> int:
        """Return the function number of VF `n`, where a guest with ARI looks for it on the PF's bus."""
        return (self.vf.rid & 0xFF) + self.first_function + n * self.stride

    def vf_bar(self, n: int, bar: int) -> int:
        """Return the address that the guest gave a BAR of VF `n`; 0 before it gave one."""
        return self._unit.bar_address(n, bar) if self._unit.bars.address(bar) else 0

    def vf_memory(self, n: int) -> bool:
        """Tell whether the BARs of VF `n` are to answer: it is enabled, and memory space with it."""
        return n < self._unit.count and bool(self._unit.control.MSE)

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes, as of every virtual configuration space."""
        if self._is_capability(offset):
            return self._capability.config_read(offset, size)
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes, as of every virtual configuration space."""
        if not self._is_capability(offset):
            super().write(offset, size, value)
            if self._unit.count and not self._card.control.VFE:
                self._capability.reset(Reset.FLR)  # what was written has reset the card, by whatever register
            return
        if reaches(offset, size):
            self._capability.config_write(offset, size, value & all_ones(size))
            for hear in self.on_change:
                hear()

    def _is_capability(self, offset: int) -> bool:
        """Tell whether that is in the SR-IOV capability; its first word, which leads on, is the card's."""
        return offset - self._at in _CAPABILITY[4:]

    def _carry(self, count: int) -> None:
        """Enable as many VFs of the card, or none."""
        regs, control = self._card.regs, self._card.control
        if count:
            regs.set(SrIov.NUM_VFS, count)
        if count or control.VFE:
            regs.set(SrIov.CONTROL, control.replace(VFE=count > 0, MSE=count > 0).value)
        for hear in self.on_vfs:
            hear(count)


class _Kept:
    """Configuration accesses to a VF that comes and goes, from when it is there. there: tells whether it is now."""

    def __init__(self, bus: ConfigBus, rid: Rid, there: Callable[[], bool]) -> None:
        self._bus = bus
        words = (bus.config_read(rid, at, 4).to_bytes(4, "little") for at in range(0, CONFIG_SIZE, 4))
        self._kept = b"".join(words)
        self._there = there

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; of a VF that is not there, or settles, what it had."""
        if self._answers(rid):
            return self._bus.config_read(rid, offset, size)
        return int.from_bytes(self._kept[offset : offset + size], "little")

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes; lost if the VF is not there."""
        if self._answers(rid):
            self._bus.config_write(rid, offset, size, value)

    def _answers(self, rid: Rid) -> bool:
        return self._there() and self._bus.config_read(rid, Type0.CLASS_REVISION.offset, 4) != 0xFFFFFFFF


class NestedVf(VirtualConfig):
    """A VF of such a card, made while it is enabled; a `VfSpace`.

    told, ours: as there. A Command that is written for the guest may come just after one of its own, and be older: its
    Bus Master Enable does not count. Memory Space Enable reads as VF MSE says: who writes back what he reads, closes no
    BAR. A reset of the VF leaves it and the BARs alone, since they belong to the PF.
    """

    def __init__(self, bus: ConfigBus, vf: FoundVf, pf: NestedPf) -> None:
        self._pf = pf
        self.told, self.ours = Command(0), -1
        kept = _Kept(bus, vf.rid, lambda: vf.index < pf.vfs)
        super().__init__(kept, replace(vf, vendor_id=NO_DEVICE, device_id=NO_DEVICE))
        self.function = pf.function_of(vf.index)

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes, as of every virtual configuration space."""
        value = super().read(offset, size)
        if offset == Type0.COMMAND.offset and self._pf.vf_memory(self.vf.index):
            value |= Command.MEM.mask
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes, as of every virtual configuration space."""
        if offset == Type0.COMMAND.offset and size in (1, 2, 4):
            kept = 0xFF00 if size == 1 else 0
            self.told = Command(self.told.value & kept | value & 0xFFFF & ~kept)
            if self.told.value == self.ours:
                value = value & ~Command.BME.mask | Command.of(BME=self.bus_master).value
        super().write(offset, size, value)

    def reset(self) -> None:
        """Forget all that was told, as the VMM does when the machine is reset."""
        super().reset()
        self.told = Command(0)

    def _reset_header(self) -> None:
        """Leave what is the PF's alone."""
