"""PCIM: scan, number and place as an operating system does, and bring VFs to light that no scan can see.

    scan        buses depth first, room for VF buses; BARs sized by writing ones, largest placed first, windows opened
    enable_vfs  page size, VF BARs checked, NumVFs, VF Enable and VF MSE, 100 ms; VFs by first offset and stride
    disable_vfs VF Enable and VF MSE cleared, 1 s, NumVFs 0

It speaks configuration accesses and reads a clock; it knows no device.
Spec: PCI Express Base Specification, 9.2.1 and 9.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from virtfn.hw.pci import (
    PAGE_SIZES_REQUIRED,
    Ari,
    ClassRevision,
    Command,
    DevCap2,
    DevCtl2,
    HeaderType,
    Pcie,
    SrIov,
    SrIovControl,
    Type0,
    Type1,
)
from virtfn.hw.types import Rid, format_rid
from virtfn.iovm.place import Range, Windows, place, size_bars
from virtfn.iovm.walk import (
    ConfigBus,
    Registers,
    SrIovView,
    capability_of,
    function_numbers,
    present,
)
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["Found", "FoundVf", "Pcim"]

LAST_BUS = 255


@dataclass(slots=True)
class FoundVf:
    """A VF brought to light. bars: its own slices of the PF's VF BARs."""

    rid: Rid
    physfn: Rid
    index: int
    vendor_id: int
    device_id: int
    class_code: int
    revision: int
    bars: list[Range]


@dataclass(slots=True)
class Found:
    """A function that a scan found. bars: header BARs and ROM; vf_bars: a PF's, each the size of one VF's."""

    rid: Rid
    vendor_id: int
    device_id: int
    class_code: int
    revision: int
    is_bridge: bool
    bars: list[Range] = field(default_factory=list)
    vf_bars: list[Range] = field(default_factory=list)
    total_vfs: int = 0
    vfs: list[FoundVf] = field(default_factory=list)

    @property
    def is_pf(self) -> bool:
        """Whether the function can be cut into VFs."""
        return self.total_vfs > 0


