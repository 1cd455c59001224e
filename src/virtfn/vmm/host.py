"""The host: memory, IOMMU, interrupts and time for devices of this process. Implements `DeviceHost`.

    device's message --> IOMMU: interrupt remapping --> vector --> a driver of the host, or a guest's notification

Every interrupt goes this way, and a message that is no message is a write to memory, translated as any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from virtfn.devices.iommu import IommuUnit
from virtfn.drivers.vtd import VtdDriver
from virtfn.drivers.vtdirq import ENTRIES, InterruptTable
from virtfn.hw.types import Hva, Iova, Ps, Rid
from virtfn.machine.irq import APIC_BASE, InterruptController
from virtfn.machine.memory import CHUNK, PAGE, HostMemory
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.machine.rootcomplex import RootComplex
from virtfn.machine.trace import Tracer
from virtfn.vmm.allowance import Allowance, refill
from virtfn.vmm.traps import Traps

__all__ = ["MOST_TABLES", "Host", "HostBar", "room_for"]

_OWN_MEMORY = 16 * CHUNK  # tables for guests of this process, and for interrupts
_FAULTS_SHARE = 2  # of what is given back in general, for telling what the IOMMU met: an eighth of the time
# Translation tables of a foreign function. All wait while one access is done: what one machine asks for stays small.
# With memory in pages of 2 MiB, as it comes, this is enough for hundreds of gigabytes.
MOST_TABLES = 512


def room_for(memory_bytes: int) -> int:
    """Return how many foreign bytes a virtual machine with so much memory has to itself: twice as many.

    It shares its memory as one file. Where it is not shared, each function has a mirror of it, and of the machine's
    other ranges, each in a file of its own.
    """
    return 2 * memory_bytes


class Host:
    """A machine without cards.

    guest_bytes: memory that guests will have in all. seed: of everything shuffled. iotlb_entries: a power of two.
    remapping: off, devices reach all memory by host addresses, and raise any vector by compatibility messages.
    foreign_bytes: room for memory that virtual machines of other processes share, `room_for` each. foreign_functions:
    how many functions they have at most; each gets translation tables in this host's memory.
    """

    def __init__(
        self,
        clock: Clock,
        guest_bytes: int,
        seed: int = 1,
        slots: int = 4,
        *,
        iotlb_entries: int = 1024,
        remapping: bool = True,
        foreign_bytes: int = 0,
        foreign_functions: int = 8,
    ) -> None:
        self.clock = clock
        self.random = random.Random(seed)
        own = _OWN_MEMORY + (foreign_functions * MOST_TABLES * PAGE if foreign_bytes else 0)
        self.memory = HostMemory(guest_bytes + own, foreign_bytes)
        self.interrupts = InterruptController()
        self.iommu = IommuUnit(
            self.memory, iotlb_entries, send=self._own_interrupt, deliver=self.interrupts.deliver, clock=clock
        )
        self.root = RootComplex(slots)
        self.remapping = VtdDriver(self.iommu, self.memory, clock)
        self.faults_read = 0
        self.interrupt_table: InterruptTable | None = None
        if remapping:
            destination, vector = self.interrupts.allocate(self._take_faults)
            self.remapping.start((APIC_BASE | destination << 12, vector))
            self.interrupt_table = InterruptTable(self.memory, self.remapping)
            self.remapping.start_interrupts(self.interrupt_table.address, ENTRIES)
        self._vectors: dict[tuple[int, int], tuple[int, int]] = {}
        self._faults, self._refilled_ps = Allowance(), clock.now()
        self.tracer: Tracer | None = None

    def dma_read(self, rid: Rid, iova: Iova, length: int) -> bytes | None:
        """Read memory through the IOMMU as requester `rid`."""
        return self.iommu.dma_read(rid, iova, length)

    def dma_write(self, rid: Rid, iova: Iova, payload: bytes) -> bool:
        """Write memory through the IOMMU as requester `rid`."""
        return self.iommu.dma_write(rid, iova, payload)

    def msi(self, rid: Rid, address: int, message: int) -> None:
        """Send an interrupt message as requester `rid`."""
        if address >> 20 == APIC_BASE >> 20:
            self.iommu.interrupts.send(rid, address, message)
        else:
            self.iommu.dma_write(rid, Iova(address), message.to_bytes(4, "little"))

    def allocate_message(self, rid: Rid, deliver: Callable[[], None]) -> tuple[int, int]:
        """Make a message by which requester `rid` calls `deliver`.

        Returns (address, message). Raises VirtfnError when vectors or table entries are exhausted.
        """
        destination, vector = self.interrupts.allocate(deliver)
        if self.interrupt_table is None:
            return APIC_BASE | destination << 12, vector
        try:
            made = self.interrupt_table.remap(rid, destination, vector)
        except VirtfnError:
            self.interrupts.free(destination, vector)
            raise
        self._vectors[made] = destination, vector
        return made

    def start_page_requests(self) -> None:
        """Let devices ask for pages that are not mapped, by the pagers of their domains.

        Raises VirtfnError without remapping, or when vectors are exhausted.
        """
        destination, vector = self.interrupts.allocate(self._serve_pages)
        self.remapping.start_page_requests((APIC_BASE | destination << 12, vector))

    def free_message(self, address: int, message: int) -> None:
        """Take a message back; from now on it goes nowhere."""
        if self.interrupt_table is None:
            self.interrupts.free(address >> 12 & 0xFF, message)
        else:
            self.interrupt_table.free(address)
            self.interrupts.free(*self._vectors.pop((address, message)))

    def serve_iommu(self) -> None:
        """Let the IOMMU tell what it met, as long as that does not take the time of others' work."""
        began = self.clock.now()
        refill([self._faults], (began - self._refilled_ps) // _FAULTS_SHARE)
        self._refilled_ps = began
        if not self._faults.in_debt:
            self.iommu.service()
            self._faults.take(self.clock.now() - began)

    @property
    def faults_wait(self) -> bool:
        """Whether what the IOMMU met has to wait, since so much of it was told lately."""
        return self._faults.in_debt

    def _take_faults(self) -> None:
        """Read what the unit has recorded, and make room for more."""
        self.faults_read += len(self.remapping.take_faults())

    def _serve_pages(self) -> None:
        self.remapping.serve_pages()

    def _own_interrupt(self, address: int, message: int) -> None:
        """Take an interrupt of the remapping unit itself, which nothing remaps."""
        self.interrupts.deliver(address >> 12 & 0xFF, message & 0xFF)

    def now(self) -> Ps:
        """Return the time now."""
        return self.clock.now()

    def close(self) -> None:
        """Give all memory back."""
        self.memory.close()


class HostBar:
    """A BAR as a driver of the host reaches it: through the root complex, at its address; a `Bar`.

    writes: how compiled code of the host writes registers, if it does.
    """

    def __init__(self, root: RootComplex, address: int, writes: Traps | None = None) -> None:
        self._root = root
        self._address = address
        self._writes = writes

    def read(self, offset: int) -> int:
        """Read a 32-bit register."""
        return self._root.mmio_read(self._address + offset, 4)

    def write(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""
        self._root.mmio_write(self._address + offset, 4, value & 0xFFFFFFFF)

    def mapped(self, offset: int) -> Hva | None:
        """The host's drivers here have nothing mapped."""
        return None

    def trapped(self, offset: int, value: int) -> Hva | None:
        """Return the address of a word by which compiled code writes a register."""
        return None if self._writes is None else self._writes.word(offset, value)
