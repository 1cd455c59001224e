"""Frames in many pieces over memory that comes page by page: what arrives is what arrives when all of it is there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from unit.nicrig import EOP, IFCS, RS, Rig, data, ether, mac, rid
from virtfn.kernels.i82576.state import POOLS
from virtfn.kernels.vtd.ats import FREE, NEW, REFUSED, new_device_tlb
from virtfn.kernels.vtd.iotlb import invalidate_contexts
from virtfn.machine.memory import PAGE


class Paged(Rig):
    """A rig whose pools have a device TLB, and none of their pages. patience: calls until a page comes."""

    def __init__(self) -> None:
        super().__init__()
        self.tlb = new_device_tlb(16)
        self.port["device_tlb"] = self.tlb.ctypes.data
        self.cache = self.tlb[0]["cache"][0]
        self.cache["pages_allowed"] = 8
        self.refuse: set[tuple[int, int]] = set()
        self.asked: list[tuple[int, int]] = []
        root = int(self.iommu.unit[0]["root"])
        contexts = self._load(root + (rid(0) >> 8) * 16) & -PAGE
        for pool in range(POOLS):
            at = contexts + (rid(pool) & 255) * 16
            self._word(at, self._load(at) | 1 << 2)
            self.iommu.contexts[rid(pool)]["device_tlb"] = self.tlb.ctypes.data
            for page in range(512):
                self._word(self.tables[pool] + page * 8, 0)
        invalidate_contexts(self.iommu.row, 0, 0, -1)

    def _load(self, address: int) -> int:
        at = address - self.memory.base
        return int.from_bytes(self.memory.bytes[at : at + 8].tobytes(), "little")

    def page_in(self) -> int:
        """Answer every request; return how many there were."""
        count = 0
        for slot in self.tlb[0]["pages"]:
            if slot["state"] != NEW:
                continue
            pool, page = (int(slot["rid"]) - rid(0)) // 2, int(slot["page"])
            self.asked.append((pool, page))
            refused = (pool, page) in self.refuse
            if not refused:
                self._word(self.tables[pool] + page * 8, self.pages[pool][page] | 3)
            slot["state"] = REFUSED if refused else FREE
            self.cache["unsent"] -= 1
            self.cache["pages_under_way"] -= 1
            count += 1
        return count

    def settle(self) -> None:
        """Serve and answer until nothing moves."""
        idle = 0
        while idle < 3:
            frames, _ = self.serve()
            idle = 0 if self.page_in() or frames else idle + 1


@pytest.fixture
def b() -> Iterator[Paged]:
    made = Paged()
    yield made
    made.close()


def pieces(b: Paged, rng: random.Random, body: bytes) -> list[tuple[int, int]]:
    """Put a frame into up to five buffers, anywhere in a page, and describe them."""
    cuts = sorted({0, len(body), *(rng.randrange(20, len(body)) for _ in range(rng.randrange(5)))})
    made = []
    for first, last in pairwise(cuts):
        at = b.store(0, body[first:last], rng.randrange(PAGE))
        made.append(data(at, last - first, IFCS | RS | (EOP if last == len(body) else 0), len(body)))
    return made


@pytest.mark.parametrize("layout", [{}, {"kib": 1}, {"kib": 1, "header": 128, "layout": 5}, {"layout": 0, "kib": 1}])
@pytest.mark.parametrize("head_wb", [False, True])
def test_frames_in_pieces(b: Paged, layout: dict[str, int], head_wb: bool) -> None:
    rng = random.Random(repr((layout, head_wb)))
    b.open_tx(0, 64, head_wb=head_wb)
    b.open_rx(1, 64, drop=False, **layout)
    for n in range(60):
        body = ether(mac(1), mac(0), payload=rng.randbytes(rng.randrange(50, 1490)))
        b.post(0, *pieces(b, rng, body))
        b.settle()
        (got,) = b.frames(1)
        assert got.data == body, n
        b.refill(1, len(got.descriptors))
    assert b.drops() == {}
    assert b.faults == 0
    assert len(b.asked) == len(set(b.asked)) > 20
    if head_wb:
        assert b.words(0, b.head_wb(0))[0] & 0xFFFFFFFF == b.head(1, 0)


def test_a_refused_piece_costs_its_frame_only(b: Paged) -> None:
    rng = random.Random(5)
    b.open_tx(0)
    b.open_rx(1, 16, drop=False)
    bodies = [ether(mac(1), mac(0), payload=rng.randbytes(300)) for _ in range(3)]
    for i, body in enumerate(bodies):
        at, more = b.store(0, body[:100]), b.store(0, body[100:])
        b.post(0, data(at, 100, IFCS | RS, len(body)), data(more, len(body) - 100, payload=len(body)))
        if i == 1:
            b.refuse.add((0, more // PAGE))
    b.settle()
    assert [got.data for got in b.frames(1)] == [bodies[0], bodies[2]]
    assert b.drops() == {(0, "dma-fault"): 1}
    assert b.head(1, 0) == 6


def test_a_refused_ring_stands_still(b: Paged) -> None:
    b.open_tx(0)
    b.refuse.add((0, b.ring(1, 0) // PAGE))
    b.send(0, bytes(64))
    b.settle()
    assert b.head(1, 0) == 0
    assert not b.regs[1, 0, 10] & np.uint32(1 << 25)
