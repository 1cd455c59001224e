"""Every reason why DMA is refused, from tables written by hand to the fault recording register; and the fault event."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from unit.devices.iommu.rig import RID, Queued, R, Rig
from virtfn.hw.types import Iova
from virtfn.hw.vtd.regs import FRCD_HIGH, FSTS, EventControl, Fault, Regs, decode_fault
from virtfn.hw.vtd.tables import FaultReason

AT = 0x1000


@pytest.fixture
def w() -> Iterator[Rig]:
    made = Rig()
    made.enable()
    yield made
    made.memory.close()


def _root(word: int, high: int = 0) -> Callable[[Rig], None]:
    def change(w: Rig) -> None:
        w.put(w.root + (RID >> 8) * 16, word)
        w.put(w.root + (RID >> 8) * 16 + 8, high)

    return change


def _context(low: Callable[[Rig], int], high: int = 2 | 5 << 8) -> Callable[[Rig], None]:
    return lambda w: w.set_context(RID, low(w), high)


def _leaf(word: Callable[[Rig], int], level: int = 1) -> Callable[[Rig], None]:
    return lambda w: w.put(w.ss[level] + (8 if level == 1 else 0), word(w))


def _top(w: Rig) -> int:
    return w.ss[4] | 1


CASES: dict[str, tuple[FaultReason, Callable[[Rig], None], int, bool]] = {
    "root: P=0": (FaultReason.ROOT_NOT_PRESENT, _root(0), AT, False),
    "context: P=0": (FaultReason.CONTEXT_NOT_PRESENT, _context(lambda w: 0), AT, False),
    "context: T=3": (FaultReason.CONTEXT_INVALID, _context(lambda w: _top(w) | 3 << 2), AT, False),
    "context: AW=0": (FaultReason.CONTEXT_INVALID, _context(_top, 0 | 5 << 8), AT, False),
    "context: AW=3": (FaultReason.CONTEXT_INVALID, _context(_top, 3 | 5 << 8), AT, False),
    "address: 49 bits": (FaultReason.ADDRESS_BEYOND_WIDTH, lambda w: None, 1 << 48, False),
    "address: 64 bits": (FaultReason.ADDRESS_BEYOND_WIDTH, lambda w: None, 0xFFFF_FFFF_FFFF_F000, True),
    "page: W=0": (FaultReason.WRITE_NOT_ALLOWED, _leaf(lambda w: w.page | 1), AT, True),
    "table: W=0": (FaultReason.WRITE_NOT_ALLOWED, _leaf(lambda w: w.ss[2] | 1, 3), AT, True),
    "page: R=0": (FaultReason.READ_NOT_ALLOWED, _leaf(lambda w: w.page | 2), AT, False),
    "page: nothing": (FaultReason.READ_NOT_ALLOWED, _leaf(lambda w: 0), AT, False),
    "table: nowhere": (FaultReason.PAGING_ENTRY_ACCESS, _leaf(lambda w: 1 << 40 | 3, 2), AT, False),
    "top table: nowhere": (FaultReason.PAGING_ENTRY_ACCESS, _context(lambda w: 1 << 40 | 1), AT, False),
    "context table: nowhere": (FaultReason.CONTEXT_TABLE_ACCESS, _root(1 << 40 | 1), AT, False),
    "root: bit 1": (FaultReason.ROOT_RESERVED, _root(3), AT, False),
    "root: high half": (FaultReason.ROOT_RESERVED, _root(1, 1), AT, False),
    "context: bit 4": (FaultReason.CONTEXT_RESERVED, _context(lambda w: _top(w) | 1 << 4), AT, False),
    "context: bit 88": (FaultReason.CONTEXT_RESERVED, _context(_top, 2 | 5 << 8 | 1 << 24), AT, False),
    "page: bit 51": (FaultReason.PAGING_ENTRY_RESERVED, _leaf(lambda w: w.page | 3 | 1 << 51), AT, False),
    "page: SNP": (FaultReason.PAGING_ENTRY_RESERVED, _leaf(lambda w: w.page | 3 | 1 << 11), AT, False),
    "large page: bit 12": (FaultReason.PAGING_ENTRY_RESERVED, _leaf(lambda w: 0x1083, 2), AT, False),
    "table of level 4: PS": (FaultReason.PAGING_ENTRY_RESERVED, _leaf(lambda w: w.ss[3] | 0x83, 4), AT, False),
    "page: FEExxxxx": (FaultReason.INTERRUPT_RANGE_OUTPUT, _leaf(lambda w: 0xFEE0_0003), AT, True),
}


@pytest.mark.parametrize(("reason", "change", "iova", "write"), CASES.values(), ids=CASES.keys())
def test_reason(w: Rig, reason: FaultReason, change: Callable[[Rig], None], iova: int, write: bool) -> None:
    change(w)
    if write:
        assert not w.device.dma_write(R, Iova(iova), b"x")
    else:
        assert w.device.dma_read(R, Iova(iova), 1) is None
    assert decode_fault(w.read(Regs.FRCD_LOW), w.read(Regs.FRCD_HIGH)) == Fault(R, Iova(iova), reason, write)
    assert FSTS(w.read(Regs.FSTS)).PPF


def test_reason_root_table_nowhere() -> None:
    w = Rig()
    w.root = 1 << 40
    w.enable()
    assert w.device.dma_read(R, Iova(AT), 1) is None
    assert FRCD_HIGH(w.read(Regs.FRCD_HIGH)).FR == FaultReason.ROOT_TABLE_ACCESS
    w.memory.close()


def test_every_reason_of_dma_is_here() -> None:
    reached = {reason for reason, _, _, _ in CASES.values()} | {FaultReason.ROOT_TABLE_ACCESS}
    # Translation and translated requests come from devices with a TLB.
    assert reached == {r for r in FaultReason if not r.of_interrupt} - {FaultReason.BLOCKED_BY_TYPE}


def test_fpd_suppresses_what_is_qualified(w: Rig) -> None:
    w.set_context(RID, w.ss[4] | 1 | 2, 2 | 5 << 8)
    assert w.device.dma_read(R, Iova(0x9000), 1) is None
    assert w.read(Regs.FSTS) == 0
    stats = w.device.stats()
    assert (stats["faults"], stats["suppressed"], stats["faults_lost"]) == (1, 1, 0)


def test_overflow_and_its_events(w: Rig) -> None:
    w.event(Regs.FECTL, 0x41)
    w.refuse(9)
    status = FSTS(w.read(Regs.FSTS))
    assert (status.PPF, status.PFO, len(w.sent)) == (1, 1, 1), "the overflow joins an event that is known already"
    for i in range(8):
        w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask, i)
    w.refuse()
    assert (FSTS(w.read(Regs.FSTS)).PPF, len(w.sent)) == (0, 1)
    w.write(Regs.FSTS, FSTS.PFO.mask)
    w.refuse()
    assert (FSTS(w.read(Regs.FSTS)).PPF, len(w.sent)) == (1, 2)


def test_masked_overflow_stays_pending_until_all_is_cleared(w: Rig) -> None:
    w.refuse(9)
    for i in range(8):
        w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask, i)
    assert EventControl(w.read(Regs.FECTL)).IP == 1
    w.write(Regs.FSTS, FSTS.PFO.mask)
    assert EventControl(w.read(Regs.FECTL)).IP == 0


def test_fault_and_queue_error_share_one_event() -> None:
    q = Queued()
    q.event(Regs.FECTL, 0x41)
    q.refuse()
    q.go(0)
    assert (q.errors.PPF, q.errors.IQE, len(q.sent)) == (1, 1, 1)
    q.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask)
    q.refuse()
    assert len(q.sent) == 1, "the queue error is still there"
    q.memory.close()


def test_a_handler_may_read_records_from_within_the_event(w: Rig) -> None:
    taken = []

    def handler(address: int, message: int) -> None:
        for i in range(8):
            high = w.read(Regs.FRCD_HIGH, i)
            if FRCD_HIGH(high).F:
                taken.append(decode_fault(w.read(Regs.FRCD_LOW, i), high).iova)
                w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask, i)

    w.device._recording._event._send = handler
    w.event(Regs.FECTL, 0x41)
    for page in range(16, 19):
        w.ask(page << 12)
    w.device.service()
    assert sorted(taken) == [page << 12 for page in range(16, 19)]
    assert len(w.device.faults()) == 3
