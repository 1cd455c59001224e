"""The remapping kernels against their twin, on random and hostile tables; nothing leaves the machine's memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.pagewalk import Message, Nothing, Refusal, request
from virtfn.kernels.ranges import address_of
from virtfn.kernels.vtd.dma import dma_copy_in, dma_copy_out, translate
from virtfn.kernels.vtd.iommu import FAULT_SLOTS, MESSAGE_SLOTS, Iommu, new_iommu
from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb
from virtfn.machine.memory import CHUNK, HostMemory

T = TypeVar("T")
POOL = 8  # pages that hold tables, and that entries point to: tables may be pages, and point to themselves
INDICES = (0, 1, 2, 503, 511)  # of table entries in use; 503 is where the interrupt range is at level 2
PRESENT = 3


class Arena:
    """Two chunks of memory, the first pages of which hold hostile tables."""

    def __init__(self) -> None:
        self.memory = HostMemory(2 * CHUNK)
        self.base = int(self.memory.base)
        self.iommu: Iommu = new_iommu(self.base, self.memory.size, 16)
        self.iommu.unit[0]["enabled"] = 1
        self.words = self.memory.bytes.view("<u8")

    def fill(self, entries: list[tuple[int, int, int]]) -> None:
        self.words[: POOL * 512] = 0
        for page, index, value in entries:
            self.words[page * 512 + index] = value & (1 << 64) - 1
        unit = self.iommu.unit[0]
        unit["fault_head"] = unit["fault_tail"]
        invalidate_contexts(self.iommu.row, 0, 0, -1)
        invalidate_iotlb(self.iommu.row, -1)

    def compare(self, rid: int, iova: int, nbytes: int, write: int) -> None:
        unit = self.iommu.unit[0]
        root = int(unit["root"]) if unit["enabled"] else None
        wanted = request(self.memory, root, rid, iova, nbytes, bool(write))
        unit["fault_head"] = unit["fault_tail"]
        before = int(unit["fault_tail"]), int(unit["suppressed"]), int(unit["aborted"])
        signed = iova - (1 << 64) if iova >> 63 else iova
        hpa, run = translate(self.iommu.row, rid, signed, nbytes, write)
        after = int(unit["fault_tail"]), int(unit["suppressed"]), int(unit["aborted"])
        recorded, suppressed, aborted = (b - a for a, b in zip(before, after, strict=True))
        if isinstance(wanted, tuple):
            assert hpa == wanted[0]
            # A page is cut where the interrupt range or the end of memory is near, to no less than a small page's end.
            assert min(wanted[1], 4096 - hpa % 4096) <= run <= wanted[1]
            assert self.base <= hpa <= hpa + run <= self.base + self.memory.size
            assert (recorded, suppressed, aborted) == (0, 0, 0)
            return
        if isinstance(wanted, Message):
            slot = (int(unit["message_tail"]) - 1) % MESSAGE_SLOTS
            offset = hpa - self.iommu.message_pages[slot].ctypes.data
            assert (offset, run) == (iova % 4096, wanted.size)
            row = self.iommu.messages[slot]
            assert (row["rid"], row["address"]) == (rid, iova)
            unit["message_head"] = unit["message_tail"]
            assert (recorded, suppressed, aborted) == (0, 0, 0)
            return
        assert (hpa, run) == (0, 0)
        if isinstance(wanted, Nothing):
            assert (recorded, suppressed, aborted) == (0, 0, 1)
            return
        assert isinstance(wanted, Refusal)
        assert (recorded, suppressed, aborted) == ((1, 0, 0) if wanted.recorded else (0, 1, 0))
        if wanted.recorded:
            fault = self.iommu.faults[before[0] % FAULT_SLOTS]
            assert (fault["rid"], fault["iova"], fault["reason"], fault["write"]) == (rid, signed, wanted.reason, write)


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    made = Arena()
    yield made
    made.memory.close()


def _often(weight: int, usual: st.SearchStrategy[T], *others: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Draw `usual` `weight` times as often as any of `others`; `one_of` would draw all alike."""
    return st.sampled_from([usual] * weight + [*others]).flatmap(lambda chosen: chosen)


def _pointers(base: int) -> st.SearchStrategy[int]:
    """Addresses: table pages, pages and chunks of memory, its edges, the interrupt range, anything."""
    inside = st.integers(0, POOL - 1).map(lambda n: base + n * 4096)
    giant = st.sampled_from([base & -(1 << 30), (base & -(1 << 30)) + (1 << 30)])
    chunk = st.sampled_from([base, base + CHUNK, base - CHUNK, base + 2 * CHUNK])
    odd = st.sampled_from([0, base - 4096, base + 2 * CHUNK, 0xFEE00000, 0xFEC00000, 0xC0000000, (1 << 48) - 4096])
    return _often(12, inside, chunk, giant, odd)