class Pcim:
    """The PCI side of the host. ari: turn ARI forwarding on where port and card have it, and ARI Capable Hierarchy."""

    def __init__(self, bus: ConfigBus, clock: Clock, *, ari: bool = False, windows: Windows | None = None) -> None:
        self.bus = bus
        self._clock = clock
        self._ari = ari
        self._windows = windows or Windows()
        self._subordinate: dict[int, int] = {}
        self.functions: dict[Rid, Found] = {}

    def scan(self) -> list[Found]:
        """Number the buses, size and place every BAR, and return what was found, by routing ID.

        VFs that were enabled before are disabled. Raises VirtfnError when bus numbers or address space run out.
        """
        self.functions = {}
        self._subordinate = {}
        self._scan_bus(0, ari=False)
        found = sorted(self.functions.values(), key=lambda f: f.rid)
        place(self.bus, self._windows, [(f.rid, f.is_bridge, f.bars, f.vf_bars, f.total_vfs) for f in found])
        return found

    def pfs(self) -> list[Found]:
        """List the functions that can be cut into VFs."""
        return [f for f in self.functions.values() if f.is_pf]

    def enable_function(self, rid: Rid, *, bus_master: bool = True) -> None:
        """Let a function answer at its BARs, and master the bus, as its driver's probe would."""
        bits = Command.of(IO=1, MEM=1, BME=bus_master)
        header = Registers(self.bus, rid)
        header.set(Type0.COMMAND, header.get(Type0.COMMAND) | bits.value)

    def _scan_bus(self, number: int, *, ari: bool) -> int:
        """Scan one bus and all below it; return the highest bus number used."""
        highest = number
        first_pf = True
        for device in range(32 if number == 0 else 1):
            for rid in function_numbers(self.bus, number, device, ari=ari):
                found = self._identify(rid)
                self.functions[rid] = found
                if found.is_bridge:
                    highest = self._scan_bridge(rid, highest)
                elif capability_of(self.bus, rid, SrIov) is not None:
                    highest = max(highest, self._prepare_pf(found, ari=ari and first_pf))
                    first_pf = False
        return highest

    def _identify(self, rid: Rid) -> Found:
        header = Registers(self.bus, rid)
        identity = ClassRevision(header.get(Type0.CLASS_REVISION))
        bridge = HeaderType(header.get(Type0.HEADER_TYPE)).LAYOUT == 1
        # Nothing may answer at a BAR while ones stand in it.
        decoding = Command.of(IO=1, MEM=1).value
        header.set(Type0.COMMAND, header.get(Type0.COMMAND) & ~decoding)
        return Found(
            rid,
            header.get(Type0.VENDOR_ID),
            header.get(Type0.DEVICE_ID),
            identity.CLASS,
            identity.REVISION,
            bridge,
            size_bars(header, Type1.BAR if bridge else Type0.BAR, Type1.ROM if bridge else Type0.ROM),
        )

    def _scan_bridge(self, rid: Rid, highest: int) -> int:
        secondary = highest + 1
        if secondary > LAST_BUS:
            raise VirtfnError(f"no bus number left below {format_rid(rid)}", errno_name="ENOSPC")
        header = Registers(self.bus, rid)
        header.set(Type1.PRIMARY, rid >> 8)
        header.set(Type1.SECONDARY, secondary)
        header.set(Type1.SUBORDINATE, LAST_BUS)
        below = self._scan_bus(secondary, ari=self._forward_ari(rid, secondary))
        if below > LAST_BUS:
            raise VirtfnError(f"the VFs below {format_rid(rid)} need bus {below}", errno_name="ENOSPC")
        header.set(Type1.SUBORDINATE, below)
        self._subordinate[secondary] = below
        return below

    def _forward_ari(self, port: Rid, secondary: int) -> bool:
        """Turn ARI forwarding on or off in a port, and tell which; it must precede ARI Capable Hierarchy below it."""
        pcie = capability_of(self.bus, port, Pcie)
        if pcie is None or not DevCap2(pcie.get(Pcie.DEVCAP2)).ARI_FORWARDING:
            return False
        card = Rid(secondary << 8)
        wanted = self._ari and present(self.bus, card) and capability_of(self.bus, card, Ari) is not None
        control = DevCtl2(pcie.get(Pcie.DEVCTL2)).replace(ARI_FORWARDING=wanted)
        pcie.set(Pcie.DEVCTL2, control.value)
        return bool(DevCtl2(pcie.get(Pcie.DEVCTL2)).ARI_FORWARDING)

    def _prepare_pf(self, found: Found, *, ari: bool) -> int:
        """Learn what a PF can be cut into; return the highest bus that its VFs can need."""
        view = SrIovView(self.bus, found.rid)
        regs = view.regs
        if view.control.VFE:
            regs.set(SrIov.CONTROL, 0)
            self._clock.sleep(S_PS)
        regs.set(SrIov.CONTROL, SrIovControl.of(ARI=ari).value)
        supported = regs.get(SrIov.SUPPORTED_PAGE_SIZES) or PAGE_SIZES_REQUIRED
        # The host's pages are 4 KiB, which bit 0 stands for: the lowest supported size is never too small.
        regs.set(SrIov.SYSTEM_PAGE_SIZE, supported & -supported)
        found.vf_bars = size_bars(regs, SrIov.VF_BAR, None)
        found.total_vfs = regs.get(SrIov.TOTAL_VFS)
        highest = found.rid >> 8
        for n in range(1, found.total_vfs + 1):
            # Offset and stride may depend on NumVFs.
            regs.set(SrIov.NUM_VFS, n)
            highest = max(highest, view.rid_of(n - 1) >> 8)
        regs.set(SrIov.NUM_VFS, 0)
        return highest

    def enable_vfs(self, pf: Rid, n: int) -> list[FoundVf]:
        """Cut a PF into `n` VFs and return them.

        Raises VirtfnError: ENODEV not scanned, ENOSYS not a PF, EINVAL fewer than one, ERANGE too many, EBUSY already
        enabled, EIO bad capability or silent VF, ENOMEM no address space or no bus number.
        """
        found = self._pf(pf)
        view = SrIovView(self.bus, pf)
        self._check(found, view, n)
        regs, name = view.regs, format_rid(pf)
        regs.set(SrIov.NUM_VFS, n)
        last = view.rid_of(n - 1)
        try:
            offset, stride = regs.get(SrIov.FIRST_VF_OFFSET), regs.get(SrIov.VF_STRIDE)
            if offset == 0 or (n > 1 and stride == 0):
                raise VirtfnError(f"{name}: VFs would share routing IDs", errno_name="EIO")
            if last >> 8 > self._subordinate.get(pf >> 8, pf >> 8):
                raise VirtfnError(f"{name}: {n} VFs need bus {last >> 8:#x}, out of range", errno_name="ENOMEM")
            control = view.control.replace(VFE=1, MSE=1)
            regs.set(SrIov.CONTROL, control.value)
            self._clock.sleep(100 * MS_PS)
            if not view.control.VFE:
                raise VirtfnError(f"{name} refused to enable {n} VFs", errno_name="EIO")
            found.vfs = [self._bring_up(found, view, i) for i in range(n)]
        except VirtfnError:
            self.disable_vfs(pf)
            raise
        return found.vfs

    def _pf(self, pf: Rid) -> Found:
        found = self.functions.get(pf)
        if found is None:
            raise VirtfnError(f"{format_rid(pf)}: no such function was found by the scan", errno_name="ENODEV")
        if not found.is_pf:
            raise VirtfnError(f"{format_rid(pf)} is not a PF: it cannot have VFs", errno_name="ENOSYS")
        return found

    def _check(self, found: Found, view: SrIovView, n: int) -> None:
        regs, name = view.regs, format_rid(found.rid)
        total, initial = regs.get(SrIov.TOTAL_VFS), regs.get(SrIov.INITIAL_VFS)
        if n < 1:
            raise VirtfnError(f"{name}: {n} is not a number of VFs to enable", errno_name="EINVAL")
        if n > total:
            raise VirtfnError(f"{name}: {n} VFs asked, it has at most {total}", errno_name="ERANGE")
        if view.control.VFE or found.vfs:
            raise VirtfnError(f"{name}: {view.count()} VFs are enabled; disable them first", errno_name="EBUSY")
        if initial != total:
            raise VirtfnError(f"{name}: InitialVFs {initial} is not TotalVFs {total}", errno_name="EIO")
        if any(bar.address == 0 for bar in found.vf_bars):
            raise VirtfnError(f"{name}: no address space for the VFs' BARs", errno_name="ENOMEM")

    def _bring_up(self, found: Found, view: SrIovView, n: int) -> FoundVf:
        rid = Rid(view.rid_of(n))
        value = self.bus.config_read(rid, Type0.CLASS_REVISION.offset, 4)
        if value == 0xFFFFFFFF:
            raise VirtfnError(f"VF {n} of {format_rid(found.rid)} does not answer", errno_name="EIO")
        identity = ClassRevision(value)
        bars = [bar.part(n) for bar in found.vf_bars]
        device = view.regs.get(SrIov.VF_DEVICE_ID)
        return FoundVf(rid, found.rid, n, found.vendor_id, device, identity.CLASS, identity.REVISION, bars)

    def disable_vfs(self, pf: Rid, *, last: bool = False) -> None:
        """Take a PF's VFs away; nothing happens if it has none. last: nobody will ask the PF for anything after this.

        Raises VirtfnError: ENODEV not scanned, ENOSYS not a PF.
        """
        found = self._pf(pf)
        found.vfs = []
        view = SrIovView(self.bus, pf)
        if view.control.VFE:
            view.regs.set(SrIov.CONTROL, view.control.replace(VFE=0, MSE=0).value)
            if last:
                return  # the second that a PF needs before its capability is used again would be waited for nobody
            self._clock.sleep(S_PS)
        view.regs.set(SrIov.NUM_VFS, 0)
