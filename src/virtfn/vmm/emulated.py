"""A card that the VMM makes for one guest: a model of a card of its own, of which nothing is mapped.

    registers    every access traps; tails are caught in compiled code, an exit each
    DMA          the VMM looks the guest's addresses up in tables of its own, and copies
    interrupts   the VMM injects them
    wire         leads to the VMM, as a NETDEV: `far_end`

The tables are those of a remapping unit that is software alone: a guest's address leads to its own memory or nowhere.
The guest is one of this process, or a virtual machine of another, which reaches the card through a socket.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from virtfn.cards import Model, Options
from virtfn.devices.iommu import IommuUnit
from virtfn.drivers.vtd import VtdDriver
from virtfn.hw.types import Iova, Mac, Ps, Rid
from virtfn.kernels.card import EV_FAULT
from virtfn.machine.irq import APIC_BASE
from virtfn.machine.meter import Meter
from virtfn.machine.netports import Vectors
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain
from virtfn.vmm.allowance import Allowance, refill
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host
from virtfn.vmm.traps import Traps

__all__ = ["EmulatedCard", "Owner"]

_BUS = 1
_TLB_ENTRIES = 256
_SHARE = 2  # of what is given back in general, for telling what addresses did wrong: as the host's unit has


class Owner(Protocol):
    """The guest that a card is made for, whoever runs it."""

    meter: Meter

    def populate(self, domain: DmaDomain) -> None:
        """Map its memory into a domain, now or as it comes."""

    def plug(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain,
        *,
        mapped: bool,
        emulation: Emulation,
    ) -> object:
        """Plug a function in. Raises VirtfnError if it cannot be."""

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, for a function."""


class EmulatedCard:
    """A card of `guest`'s own; a `DeviceHost` to the model, an `Emulation` to the guest. mac: its address.

    compiled: whether its driver is compiled code of this process, whose writes of registers are caught in turns of the
    card. It is served as a card is: address, settle, handle, waits, follow_time. Raises VirtfnError if the host's
    memory is exhausted.
    """

    def __init__(self, host: Host, guest: Owner, model: Model, mac: Mac, *, compiled: bool = True) -> None:
        self._host, self._guest = host, guest
        self._unit = IommuUnit(
            host.memory, _TLB_ENTRIES, send=lambda address, message: None, deliver=self._written, clock=host.clock
        )
        self._allowance, self._refilled_ps = Allowance(), host.clock.now()
        self._tables = VtdDriver(self._unit, host.memory, host.clock)
        self._tables.start((0, 0))
        self.card = model.make(self, self._unit.iommu, self._unit, Options(mac))
        self.card.bus = _BUS
        self.rid = self.card.pf_rid
        self._domain = self._tables.new_domain()
        guest.populate(self._domain)
        self._tables.attach(self.rid, self._domain)
        self.card.set_wire(True, 0)
        self.card.set_carrier(True)
        self.far_end: npt.NDArray[np.void] = self.card.far_end()
        self.traps = Traps(self.card, self.rid, guest.meter) if compiled else None
        self.address = self.card.address if self.traps is None else self.traps.address

    def plug_in(self, config: ConfigSpace | None = None) -> None:
        """Plug it into its guest, which binds a driver. config: what the guest finds; by default all that the card has.

        Raises VirtfnError as `plug` of the guest does.
        """
        space = _OwnConfig(self.card, self.rid) if config is None else config
        self._guest.plug(self.card, self.rid, space, self._domain, mapped=False, emulation=self)

    # To the model, the machine it is in.

    def dma_read(self, rid: Rid, iova: Iova, length: int) -> bytes | None:
        """Read the guest's memory."""
        return self._unit.dma_read(rid, iova, length)

    def dma_write(self, rid: Rid, iova: Iova, payload: bytes) -> bool:
        """Write the guest's memory."""
        return self._unit.dma_write(rid, iova, payload)

    def msi(self, rid: Rid, address: int, message: int) -> None:
        """Inject an interrupt into the guest."""
        self._guest.inject(rid, address, message)

    def _written(self, destination: int, vector: int) -> None:
        """Inject what the guest let its card write where interrupts are: a message of its own, to itself."""
        self._guest.inject(self.rid, APIC_BASE | destination << 12, vector)

    def now(self) -> Ps:
        """Return the time now."""
        return self._host.clock.now()

    # To the guest, what stands behind the function.

    def route(self, rid: Rid, address: int, message: int) -> tuple[int, int]:
        """Let the guest's message be its own."""
        return address, message

    def unroute(self, address: int, message: int) -> None:
        """Nothing is kept of a message."""

    def costs(self) -> dict[str, int]:
        """Count the copies of the VMM: each frame from and to the guest's memory is one."""
        moved = self.card.moved(self.rid)
        return {"copies": moved.tx_frames + moved.rx_frames, "copy_bytes": moved.tx_bytes + moved.rx_bytes}

    # To whoever serves it.

    def vectors(self, rid: Rid) -> Vectors:
        """Tell kernels where to find its interrupts."""
        return self.card.vectors(rid)

    def settle(self) -> None:
        """Get ready to be served."""
        self.card.settle()

    def handle(self, events: int) -> None:
        """Do what that has called for; what the guest's addresses did wrong is noted, a part of the time."""
        self.card.handle(events)
        if events & EV_FAULT:
            began = self._host.clock.now()
            refill([self._allowance], (began - self._refilled_ps) // _SHARE)
            self._refilled_ps = began
            if not self._allowance.in_debt:
                self._unit.service()
                self._allowance.take(self._host.clock.now() - began)

    @property
    def faults_wait(self) -> bool:
        """Whether what the guest's addresses did wrong has to wait, since so much of it was noted lately."""
        return self._allowance.in_debt

    @property
    def waits(self) -> bool:
        """Whether a frame holds up others."""
        return self.card.waits

    def follow_time(self, limit_ps: int) -> None:
        """Let it see time pass."""
        self.card.follow_time(limit_ps)

    @property
    def faults(self) -> int:
        """Addresses that led nowhere."""
        return self._unit.stats()["faults"]

    def close(self) -> None:
        """Release memory."""
        self.card.close()


class _OwnConfig:
    """Configuration space that is the device's own: nothing of it is anybody else's."""

    def __init__(self, device: Device, rid: Rid) -> None:
        self._device, self._rid = device, rid

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes."""
        return self._device.config_read(self._rid, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""
        self._device.config_write(self._rid, offset, size, value)
