"""The 82576's configuration spaces, as real silicon shows them.

    PF  40 PM  50 MSI  70 MSI-X  a0 PCI Express  (e0 VPD, present but not linked)  100 AER  140 DSN  150 ARI  160 SR-IOV
    VF                 70 MSI-X  a0 PCI Express                                    100 AER           150 ARI

    with `Card.ats`, which no real card has:   PF, VF  1a0 ATS    PF  1b0 page requests

Sizes of the flash and ROM windows, the subsystem and the MAC address come from the card's NVM. VFs have the light space
of the specification: vendor and device FFFF, no BARs, Bus Master Enable only. Spec: 82576 datasheet, 9; PCI Express
Base Specification, 9.3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from virtfn.devices.pci import Endpoint, Physical, SrIovUnit
from virtfn.hw.bits import Decl
from virtfn.hw.pci import (
    NO_DEVICE,
    Aer,
    Ari,
    AriCapabilities,
    Ats,
    AtsCapabilities,
    AtsControl,
    Command,
    DevCtl,
    Dsn,
    HeaderType,
    Location,
    Msi,
    MsiX,
    PageRequests,
    Pcie,
    Pm,
    PmControl,
    SrIov,
    Type0,
    Vpd,
)
from virtfn.hw.types import Mac, Ps
from virtfn.kernels.vtd.ats import DEVICE_TLB_MAX, PAGE_SLOTS
from virtfn.machine.bars import BarShape
from virtfn.machine.function import Capability, Function
from virtfn.machine.ports import VirtfnError
from virtfn.machine.regfile import Handlers, on_read

__all__ = [
    "BAR_CSR",
    "BAR_FLASH",
    "BAR_IO",
    "BAR_MSIX",
    "MAX_VFS",
    "VF_BAR_SIZE",
    "Card",
    "build_endpoint",
    "physical_function",
    "virtual_function",
]

BAR_CSR, BAR_FLASH, BAR_IO, BAR_MSIX = 0, 1, 2, 3
MAX_VFS = 8
VF_BAR_SIZE = 16 << 10
PBA_OFFSET = 0x2000
PF_VECTORS, VF_VECTORS = 10, 3
FIRST_VF_OFFSET = (0x180, 0x080)
VF_STRIDE = 2
VENDOR, PF_DEVICE, VF_DEVICE = 0x8086, 0x10C9, 0x10CA
ETHERNET_REV_1 = 0x02000001


@dataclass(frozen=True, slots=True)
class Card:
    """What the NVM of one card decides. ports: 1 or 2; total_vfs: 0 (no SR-IOV capability) to 8, for each port.

    ats: address translation services and page requests, an extension of the 82576; device_tlb_entries: a power of two.

    Raises VirtfnError for a card that the 82576 cannot make.
    """

    mac: Mac
    ports: int = 1
    total_vfs: int = MAX_VFS
    ats: bool = False
    device_tlb_entries: int = 64
    subsystem_vendor_id: int = VENDOR
    subsystem_id: int = 0xA03C
    flash_size: int = 4 << 20
    rom_size: int = 4 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.total_vfs <= MAX_VFS:
            raise VirtfnError(f"an 82576 port has 0 to {MAX_VFS} VFs, not {self.total_vfs}", errno_name="ERANGE")
        if self.ports not in (1, 2):
            raise VirtfnError(f"an 82576 has 1 or 2 ports, not {self.ports}", errno_name="EINVAL")
        entries = self.device_tlb_entries
        if not 1 <= entries <= DEVICE_TLB_MAX or entries & (entries - 1):
            raise VirtfnError(
                f"a device TLB has a power of two of entries up to {DEVICE_TLB_MAX}, not {entries}", errno_name="EINVAL"
            )
        for size in (self.flash_size, self.rom_size):
            if size and (size < 2048 or size & (size - 1)):
                raise VirtfnError(f"a window of {size:#x} bytes is not a power of two from 2 KiB", errno_name="EINVAL")

    @property
    def serial_number(self) -> int:
        """Device serial number: the MAC address with FF-FF in its middle."""
        octets = self.mac.to_bytes(6, "little")
        return int.from_bytes(octets[:3] + b"\xff\xff" + octets[3:], "big")


class _PowerConsumption(Handlers):
    """Power data: what the card draws in D0, in units of 0.1 W; nothing is known of the other states."""

    IN_D0 = 0x1A

    def __init__(self, function: Function) -> None:
        self._function = function

    @on_read(Pm.DATA)
    def _drawn(self, index: int) -> int:
        return self.IN_D0 if PmControl(self._function[Pm].peek(Pm.PMCSR)).SELECT == 0 else 0


def _msix(vectors: int) -> Capability:
    values: dict[Decl, int] = {
        MsiX.CONTROL: vectors - 1,
        MsiX.TABLE: Location.of(BIR=BAR_MSIX).value,
        MsiX.PBA: Location.of(BIR=BAR_MSIX, OFFSET=PBA_OFFSET // 8).value,
    }
    return Capability(MsiX, 0x70, values)


_DEVCTL_BITS = 0xFFFF & ~(DevCtl.EXTENDED_TAG.mask | DevCtl.PHANTOM.mask)
_PCIE: dict[Decl, int] = {
    Pcie.FLAGS: 0x0002,
    Pcie.DEVCAP: 0x10008CC2,
    Pcie.DEVCTL: 0x2810,
    Pcie.DEVSTA: 0x0010,
    Pcie.LNKCAP: 0x00036C41,
    Pcie.LNKSTA: 0x1041,
    Pcie.DEVCAP2: 0x0000001F,
}


def physical_function(card: Card, now: Callable[[], Ps], port: int = 0, lowest: SrIovUnit | None = None) -> Physical:
    """Build the PF of one port, with the configuration spaces of its VFs. lowest: port 0's unit, for port 1."""
    shapes = {BAR_CSR: BarShape(128 << 10), BAR_IO: BarShape(32, io=True), BAR_MSIX: BarShape(16 << 10)}
    if card.flash_size:
        shapes[BAR_FLASH] = BarShape(card.flash_size)
    following = port + 1 if port + 1 < card.ports else 0
    capabilities = [
        Capability(Pm, 0x40, {Pm.PMC: 0xC823, Pm.PMCSR: 0x2000, Pm.DATA: _PowerConsumption.IN_D0}),
        Capability(Msi, 0x50, {Msi.CONTROL: 0x0180}, {Msi.CONTROL: 0x0001, Msi.MASK: 1}),
        _msix(PF_VECTORS),
        Capability(Pcie, 0xA0, _PCIE, {Pcie.DEVCTL: _DEVCTL_BITS, Pcie.DEVCTL2: 0x001F}),
        Capability(Vpd, 0xE0, linked=False),
        Capability(Aer, 0x100, {Aer.UE_SEVERITY: 0x00062011}),
        Capability(Dsn, 0x140, {Dsn.LOW: card.serial_number & 0xFFFFFFFF, Dsn.HIGH: card.serial_number >> 32}),
        Capability(Ari, 0x150, {Ari.CAPABILITY: AriCapabilities.of(NEXT_FUNCTION=following).value}),
    ]
    if card.total_vfs:
        capabilities.append(_sriov(card, port))
    if card.ats:
        capabilities += [_ats(), Capability(PageRequests, 0x1B0, {PageRequests.CAPACITY: PAGE_SLOTS})]
    function = Function(
        Type0,
        capabilities,
        values={
            Type0.VENDOR_ID: VENDOR,
            Type0.DEVICE_ID: PF_DEVICE,
            Type0.CLASS_REVISION: ETHERNET_REV_1,
            Type0.HEADER_TYPE: HeaderType.of(MULTIFUNCTION=card.ports > 1).value,
            Type0.SUBSYSTEM_VENDOR_ID: card.subsystem_vendor_id,
            Type0.SUBSYSTEM_ID: card.subsystem_id,
            Type0.INTERRUPT_PIN: 1 + port,
        },
        bars=shapes,
        rom_size=card.rom_size,
    )
    function[Pm].bind(_PowerConsumption(function))
    if not card.total_vfs:
        return Physical(function)
    vf_shape = BarShape(VF_BAR_SIZE, wide=True)
    unit = SrIovUnit(
        function,
        {BAR_CSR: vf_shape, BAR_MSIX: vf_shape},
        first_vf_offset=FIRST_VF_OFFSET,
        now=now,
        lowest=lowest,
    )
    return Physical(function, unit, [virtual_function(card) for _ in range(card.total_vfs)])


