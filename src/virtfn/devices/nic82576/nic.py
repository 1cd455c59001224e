"""The Intel 82576 as a card on the bus: configuration spaces, BARs, MSI-X and one port.

    function     BAR0                         BAR1    BAR2                  BAR3
    PF           registers (`port.py`)        flash   IOADDR, IODATA        MSI-X table and PBA
    VF n         window on them (`vf_view`)                                 its own table and PBA

Accesses come in by routing ID; what a VF may reach is what its window leads to. `serve` moves frames: the data plane
runs until it needs Python, and this class does what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from virtfn.devices.nic82576.ats import AddressTranslation
from virtfn.devices.nic82576.config import BAR_CSR, BAR_IO, BAR_MSIX, Card, build_endpoint
from virtfn.devices.nic82576.observed import Observed
from virtfn.devices.nic82576.port import Port
from virtfn.devices.nic82576.queuecopy import QueueCopy
from virtfn.devices.nic82576.wire import WireEnd
from virtfn.devices.pci import MsiXTable, Place
from virtfn.hw.bits import Access, RegMap
from virtfn.hw.i82576 import BAR0_BYTES, QUEUES, VFS, Regs, VfRegs, default_image, describe_message, vf_view
from virtfn.hw.pci import Msi, MsiControl
from virtfn.hw.types import Ps, Rid
from virtfn.kernels.card import EV_INTERRUPT, EV_MALICIOUS, MSIX_BYTES
from virtfn.kernels.i82576.port import fire_vectors, serve_port
from virtfn.kernels.i82576.state import POOLS, VECTORS
from virtfn.kernels.vtd.iommu import Iommu
from virtfn.machine.function import all_ones
from virtfn.machine.netports import Vectors
from virtfn.machine.ports import DeviceHost, Mapping, Reset, TranslationAgent, VirtfnError

__all__ = ["Nic82576"]

_IO_ADDRESS, _IO_VALUE = 0, 4


def _carried(offset: int, size: int) -> bool:
    """Tell whether an access reaches registers: 1, 2, 4 or 8 bytes, aligned, so that no neighbour's is touched."""
    return size in (1, 2, 4, 8) and offset >= 0 and offset % size == 0