def _entries(base: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Fill the places in use of every table but the root and context tables."""
    flags = st.sampled_from([PRESENT] * 6 + [0x83, 0x83, 0x83, 1, 2, 0, 0x81, 0x82])
    noise = st.sampled_from([0] * 30 + [1 << 11, 1 << 62, 1 << 63, 1 << 52, 1 << 48, 0x78, 4])
    second = st.builds(lambda a, f, n: a | f | n, _pointers(base), flags, noise)
    value = _often(20, second, st.integers(0, (1 << 64) - 1))
    places = [(page, index) for page in range(2, POOL) for index in INDICES]
    return st.lists(value, min_size=len(places), max_size=len(places)).map(
        lambda values: [(*place, value) for place, value in zip(places, values, strict=True)]
    )


def _contexts(base: int, did: int) -> st.SearchStrategy[tuple[int, int]]:
    """Mostly good context entries, low and high word. Two of one domain have the same tables, or caches mix them up."""
    table = st.integers(2, POOL - 1).map(lambda n: base + n * 4096)
    good = st.builds(lambda a, fpd, aw: (a | 1 | fpd, aw | did << 8), table, _rare(2), _aw)
    low = st.builds(lambda a, flags: a | flags, _pointers(base), st.sampled_from([1, 3, 9, 5, 13, 0, 2, 17]))
    high = st.builds(lambda aw, more: aw | more, st.integers(0, 7), st.sampled_from([did << 8, 0x80, 1 << 40]))
    garbage = st.integers(0, (1 << 64) - 1)
    return _often(10, good, st.tuples(low, high), st.tuples(garbage, garbage))


def _rare(value: int) -> st.SearchStrategy[int]:
    return st.sampled_from([0] * 6 + [value])


_aw = st.sampled_from([1, 2])
_index = st.sampled_from(INDICES)
_ADDRESSES = [0, 0xFEDFFFF8, 0xFEE00000, 0xFEEFFFFF, 0xFEF00000, 1 << 39, 1 << 48, (1 << 63) - 8, 1 << 63]
_iova = _often(
    8,
    st.builds(
        lambda a, b, c, d, offset: a << 39 | b << 30 | c << 21 | d << 12 | offset,
        st.sampled_from([0, 0, 0, *INDICES]),
        _index,
        _index,
        _index,
        st.sampled_from([0, 8, 100, 4088, 4095]),
    ),
    st.sampled_from(_ADDRESSES),
    st.integers(0, (1 << 64) - 1),
)
_request = st.tuples(
    st.sampled_from([0, 1, 0x100]),
    _iova,
    st.sampled_from([1, 8, 64, 4096, 5000, CHUNK, (1 << 63) - 1]),
    st.sampled_from([0, 1]),
)


@st.composite
def _hostile(draw: st.DrawFn, base: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    entries = draw(_entries(base))
    for rid in (0, 1):
        low, high = draw(_contexts(base, 5 + rid))
        entries += [(1, 2 * rid, low), (1, 2 * rid + 1, high)]
    root = draw(st.sampled_from([base + 4096 | 1] * 20 + [0, base + 4096 | 3, base + 2 * CHUNK | 1, base + 4096]))
    entries += [(0, 0, root), (0, 1, draw(st.sampled_from([0] * 20 + [1]))), (0, 2, root)]
    return entries, draw(st.lists(_request, min_size=1, max_size=12))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_kernel_and_twin_agree(arena: Arena, data: st.DataObject) -> None:
    entries, requests = data.draw(_hostile(arena.base))
    arena.iommu.unit[0]["root"] = arena.base
    arena.fill(entries)
    for _ in range(2):  # the second time from the caches
        for rid, iova, nbytes, write in requests:
            arena.compare(rid, iova, nbytes, write)


@settings(max_examples=60, deadline=None)
@given(root=st.one_of(st.integers(-(1 << 51), (1 << 51) - 1).map(lambda n: n * 4096), st.just(0)), request=_request)
def test_any_root_is_safe(arena: Arena, root: int, request: tuple[int, int, int, int]) -> None:
    arena.iommu.unit[0]["root"] = root
    arena.fill([])
    arena.compare(*request)


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(_request, min_size=1, max_size=6), where=st.integers(-64, 2 * CHUNK + 64))
def test_remapping_off(arena: Arena, requests: list[tuple[int, int, int, int]], where: int) -> None:
    arena.fill([])
    arena.iommu.unit[0]["enabled"] = 0
    try:
        for rid, iova, nbytes, write in requests:
            for address in (iova, arena.base + where):
                arena.compare(rid, address & (1 << 64) - 1, nbytes, write)
    finally:
        arena.iommu.unit[0]["enabled"] = 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_copies_touch_only_what_is_translated(arena: Arena, data: st.DataObject) -> None:
    """A write lands where the twin says, byte for byte, or nowhere; a read returns the same bytes."""
    pages = data.draw(st.lists(st.integers(POOL, 64), min_size=6, max_size=6, unique=True))
    rights = data.draw(st.lists(st.sampled_from([3, 3, 3, 3, 2, 1, 0]), min_size=6, max_size=6))
    start = data.draw(st.integers(0, 3 * 4096))
    size = data.draw(st.integers(1, 3 * 4096))
    base = arena.base
    arena.iommu.unit[0]["root"] = base
    arena.fill(
        [(0, 0, base + 4096 | 1), (1, 0, base + 2 * 4096 | 1), (1, 1, 1 | 5 << 8)]
        + [(2, 0, base + 3 * 4096 | 3), (3, 0, base + 4 * 4096 | 3)]
        + [(4, i, base + page * 4096 | right) for i, (page, right) in enumerate(zip(pages, rights, strict=True))]
    )
    arena.memory.bytes[POOL * 4096 :] = 0xA5
    source = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    touched = range(start // 4096, (start + size - 1) // 4096 + 1)
    expected = arena.memory.bytes.copy()
    writable = all(rights[i] & 2 for i in touched)
    if writable:
        for n in range(size):
            at = start + n
            expected[pages[at // 4096] * 4096 + at % 4096] = source[n]
    assert dma_copy_out(arena.iommu.row, 0, start, size, address_of(source)) == (size if writable else 0)
    assert (arena.memory.bytes == expected).all()
    target = np.zeros(size, np.uint8)
    done = dma_copy_in(arena.iommu.row, 0, start, size, address_of(target))
    readable = next((max(i * 4096 - start, 0) for i in touched if not rights[i] & 1), size)
    assert done == readable
    for n in range(0, done, 97):
        at = start + n
        assert target[n] == expected[pages[at // 4096] * 4096 + at % 4096]
