"""The SR-IOV capability at work: how many VFs there are, where they are, and which memory is theirs.

    VF n:  routing ID = PF's + First VF Offset + n * VF Stride
           BAR b      = VF BAR b + n * size, where size is at least the system page size

States: disabled (VF Enable clear: NumVFs, the page size and ARI Capable Hierarchy may change), settling (VF Enable set,
less than 100 ms ago: VFs do not answer), enabled. Spec: PCI Express Base Specification, 9.2 and 9.3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from virtfn.hw.pci import SrIov, SrIovControl
from virtfn.hw.types import Ps, Rid
from virtfn.machine.bars import Bars, BarShape
from virtfn.machine.clock import MS_PS
from virtfn.machine.function import Function
from virtfn.machine.ports import Reset
from virtfn.machine.regfile import Handlers, on_write

__all__ = ["VF_SETTLE_PS", "SrIovUnit"]

VF_SETTLE_PS = 100 * MS_PS


class SrIovUnit(Handlers):
    """What one PF's SR-IOV capability does.

    vf_bars: shape of one VF's BARs. first_vf_offset: without and with ARI Capable Hierarchy, a bit that only the
    `lowest` PF of a card has; the others follow it. `on_change` hears the number of VFs whenever it changes.
    """

    def __init__(
        self,
        function: Function,
        vf_bars: Mapping[int, BarShape],
        *,
        first_vf_offset: tuple[int, int],
        now: Callable[[], Ps],
        lowest: SrIovUnit | None = None,
    ) -> None:
        self.function = function
        self.on_change: list[Callable[[int], None]] = []
        self.count = 0
        self._now = now
        self._first_vf_offset = first_vf_offset
        self._followers: list[SrIovUnit] = []
        self._ready_at = 0
        self._file = function[SrIov]
        self.bars = Bars(self._file, SrIov.VF_BAR, vf_bars)
        self._file.bind(self)
        if lowest is not None:
            lowest._followers.append(self)
            self._file.limit(SrIov.CONTROL, 0, SrIovControl.VFE.mask | SrIovControl.MSE.mask)
        self._lowest = lowest or self
        self._settle_registers()
        function.on_reset.append(self._reset)

    @property
    def control(self) -> SrIovControl:
        """The SR-IOV Control register."""
        return SrIovControl(self._file.peek(SrIov.CONTROL))

    @property
    def total_vfs(self) -> int:
        """VFs that the PF can have."""
        return self._file.peek(SrIov.TOTAL_VFS)

    @property
    def page_size(self) -> int:
        """System page size in bytes."""
        return self._file.peek(SrIov.SYSTEM_PAGE_SIZE) << 12

    @property
    def memory_enabled(self) -> bool:
        """Whether the VFs' BARs answer: VF Enable and VF Memory Space Enable."""
        control = self.control
        return bool(control.VFE and control.MSE) and self.ready and self.function.power_state == 0

    @property
    def ready(self) -> bool:
        """Whether VFs answer: enabled, and settled."""
        return self.count > 0 and self._now() >= self._ready_at

    def rid_of(self, pf: Rid, n: int) -> Rid:
        """Compute the routing ID of VF `n` of the PF at `pf`."""
        offset, stride = self._file.peek(SrIov.FIRST_VF_OFFSET), self._file.peek(SrIov.VF_STRIDE)
        return Rid(pf + offset + n * stride & 0xFFFF)

    def index_of(self, pf: Rid, rid: Rid) -> int | None:
        """Tell which VF of the PF at `pf` has routing ID `rid`; None if no enabled one has."""
        n, rest = divmod(rid - self.rid_of(pf, 0) & 0xFFFF, self._file.peek(SrIov.VF_STRIDE) or 1)
        return n if rest == 0 and n < self.count else None

    def bar_address(self, n: int, bar: int) -> int:
        """Address of a BAR of VF `n`."""
        return self.bars.address(bar) + n * self.bars.size(bar)

    def bar_at(self, address: int) -> tuple[int, int, int] | None:
        """Find the (VF, BAR, offset) that claims an address of memory space now."""
        found = self.bars.find(address, copies=self.count) if self.memory_enabled else None
        if found is None:
            return None
        bar, offset = found
        size = self.bars.size(bar)
        return offset // size, bar, offset % size

    @on_write(SrIov.CONTROL)
    def _control_written(self, index: int, written: int, old: int) -> None:
        value, before = self.control, SrIovControl(old)
        if before.VFE and value.VFE and value.ARI != before.ARI:
            value = value.replace(ARI=before.ARI)
        wanted = self._file.peek(SrIov.NUM_VFS)
        if value.VFE and not before.VFE and wanted > self.total_vfs:
            value = value.replace(VFE=0)
        self._file.poke(SrIov.CONTROL, 0, value.value)
        if value.VFE and not before.VFE:
            self._follow_hierarchy()
            self._ready_at = self._now() + VF_SETTLE_PS
            self._set_count(wanted)
        elif before.VFE and not value.VFE:
            self._set_count(0)
        self._settle_registers()

    @on_write(SrIov.NUM_VFS)
    def _num_vfs_written(self, index: int, written: int, old: int) -> None:
        if self.control.VFE:
            self._file.poke(SrIov.NUM_VFS, 0, old)

    @on_write(SrIov.SYSTEM_PAGE_SIZE)
    def _page_size_written(self, index: int, written: int, old: int) -> None:
        value = self._file.peek(SrIov.SYSTEM_PAGE_SIZE)
        one_bit = value and not value & (value - 1)
        if self.control.VFE or not one_bit or not value & self._file.peek(SrIov.SUPPORTED_PAGE_SIZES):
            self._file.poke(SrIov.SYSTEM_PAGE_SIZE, 0, old)
        else:
            self.bars.resize(self.page_size)

    def _settle_registers(self) -> None:
        """Let First VF Offset follow ARI Capable Hierarchy in each PF; it must hold still while VFs are enabled."""
        for unit in (self, *self._followers):
            if not unit.control.VFE:
                unit._follow_hierarchy()

    def _follow_hierarchy(self) -> None:
        self._file.poke(SrIov.FIRST_VF_OFFSET, 0, self._first_vf_offset[self._lowest.control.ARI])

    def _set_count(self, count: int) -> None:
        if count != self.count:
            self.count = count
            for hear in self.on_change:
                hear(count)

    def _reset(self, kind: Reset) -> None:
        self.bars.reset(self.page_size)
        self._settle_registers()
        self._set_count(0)
