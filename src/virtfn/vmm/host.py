"""The embedded host: memory, IOMMU, interrupts and time for devices of this process. Implements `DeviceHost`."""

from __future__ import annotations

import random

from virtfn.devices.iommu import IommuUnit
from virtfn.drivers.vtd import VtdDriver
from virtfn.hw.types import Hva, Iova, Ps, Rid
from virtfn.machine.irq import InterruptController
from virtfn.machine.memory import CHUNK, HostMemory
from virtfn.machine.ports import Clock
from virtfn.machine.rootcomplex import RootComplex
from virtfn.machine.trace import Tracer

__all__ = ["Host", "HostBar"]

_OWN_MEMORY = 16 * CHUNK  # translation tables


class Host:
    """A machine without cards. guest_bytes: memory that guests will have in all. seed: of everything shuffled."""

    def __init__(self, clock: Clock, guest_bytes: int, seed: int = 1, slots: int = 4) -> None:
        self.clock = clock
        self.random = random.Random(seed)
        self.memory = HostMemory(guest_bytes + _OWN_MEMORY)
        self.iommu = IommuUnit(self.memory)
        self.interrupts = InterruptController()
        self.root = RootComplex(slots)
        self.remapping = VtdDriver(self.iommu, self.memory, clock)
        self.remapping.start()
        self.tracer: Tracer | None = None

    def dma_read(self, rid: Rid, iova: Iova, length: int) -> bytes | None:
        """Read memory through the IOMMU as requester `rid`."""
        return self.iommu.dma_read(rid, iova, length)

    def dma_write(self, rid: Rid, iova: Iova, payload: bytes) -> bool:
        """Write memory through the IOMMU as requester `rid`."""
        return self.iommu.dma_write(rid, iova, payload)

    def msi(self, rid: Rid, address: int, message: int) -> None:
        """Send an interrupt message as requester `rid`."""
        self.interrupts.send(rid, address, message)

    def now(self) -> Ps:
        """Return the time now."""
        return self.clock.now()

    def close(self) -> None:
        """Give all memory back."""
        self.memory.close()


class HostBar:
    """A BAR as a driver of the host reaches it: through the root complex, at its address; a `Bar`."""

    def __init__(self, root: RootComplex, address: int) -> None:
        self._root = root
        self._address = address

    def read(self, offset: int) -> int:
        """Read a 32-bit register."""
        return self._root.mmio_read(self._address + offset, 4)

    def write(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""
        self._root.mmio_write(self._address + offset, 4, value & 0xFFFFFFFF)

    def direct(self, offset: int) -> Hva | None:
        """The host's drivers here have nothing mapped."""
        return None