class Nic82576(WireEnd, Observed):
    """An 82576 with one port. card: what its NVM says. iommu: what its DMA goes through.

    agent: what translates for its device TLB. Raises VirtfnError for a card with ATS and no agent.
    """

    def __init__(self, host: DeviceHost, iommu: Iommu, card: Card, agent: TranslationAgent | None = None) -> None:
        self.card = card
        self._host = host
        self._taps = []
        self.endpoint = build_endpoint(card, host.now)
        self._pf = self.endpoint.pfs[0]
        image = default_image(card.mac, subsystem_id=card.subsystem_id, subsystem_vendor_id=card.subsystem_vendor_id)
        self.port = Port(iommu, image, self._send_vector, host.now, vfs=card.total_vfs > 0)
        self.address = self.port.address
        self.ats: AddressTranslation | None = None
        if card.ats:
            if agent is None:
                raise VirtfnError("a card with ATS needs something that translates for it", errno_name="EINVAL")
            self.ats = AddressTranslation(self._pf.function, iommu, agent, card.device_tlb_entries)
            self.port.nic["port"]["device_tlb"] = self.ats.address
        self.on_access: Callable[[Rid, type[RegMap], int, int, bool], None] | None = None
        self.on_reset: Callable[[Rid, str], None] | None = None
        self.on_message: Callable[[Rid, bool, Sequence[int], str], None] | None = None
        self.port.mailboxes.on_message = self._mailbox_message
        self._views = [vf_view(n) for n in range(len(self._pf.vfs))]
        self._tables: dict[int | None, MsiXTable] = {
            None: MsiXTable(
                self._pf.function, lambda a, m: self._host.msi(self.pf_rid, a, m), self.port.nic["msix"][POOLS]
            )
        }
        for n, vf in enumerate(self._pf.vfs):
            self._tables[n] = MsiXTable(
                vf,
                lambda a, m, n=n: self._host.msi(self.vf_rid(n), a, m),  # type: ignore[misc]
                self.port.nic["msix"][n],
            )
            vf.on_reset.append(lambda kind, n=n: self._vf_was_reset(n))  # type: ignore[misc]
            vf.on_change.append(self._give_queues)
        self._pf.function.on_reset.append(self._pf_was_reset)
        self._pf.function.on_change.append(self._give_queues)
        self._pf.function.on_change.append(self._flush_msi)
        self.port.registers.on(Regs.PBACL, write=self._forget_pending)
        self._vfs = 0
        if self._pf.sriov is not None:
            self._pf.sriov.on_change.append(self._vfs_changed)
        self._io_address = 0
        self._vectors: dict[Rid, Vectors] = {}  # no more than is asked for again and again, until something is written
        self._give_queues()
        self.port.fill_words()

    # Routing IDs and configuration space.

    @property
    def bus(self) -> int:
        """The bus number that the card captured."""
        return self.endpoint.bus

    @bus.setter
    def bus(self, number: int) -> None:
        if number != self.endpoint.bus:
            self.endpoint.bus = number
            self._give_queues()

    @property
    def pf_rid(self) -> Rid:
        """Routing ID of the PF."""
        return self.endpoint.rid(Place(0))

    def vf_rid(self, n: int) -> Rid:
        """Routing ID of VF `n`."""
        return self.endpoint.rid(Place(0, n))

    @property
    def vfs(self) -> int:
        """Enabled VFs."""
        return self._vfs

    def rids(self) -> list[Rid]:
        """List the routing IDs that answer configuration accesses now."""
        return self.endpoint.rids()

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of configuration space."""
        return self.endpoint.config_read(rid, offset, size)

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of configuration space."""
        self._vectors.clear()
        self.endpoint.config_write(rid, offset, size, value)
        self._fire()

    def bar_at(self, address: int, *, io: bool = False) -> tuple[Rid, int, int] | None:
        """Find the (routing ID, BAR, offset) that claims an address now."""
        return self.endpoint.bar_at(address, io=io)

    # BARs.

    def bar_read(self, rid: Rid, bar: int, offset: int, size: int) -> int:
        """Read from a BAR; all ones where no register can be, and for an access that is not aligned to its size."""
        place = self.endpoint.find(rid)
        if place is None or not _carried(offset, size):
            return all_ones(size if size in (1, 2, 4, 8) else 4)
        if size == 8:
            low = self.bar_read(rid, bar, offset, 4)
            return low | self.bar_read(rid, bar, offset + 4, 4) << 32
        if bar == BAR_MSIX:
            return self._tables[place.vf].read(offset, size)
        if place.vf is not None:
            return self._vf_read(place.vf, offset, size) if bar == BAR_CSR else all_ones(size)
        if bar == BAR_CSR and offset < BAR0_BYTES:
            value = self.port.registers.read(offset, size)
            self._seen(rid, Regs, offset, value, False)
            return value
        if bar == BAR_IO and size == 4 and offset == _IO_ADDRESS:
            return self._io_address
        if bar == BAR_IO and size == 4 and offset == _IO_VALUE:
            return self.bar_read(rid, BAR_CSR, self._io_address, 4)
        return all_ones(size)

    def bar_write(self, rid: Rid, bar: int, offset: int, size: int, value: int) -> None:
        """Write to a BAR; ignored where no register can be. Interrupts that it causes leave before it returns."""
        self._bar_write(rid, bar, offset, size, value)
        self._fire()

    def _fire(self) -> None:
        port = self.port.nic["port"]
        if int(port["pending"]) & int(port["eims"]) or self.port.nic["card"]["fired"]:
            self.handle(fire_vectors(self.port.address, self._host.now()))

    def _bar_write(self, rid: Rid, bar: int, offset: int, size: int, value: int) -> None:
        place = self.endpoint.find(rid)
        if place is None or not _carried(offset, size):
            return
        value &= all_ones(size)
        if size == 8:
            self._bar_write(rid, bar, offset, 4, value & 0xFFFFFFFF)
            self._bar_write(rid, bar, offset + 4, 4, value >> 32)
        elif bar == BAR_MSIX:
            self._tables[place.vf].write(offset, size, value)
        elif place.vf is not None:
            if bar == BAR_CSR:
                self._vf_write(place.vf, offset, size, value)
        elif bar == BAR_CSR and offset < BAR0_BYTES:
            self._seen(rid, Regs, offset, value, True)
            self._vectors.clear()
            self.port.registers.write(offset, size, value)
        elif bar == BAR_IO and size == 4 and offset == _IO_ADDRESS:
            self._io_address = value & ~3
        elif bar == BAR_IO and size == 4 and offset == _IO_VALUE:
            self._bar_write(rid, BAR_CSR, self._io_address, 4, value)

    def _vf_read(self, n: int, offset: int, size: int) -> int:
        source = self._views[n].get(offset & ~3)
        value = 0 if source is None else self.port.registers.read(source + (offset & 3), size)
        self._seen(self.vf_rid(n), VfRegs, offset, value, False)
        return value

    def _vf_write(self, n: int, offset: int, size: int, value: int) -> None:
        self._seen(self.vf_rid(n), VfRegs, offset, value, True)
        if offset & ~3 == VfRegs.VTPBACL.offset:
            self._tables[n].pending &= ~(value << 8 * (offset & 3))
        source = self._views[n].get(offset & ~3)
        if source is not None and VfRegs.INDEX[offset & ~3][0].access is not Access.RO:
            self.port.registers.write(source + (offset & 3), size, value)

    def _seen(self, rid: Rid, regmap: type[RegMap], offset: int, value: int, write: bool) -> None:
        if self.on_access is not None:
            self.on_access(rid, regmap, offset, value, write)

    def bar_mappings(self, rid: Rid, bar: int) -> list[Mapping]:
        """List the pages of a BAR that a guest may have mapped: ring registers of a VF, or of a card that has none.

        A VF that is not enabled has them, too: a guest that enables VFs itself keeps them mapped.
        """
        place = self._place(rid)
        return [] if place is None or bar != BAR_CSR else self.port.registers.ring_pages(place.vf)

    def end_mappings(self, rid: Rid) -> None:
        """Take a function's ring pages away from whoever has them mapped."""
        place = self._place(rid)
        if place is not None:
            self.port.registers.withdraw_rings(place.vf)

    def _place(self, rid: Rid) -> Place | None:
        """Find the function that has a routing ID, or will have once it is enabled."""
        functions = (Place(0), *(Place(0, n) for n in range(len(self._pf.vfs))))
        return next((place for place in functions if self.endpoint.rid(place) == rid), None)

    def copy_queues(self, rid: Rid) -> list[QueueCopy]:
        """Let the queues of a function run by copies of their registers, from now on until `end_copies`."""
        place = self.endpoint.find(rid)
        if place is None:
            return []
        own = [q for q in range(QUEUES) if (q % VFS if q % VFS < self._vfs else None) == place.vf]
        made = [copy for q in own for copy in self.port.registers.copy(q)]
        self._give_queues()
        return made

    def end_copies(self, copies: Sequence[object]) -> None:
        """Let queues run by the registers that their driver sees again."""
        kept = self.port.registers.copies
        for q in [q for q, pair in kept.items() if any(copy in copies for copy in pair)]:
            del kept[q]
        self._give_queues()

    # Functions: enabled, disabled and reset.

    def _give_queues(self) -> None:
        self._vectors.clear()
        vfs = [(self.vf_rid(n), self._pf.vfs[n]) for n in range(self._vfs)]
        self.port.give_queues(self.pf_rid, self._pf.function.bus_master, [(rid, vf.bus_master) for rid, vf in vfs])
        if self.ats is not None:
            self.ats.follow([(self.pf_rid, self._pf.function), *vfs])

    def _vfs_changed(self, count: int) -> None:
        before, self._vfs = self._vfs, count
        for n in range(len(self._pf.vfs)):
            if n < max(before, count):
                self._pf.vfs[n].reset(Reset.POWER_ON)
                self.port.vf_gone(n)
        self._give_queues()

    def _vf_was_reset(self, n: int) -> None:
        if n < self._vfs:
            self.port.vf_reset(n)
            self.port.statistics.reset_vf(n)
            self._give_queues()
            if self.on_reset is not None:
                self.on_reset(self.vf_rid(n), "function level reset")

    def _pf_was_reset(self, kind: Reset) -> None:
        self.port.power_on()
        self._give_queues()
        if self.on_reset is not None:
            self.on_reset(self.pf_rid, kind.value)

    # Interrupts and frames.

    def now(self) -> Ps:
        """Return the time now."""
        return self._host.now()

    def _forget_pending(self, index: int, written: int, old: int) -> None:
        """Clear pending bits of the PF's MSI-X table."""
        self._tables[None].pending &= ~written

    def _send_vector(self, function: int | None, vector: int) -> None:
        table = self._tables[function]
        if table.enabled:
            table.raise_vector(vector)
        elif function is None:
            self._send_msi()

    def _send_msi(self) -> None:
        """Send the PF's one MSI message, where software chose MSI instead of MSI-X; a masked one becomes pending."""
        msi = self._pf.function[Msi]
        if MsiControl(msi.peek(Msi.CONTROL)).ENABLE:
            msi.poke(Msi.PENDING, 0, 1)
            self._flush_msi()

    def _flush_msi(self) -> None:
        """Send the MSI message that is pending, if it can leave now."""
        function = self._pf.function
        msi = function[Msi]
        enabled = MsiControl(msi.peek(Msi.CONTROL)).ENABLE
        if not msi.peek(Msi.PENDING) or (enabled and (msi.peek(Msi.MASK) & 1 or not function.bus_master)):
            return
        msi.poke(Msi.PENDING, 0, 0)
        if enabled:
            address = msi.peek(Msi.ADDRESS) | msi.peek(Msi.ADDRESS_HIGH) << 32
            self._host.msi(self.pf_rid, address, msi.peek(Msi.MESSAGE))

    def vectors(self, rid: Rid) -> Vectors:
        """Tell kernels where to find the interrupts of a function.

        No bits: Python alone has to look after them, since somebody watches, or one message stands for all causes. Nor
        are plain registers for kernels where somebody watches, or the function is not there.
        """
        found = self._vectors.get(rid)
        if found is None:
            place = self.endpoint.find(rid)
            function, first, bits = self.port.interrupts.vectors(None if place is None else place.vf)
            table = self.port.msix + function * VECTORS * MSIX_BYTES
            found = Vectors(function, table, first, 0 if place is None else bits, place is not None)
            self._vectors[rid] = found
        return found if self.on_access is None else found._replace(bits=0, plain=False)

    def settle(self) -> None:
        """Bring what kernels look up in line with the registers, and let timers fire: before they are called."""
        self.port.settle()
        self.port.tick()

    @property
    def waits(self) -> bool:
        """Whether a frame holds up the line."""
        return bool(self.port.nic["port"]["stalled"])

    def follow_time(self, limit_ps: int) -> None:
        """Let kernels see the machine's time pass, and work for `limit_ps` at most."""
        self.port.follow_time(limit_ps)

    def serve(self, budget: int = 64) -> tuple[int, int]:
        """Move up to `budget` frames of each transmit queue, and do what the data plane asks for.

        Returns (frames, events).
        """
        self.settle()
        frames, events = serve_port(self.port.address, self._host.now(), budget)
        self.handle(events)
        return frames, events

    def handle(self, events: int) -> None:
        """Do what a call of the data plane asked for: report misbehaviour, send interrupts, ask for pages.

        Nothing is under way now, so this is the place to answer invalidations, too.
        """
        if self.ats is not None:
            self.ats.serve()
        if events & EV_MALICIOUS:
            self.port.report_misbehaviour()
            self._fire()
        if events & EV_INTERRUPT or self.port.nic["card"]["fired"]:
            self.port.interrupts.deliver()

    def _mailbox_message(self, n: int, to_pf: bool, words: list[int]) -> None:
        if self.on_message is not None:
            used = words[: max((i + 1 for i, word in enumerate(words) if word), default=0)]
            self.on_message(self.vf_rid(n), to_pf, used, describe_message(used))

    def close(self) -> None:
        """Release memory."""
        self.close_taps()
        self.port.close()
