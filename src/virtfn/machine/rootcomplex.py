"""The root complex: a host bridge, PCI Express root ports, and the routing of accesses to the cards below them.

    bus 0   00.0 host bridge
            01.0 root port 0 ---- secondary bus: card (device 0; with ARI forwarding, functions 0 to 255)
            02.0 root port 1      further buses up to the subordinate one: the card's too, for VFs on bus + 1
            ...

Nothing here is known before software programs it: bus numbers, windows and BARs are read from the same registers that
the scan wrote. What nobody claims reads all ones and swallows writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtfn.hw.pci import (
    Acs,
    AcsControl,
    DevCap2,
    DevCtl2,
    Pcie,
    PcieFlags,
    PciStatus,
    Pm,
    PortType,
    Type0,
    Type1,
    Window,
)
from virtfn.hw.types import Rid, make_rid
from virtfn.machine.function import Capability, Function, all_ones
from virtfn.machine.ports import Device, VirtfnError

__all__ = ["RootComplex", "RootPort", "Target"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """Who claims an address: a BAR of a function of a card."""

    device: Device
    rid: Rid
    bar: int
    offset: int


def host_bridge() -> Function:
    """Build the function at 00.0: it only says that there is a root complex."""
    values = {Type0.VENDOR_ID: 0x8086, Type0.DEVICE_ID: 0x3406, Type0.CLASS_REVISION: 0x06000022}
    return Function(Type0, values=values, writable={Type0.COMMAND: 0x0006})


class RootPort(Function):
    """A bridge from bus 0 to one slot. `device` is the card in it, or None."""

    def __init__(self, slot: int) -> None:
        controls = AcsControl.of(SOURCE_VALIDATION=1, REQUEST_REDIRECT=1, COMPLETION_REDIRECT=1, UPSTREAM_FORWARDING=1)
        pcie = {
            Pcie.FLAGS: PcieFlags.of(VERSION=2, TYPE=PortType.ROOT_PORT).value,
            Pcie.DEVCAP: 0x00008002,
            Pcie.LNKCAP: 0x00013C41 | slot << 24,
            Pcie.LNKSTA: 0x1041,
            Pcie.DEVCAP2: DevCap2.of(ARI_FORWARDING=1).value,
        }
        writable = {Pcie.DEVCTL: 0x70FF, Pcie.DEVCTL2: DevCtl2.ARI_FORWARDING.mask}
        super().__init__(
            Type1,
            [
                Capability(Pcie, 0x40, pcie, writable),
                Capability(Pm, 0x80, {Pm.PMC: 0x0003, Pm.PMCSR: 0x0008}, {Pm.PMCSR: 0x0003}),
                Capability(Acs, 0x100, {Acs.CAPABILITY: controls.value}, {Acs.CONTROL: controls.value}),
            ],
            values={
                Type1.VENDOR_ID: 0x8086,
                Type1.DEVICE_ID: 0x3420,
                Type1.CLASS_REVISION: 0x06040022,
                Type1.HEADER_TYPE: 1,
                Type1.INTERRUPT_PIN: 1,
            },
        )
        self.device: Device | None = None

    @property
    def secondary(self) -> int:
        """Bus number of the slot; 0 before software sets it."""
        return self.header.peek(Type1.SECONDARY)

    @property
    def subordinate(self) -> int:
        """Highest bus number below the port."""
        return self.header.peek(Type1.SUBORDINATE)

    @property
    def ari_forwarding(self) -> bool:
        """Whether the port lets function numbers above 7 through to its secondary bus."""
        return bool(DevCtl2(self[Pcie].peek(Pcie.DEVCTL2)).ARI_FORWARDING)

    def owns_bus(self, bus: int) -> bool:
        """Tell whether configuration accesses to `bus` go down this port."""
        return 0 < self.secondary <= bus <= self.subordinate

    def route(self, rid: Rid) -> Rid | None:
        """Say how the card is addressed for `rid`; None if the request cannot reach it.

        On the secondary bus requests are Type 0: they carry no bus number that the card compares, so that it is
        addressed by whatever number it has. Those of further buses stay Type 1.
        """
        if self.device is None or self.power_state != 0:
            return None
        if rid >> 8 != self.secondary:
            return rid
        if rid >> 3 & 31 and not self.ari_forwarding:
            return None
        return Rid(self.device.bus << 8 | rid & 0xFF)

    def windows(self, *, io: bool) -> list[range]:
        """List the addresses of memory or I/O space that go down the port now."""
        peek = self.header.peek
        if io:
            base, limit = peek(Type1.IO_BASE) >> 4, peek(Type1.IO_LIMIT) >> 4
            return [range(base << 12, limit + 1 << 12)] if self.io_enabled else []
        if not self.memory_enabled:
            return []
        base, limit = Window(peek(Type1.PREFETCH_BASE)).BITS, Window(peek(Type1.PREFETCH_LIMIT)).BITS
        base, limit = base | peek(Type1.PREFETCH_BASE_HIGH) << 12, limit | peek(Type1.PREFETCH_LIMIT_HIGH) << 12
        low = range(Window(peek(Type1.MEMORY_BASE)).BITS * MIB, (Window(peek(Type1.MEMORY_LIMIT)).BITS + 1) * MIB)
        return [low, range(base * MIB, (limit + 1) * MIB)]

    def saw_no_answer(self) -> None:
        """Record that a request below the port ended as unsupported."""
        status = PciStatus(self.header.peek(Type1.SECONDARY_STATUS)).replace(RECEIVED_MASTER_ABORT=1)
        self.header.poke(Type1.SECONDARY_STATUS, 0, status.value)


class RootComplex:
    """The machine's PCI Express hierarchy, as the CPU sees it. slots: root ports, 1 to 31.

    Raises VirtfnError for another number of slots.
    """

    def __init__(self, slots: int = 4) -> None:
        if not 1 <= slots <= 31:
            raise VirtfnError(f"a root complex has 1 to 31 slots, not {slots}", errno_name="EINVAL")
        self.ports = [RootPort(i) for i in range(slots)]
        self._bus0: dict[int, Function] = {make_rid(0, 0, 0): host_bridge()}
        self._bus0 |= {make_rid(0, 1 + i, 0): port for i, port in enumerate(self.ports)}
        self._open: dict[bool, list[tuple[range, Device]]] = {}  # windows by kind of space; one not there: read anew
        for port in self.ports:
            port.on_change.append(self._open.clear)
            port.on_reset.append(lambda _: self._open.clear())

    def attach(self, device: Device, slot: int | None = None) -> int:
        """Plug a card into a slot, the first free one if none is named, and return its number.

        Raises VirtfnError if there is no such slot or it is taken.
        """
        if slot is None:
            slot = next((i for i, port in enumerate(self.ports) if port.device is None), len(self.ports))
        if not 0 <= slot < len(self.ports):
            raise VirtfnError(f"no free slot {slot}: the machine has {len(self.ports)}", errno_name="ENODEV")
        if self.ports[slot].device is not None:
            raise VirtfnError(f"slot {slot} is taken", errno_name="EBUSY")
        self.ports[slot].device = device
        self._open.clear()
        return slot

    def detach(self, slot: int) -> None:
        """Pull the card out of a slot; from now on its addresses read all ones.

        Raises VirtfnError if there is no such slot.
        """
        if not 0 <= slot < len(self.ports):
            raise VirtfnError(f"no slot {slot}: the machine has {len(self.ports)}", errno_name="ENODEV")
        self.ports[slot].device = None
        self._open.clear()

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of the configuration space of whatever answers to `rid`; all ones if nothing does."""
        if rid >> 8 == 0:
            function = self._bus0.get(rid)
            return all_ones(size) if function is None else function.config_read(offset, size)
        port = self._port_of(rid)
        local = None if port is None else port.route(rid)
        if port is None or port.device is None or local is None:
            return all_ones(size)
        value = port.device.config_read(local, offset, size)
        if offset == 0 and value == all_ones(size) and size > 1 and local not in port.device.rids():
            port.saw_no_answer()
        return value

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of the configuration space of whatever answers to `rid`."""
        if rid >> 8 == 0:
            function = self._bus0.get(rid)
            if function is not None:
                function.config_write(offset, size, value)
            return
        port = self._port_of(rid)
        if port is None or port.device is None or port.route(rid) is None:
            return
        if rid >> 8 == port.secondary:
            port.device.bus = rid >> 8
        port.device.config_write(rid, offset, size, value)

    def decode(self, address: int, *, io: bool = False) -> Target | None:
        """Find who claims an address of memory or I/O space, through the ports' windows."""
        if io not in self._open:
            cards = [(port, port.device) for port in self.ports if port.device is not None]
            self._open[io] = [(window, card) for port, card in cards for window in port.windows(io=io)]
        for window, card in self._open[io]:
            if address in window:
                found = card.bar_at(address, io=io)
                if found is not None:
                    return Target(card, *found)
        return None

    def mmio_read(self, address: int, size: int) -> int:
        """Read memory space as the CPU does; all ones if nobody claims the address."""
        return self._read(self.decode(address), size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write memory space as the CPU does; ignored if nobody claims the address."""
        self._write(self.decode(address), size, value)

    def io_read(self, address: int, size: int) -> int:
        """Read I/O space as the CPU does; all ones if nobody claims the address."""
        return self._read(self.decode(address, io=True), size)

    def io_write(self, address: int, size: int, value: int) -> None:
        """Write I/O space as the CPU does; ignored if nobody claims the address."""
        self._write(self.decode(address, io=True), size, value)

    @staticmethod
    def _read(target: Target | None, size: int) -> int:
        if target is None:
            return all_ones(size)
        return target.device.bar_read(target.rid, target.bar, target.offset, size)

    @staticmethod
    def _write(target: Target | None, size: int, value: int) -> None:
        if target is not None:
            target.device.bar_write(target.rid, target.bar, target.offset, size, value)

    def _port_of(self, rid: Rid) -> RootPort | None:
        return next((port for port in self.ports if port.owns_bus(rid >> 8)), None)
