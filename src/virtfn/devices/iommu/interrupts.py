"""Interrupt remapping: the table's registers, and the messages that come in.

    message of a device's MSI or MSI-X -----+--> remap_interrupt --> deliver(destination, vector)
    DMA write to FEExxxxx, met by kernels --+                        or a fault, or a bit in a posted descriptor

Both kinds are the same on the bus, a write by a requester, and are judged by the same table.

Spec: VT-d, interrupt remapping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from virtfn.hw.types import Rid
from virtfn.hw.vtd.regs import GCMD, GSTS, IRTA, Regs
from virtfn.kernels.vtd.iommu import MESSAGE_SLOTS, Iommu
from virtfn.kernels.vtd.irqremap import DELIVERED, remap_interrupt
from virtfn.machine.regfile import RegFile

__all__ = ["Deliver", "InterruptRemapping"]

Deliver = Callable[[int, int], object]
"""Takes destination and vector of an interrupt that may be raised."""


class InterruptRemapping:
    """IRTA, and GCMD's bits about interrupts. rows: of the unit; more may come. deliver: raises a vector."""

    def __init__(self, regfile: RegFile, rows: Sequence[Iommu], deliver: Deliver) -> None:
        self._regs = regfile
        self._rows = rows
        self._deliver = deliver
        self.on_message: Callable[[Rid, int, int], object] | None = None

    def reset(self) -> None:
        """Pass messages unchanged; forget those that wait."""
        self._set(remapping=0, irta=0, irt_entries=0, compatible=0, wide=0)
        for iommu in self._rows:
            iommu.unit[0]["message_head"] = iommu.unit[0]["message_tail"]

    def _set(self, **words: int) -> None:
        for iommu in self._rows:
            for name, word in words.items():
                iommu.unit[0][name] = word

    def command(self, command: GCMD, status: GSTS) -> GSTS:
        """Do what a global command says about interrupts; return the new status."""
        if command.SIRTP:
            # The interrupt entry cache stays: without CAP.ESIRTPS it is software that invalidates.
            table = IRTA(self._regs.peek(Regs.IRTA))
            address = table.value & IRTA.IRTA.mask
            self._set(irta=address - (address >> 63 << 64), irt_entries=2 << table.S, wide=table.EIME)
            status = status.replace(IRTPS=1)
        self._set(remapping=command.IRE, compatible=command.CFI)
        return status.replace(IRES=command.IRE, CFIS=command.CFI)

    def send(self, rid: Rid, address: int, message: int) -> bool:
        """Take a message of requester `rid`; False if nothing may come of it."""
        if self.on_message is not None:
            self.on_message(rid, address, message)
        signed = address - (address >> 63 << 64)
        outcome, vector, destination = remap_interrupt(self._rows[0].row, int(rid), signed, message)
        if outcome == DELIVERED:
            self._deliver(destination, vector)
        return bool(outcome)

    def send_written(self) -> None:
        """Send the messages that DMA has written since the last time."""
        for iommu in self._rows:
            unit = iommu.unit[0]
            while unit["message_head"] < unit["message_tail"]:
                slot = int(unit["message_head"]) % MESSAGE_SLOTS
                unit["message_head"] += 1
                row, page = iommu.messages[slot], iommu.message_pages[slot]
                rid, address = Rid(int(row["rid"])), int(row["address"])
                at = address & 0xFFC
                self.send(rid, address, int.from_bytes(page[at : at + 4].tobytes(), "little"))
