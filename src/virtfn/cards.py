"""What a model of network card means: its device, its drivers and its limits. Nobody else knows a model by name.

    MODELS["82576"].make(host, iommu, agent, Options(mac))   the device
    MODELS["82576"].pf_driver(bar, clock)                    the host's driver
    MODELS["82576"].stack(driver, bar, dma, clock, ...)      the host's own network device on it
    nic_driver(0x8086, 0x10CA)(bar, dma, clock, ...)         what a guest binds to a function, by its IDs

To add a model, put a `Model` into MODELS. Devices and drivers are imported when they are needed: a lab can be read
without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from virtfn.hw.i82576.desc import MAX_FRAME, MAX_MTU
from virtfn.hw.types import Mac

if TYPE_CHECKING:
    from virtfn.drivers.ports import BoundDriver
    from virtfn.kernels.vtd.iommu import Iommu
    from virtfn.machine.netports import Card, NetDriver
    from virtfn.machine.ports import Bar, Clock, DeviceHost, DmaMemory, TranslationAgent

__all__ = ["MODELS", "Limits", "Model", "NicDriver", "Options", "nic_driver"]

_STACK_RING = 1024  # the host's own device carries the frames of many guests


@dataclass(frozen=True, slots=True)
class Limits:
    """What a card can do. vfs: of a PF. mtu: bytes of payload. frame: bytes, without frame check sequence."""

    vfs: int
    mtu: int
    frame: int


@dataclass(frozen=True, slots=True)
class Options:
    """What a lab decides of a card. ats: address translation services, with so many entries of a device TLB."""

    mac: Mac
    total_vfs: int = 0
    ats: bool = False
    device_tlb_entries: int = 64


class NicDriver(Protocol):
    """Makes the driver of a function in a guest: of a VF, or of a card that is whole."""

    def __call__(self, bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int, mtu: int) -> NetDriver:
        """Bind to a function's BAR0. ring: descriptors of each ring. Raises VirtfnError for what cannot be."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of card. report: how reports name it. nic_drivers: by vendor and device ID.

    vf_function: where a guest that makes VFs finds one, its function number on the PF's bus; None: it makes none.
    explain: what becomes of a frame of a VF's, or another function's, pool, or of the wire (None), by `Card.state`.
    stack: makes the host's own network device on a PF that its driver drives, perhaps with VFs; None: it cannot be.
    """

    report: int | str
    limits: Limits
    make: Callable[[DeviceHost, Iommu, TranslationAgent, Options], Card]
    pf_driver: Callable[[Bar, Clock], BoundDriver]
    nic_drivers: Mapping[tuple[int, int], NicDriver]
    stack: Callable[[BoundDriver, Bar, DmaMemory, Clock], NetDriver] | None = None
    vf_function: Callable[[int], int] | None = None
    explain: Callable[[Mapping[str, Any], int | None, bytes], Mapping[str, Any]] | None = None


def _make_82576(host: DeviceHost, iommu: Iommu, agent: TranslationAgent, options: Options) -> Card:
    from virtfn.devices.nic82576 import Card as Nvm
    from virtfn.devices.nic82576 import Nic82576

    nvm = Nvm(options.mac, total_vfs=options.total_vfs, ats=options.ats, device_tlb_entries=options.device_tlb_entries)
    return Nic82576(host, iommu, nvm, agent)


def _vf_function_82576(n: int) -> int:
    from virtfn.devices.nic82576.config import FIRST_VF_OFFSET, VF_STRIDE

    return FIRST_VF_OFFSET[1] + n * VF_STRIDE


def _igb(bar: Bar, clock: Clock) -> BoundDriver:
    from virtfn.drivers.igb import Igb

    return Igb(bar, clock)


def _igbvf(bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int, mtu: int) -> NetDriver:
    from virtfn.drivers.igbvf import Igbvf

    return Igbvf(bar, dma, clock, ring=ring, mtu=mtu)


def _igb_whole(bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int, mtu: int) -> NetDriver:
    from virtfn.drivers.igbnet import IgbNet

    return IgbNet.whole(bar, dma, clock, ring=ring, mtu=mtu)


def _igb_stack(driver: BoundDriver, bar: Bar, dma: DmaMemory, clock: Clock) -> NetDriver:
    from virtfn.drivers.igb import Igb
    from virtfn.drivers.igbnet import IgbNet

    if not isinstance(driver, Igb):
        raise TypeError("this is a network device of an igb")
    return IgbNet(driver, bar, dma, clock, ring=_STACK_RING, host=True)


def _explain_82576(state: Mapping[str, Any], source: int | None, frame: bytes) -> Mapping[str, Any]:
    from virtfn.devices.nic82576.explain import explain_frame
    from virtfn.devices.nic82576.sight import CardState, Sight

    return explain_frame(Sight(cast(CardState, state)), source, frame)


MODELS: dict[str, Model] = {
    "82576": Model(
        report=82576,
        limits=Limits(vfs=8, mtu=MAX_MTU, frame=MAX_FRAME),
        make=_make_82576,
        pf_driver=_igb,
        nic_drivers={(0x8086, 0x10CA): _igbvf, (0x8086, 0x10C9): _igb_whole},
        stack=_igb_stack,
        vf_function=_vf_function_82576,
        explain=_explain_82576,
    )
}


def nic_driver(vendor: int, device: int) -> NicDriver | None:
    """Find the driver of a function by its IDs; None if there is none."""
    found = (model.nic_drivers.get((vendor, device)) for model in MODELS.values())
    return next((driver for driver in found if driver is not None), None)
