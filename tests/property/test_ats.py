"""Device TLBs against their twin: hostile tables that change under the device, which is told of it or is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property.test_pagewalk import Arena, _hostile, _request
from reference.ats import DeviceTlb
from reference.pagewalk import Message
from virtfn.hw.vtd.tables import FaultReason, Request
from virtfn.kernels.vtd.ats import forget_pages, new_device_tlb
from virtfn.kernels.vtd.dma import translate
from virtfn.kernels.vtd.iommu import FAULT_SLOTS
from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb

ENTRIES = 4
RIDS = (0, 1, 0x100)


class Pair:
    """The kernels and their twin, over the same tables."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.block = new_device_tlb(ENTRIES)
        self.twin = DeviceTlb(arena.memory, ENTRIES)
        for rid in RIDS:
            arena.iommu.contexts[rid]["device_tlb"] = self.block.ctypes.data
            arena.iommu.contexts[rid]["key"] = 0

    def access(self, rid: int, iova: int, nbytes: int, write: int) -> None:
        iommu = self.arena.iommu
        unit = iommu.unit[0]
        wanted = self.twin.access(int(unit["root"]), rid, iova, nbytes, bool(write))
        unit["fault_head"] = unit["fault_tail"]
        first, before = int(unit["fault_tail"]), int(unit["faults"])
        signed = iova - (1 << 64) if iova >> 63 else iova
        hpa, run = translate(iommu.row, rid, signed, nbytes, write)
        rows = [iommu.faults[i % FAULT_SLOTS] for i in range(first, int(unit["fault_tail"]))]
        assert [(FaultReason(r["reason"]), Request(r["kind"])) for r in rows] == [f[:2] for f in wanted.faults if f[2]]
        assert int(unit["faults"]) - before == len(wanted.faults)
        if isinstance(wanted.got, Message):
            assert run == wanted.got.size
            unit["message_head"] = unit["message_tail"]
        elif wanted.got is None:
            assert (hpa, run) == (0, 0)
        else:
            assert hpa == wanted.got[0]
            assert min(wanted.got[1], 4096 - hpa % 4096) <= run <= wanted.got[1]
            assert self.arena.base <= hpa <= hpa + run <= self.arena.base + self.arena.memory.size
        assert (iommu.contexts[rid]["device_tlb"] == 0) == (rid in self.twin.off)

    def forget(self, rid: int, first: int, last: int) -> None:
        forget_pages(self.block[0], rid, first, last)
        self.twin.invalidate(rid, first, last)


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    made = Arena()
    yield made
    made.memory.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_device_tlb_and_twin_agree(arena: Arena, data: st.DataObject) -> None:
    """The tables change between rounds. The unit is told each time; the device now and then, and uses what it knows."""
    pair = Pair(arena)
    arena.iommu.unit[0]["root"] = arena.base
    asked: list[tuple[int, int, int, int]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        entries, requests = data.draw(_hostile(arena.base))
        kinds = data.draw(st.lists(st.sampled_from([4, 4, 4, 4, 4, 0]), min_size=2, max_size=2))
        contexts = {(1, 0): kinds[0], (1, 2): kinds[1]}
        arena.fill([(page, index, value | contexts.get((page, index), 0)) for page, index, value in entries])
        asked += requests
        for request in asked:
            pair.access(*request)
        invalidate_contexts(arena.iommu.row, 0, 0, -1)
        invalidate_iotlb(arena.iommu.row, -1)
        for rid, iova, nbytes, _ in data.draw(st.lists(_request, max_size=3)):
            pair.forget(rid, iova // 4096, (iova + nbytes - 1) // 4096)
    for rid in RIDS:
        arena.iommu.contexts[rid]["device_tlb"] = 0
