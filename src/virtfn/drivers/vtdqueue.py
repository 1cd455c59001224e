"""How the remapping driver has caches invalidated: descriptors in batches, by queue or, if need be, by register.

    ByQueue:     batch -> ring -> IQT; the unit does it in order, then a wait writes a number into memory
    ByRegister:  one command after the other, for a unit without a queue, or whose queue is off

Spec: VT-d, queued invalidation interface; register-based invalidation interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from virtfn.drivers.secondstage import TablePages
from virtfn.drivers.vtdregisters import UnitRegisters
from virtfn.hw.bits import Register
from virtfn.hw.types import Rid
from virtfn.hw.vtd.queue import (
    DESCRIPTOR_BYTES,
    ContextInvalidation,
    DeviceTlbInvalidation,
    InvalidationType,
    InvalidationWait,
    IotlbInvalidation,
)
from virtfn.hw.vtd.regs import CCMD, FSTS, GCMD, GSTS, IOTLB, IQA, Granularity, Regs
from virtfn.machine.clock import MS_PS, S_PS, US_PS
from virtfn.machine.memory import PAGE
from virtfn.machine.ports import VirtfnError

__all__ = ["WHOLE_SPACE", "ByQueue", "ByRegister", "Invalidations", "blocks", "device_tlb_invalidation"]

BATCH = 100
WHOLE_SPACE = 52
"""Log2 of the pages of all addresses."""
_WORD = (1 << 64) - 1
_PATIENCE_PS = 10 * MS_PS
_DEVICE_PATIENCE_PS = 120 * S_PS  # a device may take up to 90 s to answer


class Invalidations(Protocol):
    """A way to have descriptors done."""

    def submit(self, batch: Sequence[Register]) -> None:
        """Have a batch done in order, and return when it is.

        Raises VirtfnError if the unit refuses one, or the unit or a device does not answer.
        """

    def close(self) -> None:
        """Give back what it takes in memory."""


class ByRegister:
    """CCMD and IOTLB. Knows descriptors for contexts and translations only."""

    def __init__(self, unit: UnitRegisters) -> None:
        self._unit = unit
        self._at = unit.ecap.IRO * 16

    def submit(self, batch: Sequence[Register]) -> None:
        """Have a batch done, one command after the other."""
        for descriptor in batch:
            match descriptor:
                case ContextInvalidation() as d:
                    self._contexts(CCMD.of(ICC=1, CIRG=d.G, DID=d.DID, SID=d.SID, FM=d.FM))
                case IotlbInvalidation() as d:
                    if d.G == Granularity.SELECTIVE:
                        self._unit.window.write(self._at, 8, d.value >> 64)
                    self._translations(IOTLB.of(IVT=1, IIRG=d.G, DID=d.DID, DW=d.DW, DR=d.DR))
                case d:
                    name = type(d).__name__
                    raise VirtfnError(f"without its queue, a remapping unit knows no {name}", errno_name="ENODEV")

    def close(self) -> None:
        """Nothing is in memory."""

    def _contexts(self, command: CCMD) -> None:
        self._unit.write(Regs.CCMD, command.value)
        if not CCMD(self._unit.wait(Regs.CCMD, CCMD.ICC.mask, 0)).CAIG:
            raise VirtfnError(f"the remapping unit refused to invalidate contexts: {command}", errno_name="EIO")

    def _translations(self, command: IOTLB) -> None:
        self._unit.window.write(self._at + 8, 8, command.value)
        if not IOTLB(self._unit.wait_at(self._at + 8, 8, IOTLB.IVT.mask, 0, "IOTLB")).IAIG:
            raise VirtfnError(f"the remapping unit refused to invalidate its IOTLB: {command}", errno_name="EIO")


class ByQueue:
    """A ring of one page, and a word for waits. Made, it is on; `close` switches it off and frees its pages.

    errors: counts what the unit reported, by field of FSTS.
    """

    def __init__(self, unit: UnitRegisters, pages: TablePages, errors: Counter[str]) -> None:
        self._unit = unit
        self._pages = pages
        self._errors = errors
        self._ring, self._status = pages.alloc(), pages.alloc()
        self._tail = 0
        self._number = 0
        unit.write(Regs.IQT, 0)
        unit.write(Regs.IQA, IQA(self._ring).value)
        unit.command(GCMD.QIE.mask, until=GSTS.QIES.mask, wanted=GSTS.QIES.mask)

    def close(self) -> None:
        """Switch the queue off."""
        self._unit.command(0, GCMD.QIE.mask, until=GSTS.QIES.mask, wanted=0)
        for page in (self._ring, self._status):
            self._pages.free(page)

    def submit(self, batch: Sequence[Register]) -> None:
        """Have a batch done, of any length; a device that does not answer is asked twice."""
        for first in range(0, len(batch), BATCH):
            part = batch[first : first + BATCH]
            if not self._push(part) and not self._push(part):
                raise VirtfnError("a device does not answer invalidations of its device TLB", errno_name="ETIMEDOUT")

    def _push(self, part: Sequence[Register]) -> bool:
        """Queue descriptors and a wait, and see it through; False after a time-out of a device."""
        patience = _PATIENCE_PS
        if any(isinstance(descriptor, DeviceTlbInvalidation) for descriptor in part):
            patience = _DEVICE_PATIENCE_PS
        # Devices that did not answer may hold up some of an earlier batch. And whoever the unit has to call, it calls
        # now, not between the descriptors and IQT.
        while not self._until(lambda: self._room() > len(part), _DEVICE_PATIENCE_PS, {}):
            pass
        self._number = self._number + 1 & 0xFFFFFFFF
        number, first = self._number, self._tail
        wait = InvalidationWait.of(TYPE=InvalidationType.WAIT, SW=1, DATA=number, ADDR=self._status >> 2)
        for i, descriptor in enumerate([*part, wait]):
            self._put(first + i * DESCRIPTOR_BYTES, descriptor)
        self._tail = (first + (len(part) + 1) * DESCRIPTOR_BYTES) % PAGE
        self._unit.write(Regs.IQT, self._tail)
        refused: dict[int, Register] = {}
        if not self._until(lambda: self._reached(number), patience, refused):
            return False
        if refused:
            words = "; ".join(f"{type(d).__name__} {d}" for d in refused.values())
            raise VirtfnError(f"the remapping unit refused to invalidate: {words}", errno_name="EIO")
        return True

    def _until(self, done: Callable[[], bool], patience: int, refused: dict[int, Register]) -> bool:
        """Wait, clearing errors meanwhile; False after a time-out of a device. refused: what the unit did not take."""
        deadline = self._unit.clock.now() + patience
        pause = US_PS
        while not done():
            status = FSTS(self._unit.read(Regs.FSTS))
            if status.IQE:
                self._skip(refused)
            if status.ICE:
                self._clear("ICE")
            if status.ITE:
                self._clear("ITE")
                return False
            if not status.value & (FSTS.IQE.mask | FSTS.ICE.mask):
                if self._unit.clock.now() >= deadline:
                    head = self._unit.read(Regs.IQH)
                    raise VirtfnError(f"the remapping unit hangs: IQH is {head:#x}", errno_name="ETIMEDOUT")
                self._unit.clock.sleep(pause)
                pause = min(2 * pause, MS_PS)
        return True

    def _room(self) -> int:
        """Count the free slots; one stays empty, as a full ring would look empty."""
        return (self._unit.read(Regs.IQH) - self._tail - DESCRIPTOR_BYTES) % PAGE // DESCRIPTOR_BYTES

    def _reached(self, number: int) -> bool:
        """Tell whether the wait with `number` is done; a later one may have been by now."""
        return int(self._pages.row(self._status)[0]) - number & 0xFFFFFFFF < 1 << 31

    def _skip(self, refused: dict[int, Register]) -> None:
        """Put a fence, which any unit knows, in the place of the descriptor that stopped the queue."""
        head = self._unit.read(Regs.IQH) % PAGE
        if head in refused:
            raise VirtfnError("the remapping unit cannot read its invalidation queue", errno_name="EIO")
        refused[head] = self._get(head)
        self._put(head, InvalidationWait.of(TYPE=InvalidationType.WAIT, FN=1))
        self._clear("IQE")

    def _clear(self, name: str) -> None:
        self._errors[name] += 1
        self._unit.write(Regs.FSTS, FSTS.field(name).mask)

    def _put(self, offset: int, descriptor: Register) -> None:
        row, at = self._pages.row(self._ring), offset % PAGE // 8
        row[at] = descriptor.value & _WORD
        row[at + 1] = descriptor.value >> 64

    def _get(self, offset: int) -> Register:
        row, at = self._pages.row(self._ring), offset // 8
        return Register(int(row[at]) | int(row[at + 1]) << 64)


def blocks(first: int, pages: int, max_mask: int) -> Iterator[tuple[int, int]]:
    """Cover `pages` pages from page `first` on with few aligned blocks; yield (first page, log2 of the pages) of each.

    An end may be rounded out by up to a quarter of the range: forgetting a few neighbours costs less than asking
    for each piece. No block is larger than 2**max_mask pages.
    """
    grain = min(max(pages.bit_length() - 3, 0), max_mask)
    last = -(-(first + pages) >> grain) << grain
    first = first >> grain << grain
    while first < last:
        alignment = (first & -first).bit_length() - 1 if first else max_mask
        mask = min(alignment, (last - first).bit_length() - 1, max_mask)
        yield first, mask
        first += 1 << mask


def device_tlb_invalidation(rid: Rid, page: int = 0, mask: int = WHOLE_SPACE) -> DeviceTlbInvalidation:
    """Describe the invalidation of 2**mask pages from `page` on, or of all, in a requester's device TLB."""
    kind = InvalidationType.DEVICE_TLB
    size = (1 << mask - 1) - 1 if mask else 0  # trailing ones of the address, the first zero above them, tell the size
    return DeviceTlbInvalidation.of(TYPE=kind, SID=int(rid), S=int(mask > 0), ADDR=page | size)
