"""Interrupt remapping: the table's registers, and the messages that come in.

    message of a device's MSI or MSI-X -----+--> remap_interrupt --> deliver(destination, vector)
    DMA write to FEExxxxx, met by kernels --+                        or a fault, or a bit in a posted descriptor

Both kinds are the same on the bus, a write by a requester, and are judged by the same table.

Spec: VT-d, interrupt remapping.
"""

from __future__ import annotations

from collections.abc import Callable

from virtfn.hw.types import Rid
from virtfn.hw.vtd.regs import GCMD, GSTS, IRTA, Regs
from virtfn.kernels.vtd.iommu import MESSAGE_SLOTS, Iommu
from virtfn.kernels.vtd.irqremap import DELIVERED, remap_interrupt
from virtfn.machine.regfile import RegFile

__all__ = ["Deliver", "InterruptRemapping"]

Deliver = Callable[[int, int], object]
"""Takes destination and vector of an interrupt that may be raised."""


class InterruptRemapping:
    """IRTA, and GCMD's bits about interrupts. deliver: raises a vector."""

    def __init__(self, regfile: RegFile, iommu: Iommu, deliver: Deliver) -> None:
        self._regs = regfile
        self._iommu = iommu
        self._unit = iommu.unit[0]
        self._deliver = deliver
        self.on_message: Callable[[Rid, int, int], object] | None = None

    def reset(self) -> None:
        """Pass messages unchanged; forget those that wait."""
        for name in ("remapping", "irta", "irt_entries", "compatible", "wide"):
            self._unit[name] = 0
        self._unit["message_head"] = self._unit["message_tail"]

    def command(self, command: GCMD, status: GSTS) -> GSTS:
        """Do what a global command says about interrupts; return the new status."""
        if command.SIRTP:
            # The interrupt entry cache stays: without CAP.ESIRTPS it is software that invalidates.
            table = IRTA(self._regs.peek(Regs.IRTA))
            address = table.value & IRTA.IRTA.mask
            self._unit["irta"] = address - (address >> 63 << 64)
            self._unit["irt_entries"] = 2 << table.S
            self._unit["wide"] = table.EIME
            status = status.replace(IRTPS=1)
        self._unit["remapping"] = command.IRE
        self._unit["compatible"] = command.CFI
        return status.replace(IRES=command.IRE, CFIS=command.CFI)

    def send(self, rid: Rid, address: int, message: int) -> bool:
        """Take a message of requester `rid`; False if nothing may come of it."""
        if self.on_message is not None:
            self.on_message(rid, address, message)
        signed = address - (address >> 63 << 64)
        outcome, vector, destination = remap_interrupt(self._iommu.row, int(rid), signed, message)
        if outcome == DELIVERED:
            self._deliver(destination, vector)
        return bool(outcome)

    def send_written(self) -> None:
        """Send the messages that DMA has written since the last time."""
        unit = self._unit
        while unit["message_head"] < unit["message_tail"]:
            slot = int(unit["message_head"]) % MESSAGE_SLOTS
            unit["message_head"] += 1
            row, page = self._iommu.messages[slot], self._iommu.message_pages[slot]
            rid, address = Rid(int(row["rid"])), int(row["address"])
            at = address & 0xFFC
            self.send(rid, address, int.from_bytes(page[at : at + 4].tobytes(), "little"))