def _sriov(card: Card, port: int) -> Capability:
    values: dict[Decl, int] = {
        SrIov.INITIAL_VFS: card.total_vfs,
        SrIov.TOTAL_VFS: card.total_vfs,
        SrIov.DEPENDENCY_LINK: port,
        SrIov.FIRST_VF_OFFSET: FIRST_VF_OFFSET[0],
        SrIov.VF_STRIDE: VF_STRIDE,
        SrIov.VF_DEVICE_ID: VF_DEVICE,
    }
    return Capability(SrIov, 0x160, values)


def _ats(control: int = AtsControl.ENABLE.mask | AtsControl.STU.mask) -> Capability:
    return Capability(Ats, 0x1A0, {Ats.CAPABILITY: AtsCapabilities.of(PAGE_ALIGNED=1).value}, {Ats.CONTROL: control})


def virtual_function(card: Card) -> Function:
    """Build the configuration space of one VF: what it has no right to, or takes from its PF, reads 0."""
    pcie = _PCIE | {Pcie.DEVCTL: 0, Pcie.DEVSTA: 0, Pcie.LNKSTA: 0}
    return Function(
        Type0,
        [
            _msix(VF_VECTORS),
            Capability(Pcie, 0xA0, pcie, {Pcie.DEVCTL: DevCtl.FLR.mask, Pcie.LNKCTL: 0, Pcie.DEVCTL2: 0}),
            Capability(
                Aer, 0x100, {Aer.UE_SEVERITY: 0, Aer.CE_MASK: 0}, {Aer.UE_MASK: 0, Aer.UE_SEVERITY: 0, Aer.CE_MASK: 0}
            ),
            Capability(Ari, 0x150),
            *([_ats(AtsControl.ENABLE.mask)] if card.ats else []),
        ],
        values={
            Type0.VENDOR_ID: NO_DEVICE,
            Type0.DEVICE_ID: NO_DEVICE,
            Type0.CLASS_REVISION: ETHERNET_REV_1,
            Type0.SUBSYSTEM_VENDOR_ID: card.subsystem_vendor_id,
            Type0.SUBSYSTEM_ID: card.subsystem_id,
        },
        writable={Type0.COMMAND: Command.BME.mask, Type0.CACHE_LINE: 0, Type0.INTERRUPT_LINE: 0},
    )


def build_endpoint(card: Card, now: Callable[[], Ps]) -> Endpoint:
    """Build every function of a card: one PF for each port, the second one's ARI Capable Hierarchy with the first."""
    first = physical_function(card, now)
    rest = [physical_function(card, now, port, first.sriov) for port in range(1, card.ports)]
    return Endpoint([first, *rest])
