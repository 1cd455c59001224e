"""An embedded guest: physical memory of its own, virtual interrupts, and the drivers of the functions it was given.

The guest is an operating system as far as a NIC can tell: it finds a function that is plugged into it by its
configuration space, sizes and places its BARs, binds the driver for its IDs, and handles its interrupts by vector.

    interrupt -> posted descriptor -> notification -> `run_interrupts` -> driver's handler

Interrupts are posted: no exit brings them, and the guest handles them as a vCPU does, between its work, not inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from virtfn.cards import nic_driver
from virtfn.hw.pci import Command, MsiX, MsiXControl, MsiXEntry, Type0
from virtfn.hw.types import Gpa, Hpa, Hva, Iova, Rid, format_rid
from virtfn.machine.configspace import find_capability, size_bars
from virtfn.machine.irq import APIC_BASE
from virtfn.machine.memory import PAGE, GuestMemory
from virtfn.machine.meter import Meter, device_costs
from virtfn.machine.netports import Carrier, NetDriver
from virtfn.machine.ports import Clock, ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.vmm.assign import AssignedFunction, Interrupts
from virtfn.vmm.host import Host
from virtfn.vmm.traps import Traps

__all__ = ["Emulation", "Guest", "GuestDma", "Nic"]

_MMIO_BASE = 0xE000_0000
_FIRST_VECTOR = 0x20  # below are exceptions
_NO_FUNCTION = Rid(-1)
_HOLE = range(APIC_BASE, 0xFF00_0000)  # a device that writes here sends an interrupt: no memory for DMA


class GuestDma:
    """Memory that the guest's drivers share with their devices: first fit, whole pages, by guest physical address."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        usable = [(0, min(memory.size, _HOLE.start)), (_HOLE.stop, memory.size - _HOLE.stop)]
        self._free = [(start, length) for start, length in usable if length > 0]
        self._used: dict[int, int] = {}

    def alloc(self, size: int, align: int = PAGE) -> tuple[Iova, Hva]:
        """Allocate zeroed memory: address for the device, address here.

        Raises VirtfnError when the guest's memory is exhausted, or for what is no size or alignment.
        """
        if size <= 0 or align <= 0 or align & align - 1:
            raise VirtfnError(f"{size} bytes aligned to {align} cannot be allocated", errno_name="EINVAL")
        align = max(align, PAGE)
        size = -(-size // PAGE) * PAGE
        for i, (start, length) in enumerate(self._free):
            at = -(-start // align) * align
            if at + size <= start + length:
                rest = [(start, at - start), (at + size, start + length - at - size)]
                self._free[i : i + 1] = [piece for piece in rest if piece[1]]
                self._used[at] = size
                self._memory.bytes[at : at + size] = 0
                return Iova(at), Hva(self._memory.base + at)
        raise VirtfnError(
            f"the guest has no {size >> 10} KiB of memory left; give it more memory-mib", errno_name="ENOMEM"
        )

    def free(self, iova: Iova) -> None:
        """Give an allocation back, and merge what is free.

        Raises VirtfnError if there is no such allocation.
        """
        size = self._used.pop(iova, 0)
        if not size:
            raise VirtfnError(f"nothing is allocated at {iova:#x}", errno_name="EINVAL")
        pieces = sorted([*self._free, (int(iova), size)])
        merged: list[tuple[int, int]] = []
        for start, length in pieces:
            if merged and sum(merged[-1]) == start:
                merged[-1] = merged[-1][0], merged[-1][1] + length
            else:
                merged.append((start, length))
        self._free = merged


class Emulation(Interrupts, Carrier, Protocol):
    """What stands behind a function that the VMM makes itself: its interrupts, its costs, and who catches accesses.

    It is served in place of the function's device.
    """

    traps: Traps | None

    def costs(self) -> dict[str, int]:
        """Count what it costs, as totals of the meter's events."""


@dataclass(slots=True)
class Nic:
    """A function plugged into a guest, and the driver bound to it."""

    function: AssignedFunction
    driver: NetDriver


class Guest:
    """A guest of this process. size: bytes of memory, a multiple of 2 MiB. chunk: granularity of its scatter.

    ring, mtu: what its driver uses. Raises VirtfnError if host memory is exhausted.
    """

    def __init__(
        self, host: Host, name: str, size: int, *, chunk: int = 2 << 20, ring: int = 512, mtu: int = 1500
    ) -> None:
        self.name = name
        self.host = host
        self.memory = GuestMemory(host.memory, size, host.random, chunk)
        self.dma = GuestDma(self.memory)
        self.nics: list[Nic] = []
        self._devices: dict[int, NetDriver] = {}  # by their virtual vectors: those that are no functions
        self.meter = Meter()
        self._pending: list[int] = []
        self._vectors: dict[int, tuple[Rid, int]] = {}
        destination, vector = self._notification = host.interrupts.allocate(self._notified)
        table = host.interrupt_table
        self._posted = table.descriptor(destination, vector) if table is not None else None
        self._ring, self._mtu = ring, mtu
        self._next_bar = _MMIO_BASE

    @property
    def clock(self) -> Clock:
        """The clock of the machine."""
        return self.host.clock

    def address_space(self, rid: Rid) -> Hashable:
        """Name the address space of a function's DMA: all of the guest's functions use its physical addresses."""
        return self

    def populate(self, domain: DmaDomain) -> None:
        """Let devices of the guest reach its memory: map all of it into a domain."""
        for gpa, hpa, size in self.mappings():
            domain.map(Iova(gpa), hpa, size)

    def mappings(self) -> list[tuple[Gpa, Hpa, int]]:
        """List the guest's memory, for whoever lets its devices reach it."""
        return [mapping for mapping in self.memory.mappings() if mapping[0] not in _HOLE]

    # Hot-plug.

    def plug(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain | None = None,
        *,
        mapped: bool = True,
        emulation: Emulation | None = None,
    ) -> Nic:
        """Plug a function in; the guest finds it, places its BARs and binds a driver. domain: of its memory, as ever.

        emulation: of a function that the VMM makes itself. Raises VirtfnError if no driver of the guest knows the
        function, or the driver cannot start it.
        """
        function = self._enumerate(device, rid, config, mapped, emulation)
        ids = function.config.read(0, 4)
        make = nic_driver(ids & 0xFFFF, ids >> 16)
        if make is None:
            self._give_up(function)
            raise VirtfnError(
                f"guest {self.name} has no driver for {ids & 0xFFFF:04x}:{ids >> 16:04x}", errno_name="ENODEV"
            )
        try:
            driver = make(function.bar(0), self.dma, self.clock, ring=self._ring, mtu=self._mtu)
        except VirtfnError:
            self._give_up(function)
            raise
        nic = Nic(function, driver)
        self.nics.append(nic)
        costs = device_costs(device, self.host.iommu, rid) if emulation is None else emulation.costs
        self.meter.follow(rid, costs)
        driver.probe()
        return nic

    def _give_up(self, function: AssignedFunction) -> None:
        function.release()
        self._free_vectors(function.rid)

    def _enumerate(
        self, device: Device, rid: Rid, config: ConfigSpace, mapped: bool, emulation: Emulation | None
    ) -> AssignedFunction:
        """Do what a guest's PCI core does with a new function: BARs, MSI-X, Command."""
        msix = find_capability(config, MsiX)
        vectors = MsiXControl(config.read(msix + MsiX.CONTROL.offset, 2)).TABLE_SIZE + 1
        bir = config.read(msix + MsiX.TABLE.offset, 4) & 7
        function = AssignedFunction(
            device,
            rid,
            config,
            self if emulation is None else emulation,
            msix_bar=bir,
            vectors=vectors,
            mapped=mapped,
            meter=self.meter,
            traps=None if emulation is None else emulation.traps,
        )
        space = function.config
        for index, (size, wide) in size_bars(space).items():
            self._next_bar = -(-self._next_bar // size) * size
            space.write(Type0.BAR.at(index), 4, self._next_bar)
            if wide:
                space.write(Type0.BAR.at(index + 1), 4, 0)
            self._next_bar += size
        for vector in range(vectors):
            entry = vector * 16
            function.write(bir, entry + MsiXEntry.ADDRESS.offset, APIC_BASE)
            function.write(bir, entry + MsiXEntry.ADDRESS_HIGH.offset, 0)
            function.write(bir, entry + MsiXEntry.MESSAGE.offset, self._take_vector(rid, vector))
            function.write(bir, entry + MsiXEntry.CONTROL.offset, 0)
        space.write(msix + MsiX.CONTROL.offset, 2, MsiXControl.of(ENABLE=1).value)
        space.write(Type0.COMMAND.offset, 2, Command.of(MEM=1, BME=1).value)
        return function

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Take a function out. surprise: without asking the guest, as when a card is pulled.

        Raises VirtfnError if the guest does not have it.
        """
        nic = self.nic(rid)
        if not surprise:
            try:
                nic.driver.stop()
            except VirtfnError:
                surprise = True  # a driver that does not stop is not waited for
        nic.function.release()
        nic.driver.remove()
        self.nics.remove(nic)
        self.meter.release(rid)
        self._free_vectors(rid)

    @property
    def drivers(self) -> list[NetDriver]:
        """The drivers of all its interfaces."""
        return [*(nic.driver for nic in self.nics), *self._devices.values()]

    def add_device(self, driver: NetDriver) -> Callable[[], None]:
        """Take in an interface that is no function on its bus; return how to interrupt its driver.

        Raises VirtfnError if there are no vectors left.
        """
        number = self._take_vector(_NO_FUNCTION, 0)
        self._devices[number] = driver
        return lambda: self._inject(number)

    def remove_device(self, driver: NetDriver) -> None:
        """Take such an interface out; its driver has stopped, or is not asked."""
        for number in [number for number, known in self._devices.items() if known is driver]:
            del self._devices[number]
            del self._vectors[number]
            self._pending = [pending for pending in self._pending if pending != number]
        driver.remove()

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, as a VMM does that emulates the sender."""
        self._inject(message & 0xFF)

    def nic(self, rid: Rid) -> Nic:
        """Find a plugged function.

        Raises VirtfnError if the guest does not have it.
        """
        for nic in self.nics:
            if nic.function.rid == rid:
                return nic
        raise VirtfnError(f"guest {self.name} does not have {format_rid(rid)}", errno_name="ENODEV")

    # Virtual interrupts.

    def _take_vector(self, rid: Rid, vector: int) -> int:
        """Choose a vector of this guest's for `vector` of a function, as its operating system does."""
        for number in range(_FIRST_VECTOR, 256):
            if number not in self._vectors:
                self._vectors[number] = rid, vector
                return number
        raise VirtfnError(f"guest {self.name} has no interrupt vectors left", errno_name="ENOSPC")

    def _free_vectors(self, rid: Rid) -> None:
        gone = {number for number, (owner, _) in self._vectors.items() if owner == rid}
        self._vectors = {number: whose for number, whose in self._vectors.items() if number not in gone}
        self._pending = [number for number in self._pending if number not in gone]

    def route(self, rid: Rid, address: int, message: int) -> tuple[int, int]:
        """Make a message of the host by which `rid` posts the vector in the guest's own `message`; return it."""
        virtual = message & 0xFF
        if self._posted is None or self.host.interrupt_table is None:
            return self.host.allocate_message(rid, lambda: self._inject(virtual))
        return self.host.interrupt_table.post(rid, virtual, self._posted)

    def unroute(self, address: int, message: int) -> None:
        """Take such a message back."""
        if self._posted is None or self.host.interrupt_table is None:
            self.host.free_message(address, message)
        else:
            self.host.interrupt_table.free(address)

    def _notified(self) -> None:
        if self._posted is not None:
            for number in self._posted.take():
                self._inject(number)

    def _inject(self, number: int) -> None:
        self.meter.add("interrupts")
        if number not in self._pending:
            self._pending.append(number)

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt waits to be handled."""
        return bool(self._pending)

    def run_interrupts(self) -> int:
        """Let the guest handle what is pending, by vector; return how many handlers ran."""
        taken, self._pending = self._pending, []
        for number in taken:
            rid, vector = self._vectors.get(number, (None, 0))
            for nic in self.nics:
                if nic.function.rid == rid:
                    nic.driver.interrupt(vector)
            if number in self._devices:
                self._devices[number].interrupt(vector)
        return len(taken)

    @property
    def interrupts(self) -> int:
        """Interrupts that reached it."""
        return self.meter["interrupts"]

    @property
    def exits(self) -> int:
        """Accesses that trapped, of functions it has and had."""
        return self.meter.exits

    def close(self) -> None:
        """Give the guest's memory back; its functions must be gone."""
        for nic in list(self.nics):
            self.unplug(nic.function.rid, surprise=True)
        for driver in list(self._devices.values()):
            self.remove_device(driver)
        self.host.interrupts.free(*self._notification)
        if self._posted is not None and self.host.interrupt_table is not None:
            self.host.interrupt_table.free_descriptor(self._posted)
            self._posted = None
        self.memory.close()
