"""Invalidation asked for by register: CCMD for contexts, IVA and IOTLB for translations.

    software sets ICC / IVT with a granularity; the unit does it at once, clears the bit, says what it granted

A granularity it does not know, a page range beyond CAP.MAMV, or any command while the queue is on, is granted 0:
nothing was invalidated.

Spec: VT-d, register-based invalidation interface.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.hw.vtd.regs import CCMD, GSTS, IOTLB, IVA, Granularity, Regs
from virtfn.kernels.vtd.iommu import Iommu
from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb, invalidate_iotlb_pages
from virtfn.kernels.vtd.irqremap import invalidate_interrupts
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["ALL_INTERRUPTS", "Invalidator", "RegisterInvalidation"]

ALL_INTERRUPTS = 16
_FUNCTION_MASKS = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)


class Invalidator:
    """The invalidations themselves, whoever asks for them; each returns the granularity done, 0 for a refusal.

    caches: whose; more may come.
    """

    def __init__(self, caches: Sequence[Iommu], max_mask: int) -> None:
        self._caches = caches
        self._max_mask = max_mask

    def contexts(self, granularity: int, domain: int, rid: int, function_mask: int) -> int:
        """Forget contexts: all, of a domain, or of a domain's requesters `rid` but for `function_mask`'s low bits."""
        for iommu in self._caches:
            match granularity:
                case Granularity.GLOBAL:
                    invalidate_contexts(iommu.row, 0, 0, -1)
                case Granularity.DOMAIN:
                    invalidate_contexts(iommu.row, 0, 0, domain)
                case Granularity.SELECTIVE:
                    invalidate_contexts(iommu.row, rid, _FUNCTION_MASKS[function_mask], domain)
        return granularity

    def translations(self, granularity: int, domain: int, address: int, mask: int) -> int:
        """Forget translations: all, of a domain, or of its 2**mask pages at `address`."""
        if granularity == Granularity.SELECTIVE and mask > self._max_mask:
            return 0
        for iommu in self._caches:
            match granularity:
                case Granularity.GLOBAL:
                    invalidate_iotlb(iommu.row, -1)
                case Granularity.DOMAIN:
                    invalidate_iotlb(iommu.row, domain)
                # Beyond any width there is nothing to forget; and compiled code sees addresses signed.
                case Granularity.SELECTIVE if address < 1 << 62:
                    size = 4096 << mask
                    invalidate_iotlb_pages(iommu.row, domain, address & -size, size)
        return granularity

    def interrupts(self, index: int, mask: int) -> None:
        """Forget 2**mask interrupt entries at `index`; all, from a mask of 16 on."""
        for iommu in self._caches:
            invalidate_interrupts(iommu.row, index, min(mask, ALL_INTERRUPTS))


class RegisterInvalidation(Handlers):
    """CCMD and IOTLB. refused: commands that came while the queue was on."""

    def __init__(self, regfile: RegFile, invalidator: Invalidator) -> None:
        self._regs = regfile
        self._invalidator = invalidator
        self.refused = 0

    def _queued(self) -> bool:
        queued = bool(GSTS(self._regs.peek(Regs.GSTS)).QIES)
        self.refused += queued
        return queued

    @on_write(Regs.CCMD)
    def _context_command(self, index: int, written: int, old: int) -> None:
        command = CCMD(self._regs.peek(Regs.CCMD))
        if command.ICC:
            done = 0
            if not self._queued():
                done = self._invalidator.contexts(command.CIRG, command.DID, command.SID, command.FM)
            self._regs.poke(Regs.CCMD, 0, command.replace(ICC=0, CAIG=done).value)

    @on_write(Regs.IOTLB)
    def _iotlb_command(self, index: int, written: int, old: int) -> None:
        command = IOTLB(self._regs.peek(Regs.IOTLB))
        if command.IVT:
            done = 0
            if not self._queued():
                where = IVA(self._regs.peek(Regs.IVA))
                address = where.value & IVA.ADDR.mask
                done = self._invalidator.translations(command.IIRG, command.DID, address, where.AM)
            self._regs.poke(Regs.IOTLB, 0, command.replace(IVT=0, IAIG=done).value)
