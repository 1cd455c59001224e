"""Interrupt remapping: kernel and twin agree on any message, any entry, any requester."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.irqremap import Blocked, Noted, Raised, Unit, remap
from virtfn.hw.vtd.interrupts import PostedControl, PostedIrte, RemappableAddress, RemappedIrte
from virtfn.hw.vtd.tables import FaultReason
from virtfn.kernels.vtd.iommu import FAULT_SLOTS, new_iommu
from virtfn.kernels.vtd.irqremap import BLOCKED, DELIVERED, POSTED, invalidate_interrupts, remap_interrupt
from virtfn.machine.memory import CHUNK, HostMemory

PIDS = 4096  # offset of two posted interrupt descriptors


class Arena:
    """A page for the table, one for descriptors; the same memory twice, for kernel and twin."""

    def __init__(self) -> None:
        self.memory, self.other = HostMemory(CHUNK), HostMemory(CHUNK)
        self.iommu = new_iommu(self.memory.base, self.memory.size)
        self.row = self.iommu.row
        self.unit = self.iommu.unit[0]

    def set(self, unit: Unit) -> Unit:
        """Say what the registers say; return the same for the twin, whose memory is elsewhere."""
        self.unit["remapping"] = unit.table is not None
        self.unit["irta"] = self.memory.base + (unit.table or 0)
        self.unit["irt_entries"] = unit.entries
        self.unit["compatible"], self.unit["wide"] = unit.compatible, unit.wide
        self.unit["fault_head"] = self.unit["fault_tail"]
        invalidate_interrupts(self.row, 0, 16)
        return unit if unit.table is None else dataclasses.replace(unit, table=self.other.base + unit.table)

    def put(self, offset: int, value: int, size: int) -> None:
        for memory in (self.memory, self.other):
            memory.bytes[offset : offset + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)

    def entry(self, index: int, bits: int) -> None:
        """Write an entry; a posted one whose descriptor is 0 or 1 gets the address of that descriptor."""
        self.put(16 * index, bits, 16)
        posted = PostedIrte(bits)
        if posted.IM and posted.PDA_LOW in (0, 1) and not posted.PDA_HIGH:
            for memory in (self.memory, self.other):
                at = memory.base + PIDS + 64 * posted.PDA_LOW
                value = posted.replace(PDA_LOW=at >> 6 & (1 << 26) - 1, PDA_HIGH=at >> 32).value
                memory.bytes[16 * index : 16 * index + 16] = np.frombuffer(value.to_bytes(16, "little"), np.uint8)

    def compare(self, unit: Unit, rid: int, address: int, message: int) -> None:
        wanted = remap(self.other, unit, rid, address, message)
        tail, suppressed = int(self.unit["fault_tail"]), int(self.unit["suppressed"])
        got = remap_interrupt(self.row, rid, address, message)
        faults = int(self.unit["fault_tail"]) - tail
        match wanted:
            case Raised(vector, destination):
                assert got == (DELIVERED, vector, destination)
            case Noted():
                assert got == (POSTED, 0, 0)
            case Blocked(reason, index, recorded):
                assert got == (BLOCKED, 0, 0)
                assert (faults, int(self.unit["suppressed"]) - suppressed) == (recorded, not recorded)
                if recorded:
                    row = self.iommu.faults[tail % FAULT_SLOTS]
                    iova = int(row["iova"]) & (1 << 64) - 1
                    assert (row["rid"], iova, row["reason"]) == (rid, index << 48, reason)
        assert faults == 0 or isinstance(wanted, Blocked)
        assert (self.memory.bytes[PIDS : PIDS + 128] == self.other.bytes[PIDS : PIDS + 128]).all()
        self.unit["fault_head"] = self.unit["fault_tail"]


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    made = Arena()
    yield made
    made.memory.close()
    made.other.close()


def _bits(*, often: int, width: int) -> st.SearchStrategy[int]:
    return st.sampled_from([often] * 5) | st.integers(0, (1 << width) - 1)


RIDS = st.sampled_from([0x0100, 0x0101, 0x0104, 0x0107, 0x0180, 0x0200, 0x0300, 0xFFFF])
SOURCES = {"SID": RIDS | st.just(0x0103), "SQ": st.integers(0, 3), "SVT": st.integers(0, 3)}
REMAPPED = st.builds(
    RemappedIrte.of,
    P=_bits(often=1, width=1),
    FPD=st.integers(0, 1),
    V=st.integers(0, 255),
    DST=st.integers(0, 2**32 - 1),
    DLM=st.integers(0, 7),
    **SOURCES,
)
POSTED_ENTRIES = st.builds(
    PostedIrte.of,
    P=_bits(often=1, width=1),
    FPD=st.integers(0, 1),
    IM=st.just(1),
    URG=st.integers(0, 1),
    VV=st.integers(0, 255),
    PDA_LOW=_bits(often=0, width=26) | st.just(1),
    PDA_HIGH=_bits(often=0, width=32),
    **SOURCES,
)
ENTRIES = st.builds(
    lambda entry, noise: entry.value ^ noise,
    REMAPPED | POSTED_ENTRIES,
    st.sampled_from([0] * 9) | st.integers(0, 127).map(lambda b: 1 << b),
)
CONTROLS = st.builds(
    PostedControl.of,
    ON=st.integers(0, 1),
    SN=st.integers(0, 1),
    NV=st.integers(0, 255),
    NDST=st.integers(0, 2**32 - 1),
)
ADDRESSES = st.builds(
    RemappableAddress.of,
    BASE=_bits(often=0xFEE, width=12),
    FORMAT=_bits(often=1, width=1),
    SHV=st.integers(0, 1),
    HANDLE=st.integers(0, 9),
    HANDLE_HIGH=_bits(often=0, width=1),
).map(lambda a: a.value) | st.integers(0, 2**64 - 1).map(lambda a: a - (1 << 64) if a >> 63 else a)


@settings(max_examples=400, deadline=None)
@given(
    entries=st.lists(ENTRIES, min_size=8, max_size=8),
    controls=st.lists(CONTROLS, min_size=2, max_size=2),
    unit=st.builds(
        Unit, st.sampled_from([0, 0, 0, 0, CHUNK - 64, None]), st.sampled_from([8, 4]), st.booleans(), st.booleans()
    ),
    requests=st.lists(
        st.tuples(RIDS, ADDRESSES, _bits(often=0, width=3) | _bits(often=1, width=32)), min_size=1, max_size=20
    ),
)
def test_kernel_and_twin_agree(
    arena: Arena, entries: list[int], controls: list[PostedControl], unit: Unit, requests: list[tuple[int, int, int]]
) -> None:
    for i, bits in enumerate(entries):
        arena.entry(i, bits)
    for i, control in enumerate(controls):
        arena.put(PIDS + 64 * i, 0, 32)
        arena.put(PIDS + 64 * i + 32, control.value, 8)
    twin = arena.set(unit)
    for request in requests:
        arena.compare(twin, *request)


def test_a_cached_entry_serves_until_it_is_invalidated(arena: Arena) -> None:
    arena.set(Unit(0, 256))
    ask = lambda i: remap_interrupt(arena.row, 0x100, RemappableAddress.of(BASE=0xFEE, FORMAT=1, HANDLE=i).value, 0)[1]  # noqa: E731
    for i in range(8):
        arena.entry(i, RemappedIrte.of(P=1, V=0x40 + i).value)
    assert [ask(i) for i in range(8)] == list(range(0x40, 0x48))
    for i in range(8):
        arena.entry(i, RemappedIrte.of(P=1, V=0x60 + i).value)
    assert [ask(i) for i in range(8)] == list(range(0x40, 0x48)), "stale"
    invalidate_interrupts(arena.row, 5, 0)
    assert [ask(i) for i in range(8)] == [0x40, 0x41, 0x42, 0x43, 0x44, 0x65, 0x46, 0x47]
    invalidate_interrupts(arena.row, 3, 1)
    assert [ask(i) for i in range(8)] == [0x40, 0x41, 0x62, 0x63, 0x44, 0x65, 0x46, 0x47]
    invalidate_interrupts(arena.row, 0, 16)
    assert [ask(i) for i in range(8)] == list(range(0x60, 0x68))


def test_every_reason_is_reached(arena: Arena) -> None:
    twin = arena.set(Unit(0, 8))
    fee = lambda **fields: RemappableAddress.of(BASE=0xFEE, **fields).value  # noqa: E731
    arena.entry(0, RemappedIrte.of(P=1, SID=0x200, SVT=1).value)
    arena.entry(1, 0)
    arena.entry(2, RemappedIrte.of(P=1).value | 1 << 12)
    arena.entry(3, PostedIrte.of(P=1, IM=1, PDA_LOW=5).value)
    for address, message in (
        (0x1000, 0),
        (fee(), 0),
        (fee(FORMAT=1, SHV=1), 1 << 16),
        (fee(FORMAT=1, HANDLE=8), 0),
        *((fee(FORMAT=1, HANDLE=i), 0) for i in range(4)),
    ):
        arena.compare(twin, 0x100, address, message)
    arena.compare(arena.set(Unit(CHUNK, 8)), 0x100, fee(FORMAT=1), 0)
    seen = {int(f["reason"]) for f in arena.iommu.faults}
    assert {reason for reason in FaultReason if reason.of_interrupt} <= seen
