"""The remapping driver on the model of the unit, and on units that misbehave."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtfn.devices.iommu import IommuUnit
from virtfn.drivers.secondstage import Range
from virtfn.drivers.vtd import VtdDriver
from virtfn.hw.types import Hpa, Iova, Rid
from virtfn.hw.vtd.regs import CAP, CCMD, ECAP, EXTENDED_CAPABILITIES, GCMD, GSTS, IOTLB, Fault, Regs
from virtfn.hw.vtd.tables import FaultReason, SecondStageEntry
from virtfn.machine.clock import MS_PS, VirtualClock
from virtfn.machine.memory import CHUNK, PAGE, GuestMemory, HostMemory
from virtfn.machine.ports import VirtfnError

R = Rid(0x0180)
GIB = 1 << 30
WITHOUT_QUEUE = EXTENDED_CAPABILITIES.replace(QI=0).value


class Rig:
    """Memory, unit, driver."""

    def __init__(self, size: int = 16 << 20, queue: bool = True) -> None:
        self.memory = HostMemory(size)
        self.unit = IommuUnit(self.memory)
        self.clock = VirtualClock()
        window = self.unit if queue else Spy(self.unit, ECAP=WITHOUT_QUEUE)
        self.driver = VtdDriver(window, self.memory, self.clock)
        self.driver.start()

    def reach(self, rid: Rid, iova: int) -> int | None:
        """Return the host address that a write to `iova` reaches, found by writing a mark there."""
        mark = random.randbytes(16)
        if not self.unit.dma_write(rid, Iova(iova), mark):
            return None
        found = self.memory.bytes.tobytes().find(mark)
        assert found >= 0
        return self.memory.base + found


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.memory.close()


class Spy:
    """A register window that remembers writes, and may change what is read."""

    def __init__(self, unit: IommuUnit, **fixed: int) -> None:
        self.unit = unit
        self.writes: list[tuple[str, int]] = []
        self.fixed = {getattr(Regs, name).offset: value for name, value in fixed.items()}

    def read(self, offset: int, size: int) -> int:
        return self.fixed.get(offset, self.unit.read(offset, size))

    def write(self, offset: int, size: int, value: int) -> None:
        found = Regs.lookup(offset)
        assert found is not None
        assert found[0].size == size
        self.writes.append((found[0].name, value))
        self.unit.write(offset, size, value)


def test_start_goes_by_the_book() -> None:
    memory = HostMemory(CHUNK)
    spy = Spy(IommuUnit(memory))
    driver = VtdDriver(spy, memory, VirtualClock())
    driver.start((0xFEE0_2000, 0x55))
    names = [name for name, _ in spy.writes]
    assert names[:6] == ["IQT", "IQA", "GCMD", "RTADDR", "GCMD", "IQT"]
    assert names[6:] == ["FEDATA", "FEADDR", "FEUADDR", "FECTL", "GCMD"]
    assert spy.writes[0] == ("IQT", 0)
    assert spy.writes[2] == ("GCMD", GCMD.QIE.mask)
    assert spy.writes[4] == ("GCMD", GCMD.QIE.mask | GCMD.SRTP.mask)
    assert spy.writes[5] == ("IQT", 3 * 16), "contexts, translations, and a wait"
    assert spy.writes[-1] == ("GCMD", GCMD.QIE.mask | GCMD.TE.mask), "a one-shot bit is not written again"
    driver.stop()
    assert spy.writes[-2:] == [("GCMD", GCMD.QIE.mask), ("GCMD", 0)]
    assert spy.unit.read(Regs.GSTS.offset, 4) == GSTS.RTPS.mask
    memory.close()


def test_start_without_a_queue() -> None:
    memory = HostMemory(CHUNK)
    spy = Spy(IommuUnit(memory), ECAP=WITHOUT_QUEUE)
    driver = VtdDriver(spy, memory, VirtualClock())
    driver.start()
    assert [name for name, _ in spy.writes] == ["RTADDR", "GCMD", "CCMD", "IOTLB", "GCMD"]
    assert CCMD(spy.writes[2][1]).CIRG == IOTLB(spy.writes[3][1]).IIRG == 1
    memory.close()


def test_domain_reaches_its_pages_and_no_other(rig: Rig) -> None:
    domain = rig.driver.create_domain(7)
    page = rig.memory.alloc_page()
    domain.map(Iova(0x5000), page, PAGE)
    assert rig.reach(R, 0x5000) is None
    rig.driver.attach(R, domain)
    assert rig.reach(R, 0x5010) == page + 0x10
    assert rig.reach(R, 0x6000) is None
    assert rig.reach(Rid(R + 1), 0x5000) is None
    assert [f.reason for f in rig.driver.take_faults()] == [
        FaultReason.ROOT_NOT_PRESENT,
        FaultReason.WRITE_NOT_ALLOWED,
        FaultReason.CONTEXT_NOT_PRESENT,
    ]
    assert rig.driver.take_faults() == []


@pytest.mark.parametrize("levels", [3, 4])
def test_guest_memory_scattered(rig: Rig, levels: int) -> None:
    first = rig.driver.create_domain(1, levels)
    second = rig.driver.create_domain(2, levels)
    rng = random.Random(5)
    guests = [GuestMemory(rig.memory, CHUNK, rng, PAGE), GuestMemory(rig.memory, 2 * CHUNK, rng)]
    for domain, guest, rid in zip((first, second), guests, (R, Rid(R + 2)), strict=True):
        for gpa, hpa, size in guest.mappings():
            domain.map(Iova(gpa), hpa, size)
        rig.driver.attach(rid, domain)
        assert domain.ranges() == [Range(Iova(0), guest.size, True, True)]
        for gpa in (0, 0x1234, guest.size // 2 + 8, guest.size - 16):
            assert rig.unit.dma_write(rid, Iova(gpa), b"0123456789abcdef")
            assert guest.bytes[gpa : gpa + 16].tobytes() == b"0123456789abcdef"
        assert not rig.unit.dma_write(rid, Iova(guest.size), b"x")
        guest.close()


def test_largest_pages_that_fit() -> None:
    rig = Rig(GIB * 3 + CHUNK)
    domain = rig.driver.create_domain(1)
    start = -(-(rig.memory.base + 2 * CHUNK) // GIB) * GIB
    domain.map(Iova(GIB - CHUNK - PAGE), Hpa(start - CHUNK - PAGE), PAGE + CHUNK + GIB + CHUNK + PAGE)
    assert [leaf.shift for leaf in domain.tables.leaves()] == [12, 21, 30, 21, 12]
    domain.map(Iova(8 * GIB + PAGE), Hpa(start), CHUNK)
    assert {leaf.shift for leaf in domain.tables.leaves(8 * GIB, GIB)} == {12}, "the addresses do not align"
    rig.memory.close()


def test_rights(rig: Rig) -> None:
    domain = rig.driver.create_domain(1)
    rig.driver.attach(R, domain)
    pages = [rig.memory.alloc_page() for _ in range(3)]
    domain.map(Iova(0x0000), pages[0], PAGE, write=False)
    domain.map(Iova(0x1000), pages[1], PAGE, read=False)
    domain.map(Iova(0x2000), pages[2], PAGE, read=False)
    assert domain.ranges() == [Range(Iova(0), PAGE, True, False), Range(Iova(PAGE), 2 * PAGE, False, True)]
    assert not rig.unit.dma_write(R, Iova(0), b"x")
    assert rig.unit.dma_read(R, Iova(0), 1) == b"\0"
    assert rig.unit.dma_write(R, Iova(0x1000), b"x")
    assert rig.unit.dma_read(R, Iova(0x1000), 1) is None


def test_unmap_takes_effect_at_once(rig: Rig) -> None:
    domain = rig.driver.create_domain(1)
    rig.driver.attach(R, domain)
    chunk = rig.memory.alloc_chunks(1)[0]
    domain.map(Iova(CHUNK), chunk, CHUNK)
    assert rig.reach(R, CHUNK + 0x5000) == chunk + 0x5000
    assert domain.unmap(Iova(CHUNK + 0x5000), 2 * PAGE) == 2 * PAGE
    assert rig.reach(R, CHUNK + 0x5000) is None
    assert rig.reach(R, CHUNK + 0x6FF0) is None
    assert rig.reach(R, CHUNK + 0x4FF0) == chunk + 0x4FF0
    assert rig.reach(R, CHUNK + 0x7000) == chunk + 0x7000
    assert domain.ranges() == [
        Range(Iova(CHUNK), 0x5000, True, True),
        Range(Iova(CHUNK + 0x7000), CHUNK - 0x7000, True, True),
    ]
    assert domain.unmap(Iova(0), 1 << 40) == CHUNK - 2 * PAGE
    assert domain.unmap(Iova(0), 1 << 40) == 0
    assert rig.reach(R, CHUNK) is None


def test_giant_page_splits_where_a_page_goes() -> None:
    rig = Rig(2 * GIB + CHUNK)
    domain = rig.driver.create_domain(1)
    rig.driver.attach(R, domain)
    start = Hpa(-(-rig.memory.base // GIB) * GIB)
    domain.map(Iova(0), start, GIB)
    assert rig.unit.dma_write(R, Iova(0x3000), b"x")
    assert domain.unmap(Iova(0x3000), PAGE) == PAGE
    assert not rig.unit.dma_write(R, Iova(0x3000), b"x")
    assert rig.unit.dma_write(R, Iova(0x4000), b"y")
    assert rig.memory.bytes[start - rig.memory.base + 0x4000] == ord("y")
    shifts = [leaf.shift for leaf in domain.tables.leaves()]
    assert (shifts.count(12), shifts.count(21), shifts.count(30)) == (511, 511, 0)
    rig.memory.close()


def test_detach_and_give_to_another(rig: Rig) -> None:
    first, second = rig.driver.create_domain(1), rig.driver.create_domain(2)
    pages = [rig.memory.alloc_page(), rig.memory.alloc_page()]
    first.map(Iova(0), pages[0], PAGE)
    second.map(Iova(0), pages[1], PAGE)
    rig.driver.attach(R, first)
    assert rig.reach(R, 0) == pages[0]
    assert first.rids == {R}
    rig.driver.detach(R)
    assert first.rids == set()
    assert not rig.unit.iommu.iotlb["rights"].any(), "nothing remains cached"
    assert rig.reach(R, 0) is None
    assert rig.driver.take_faults()[-1] == Fault(R, Iova(0), FaultReason.CONTEXT_NOT_PRESENT, True)
    rig.driver.attach(R, second)
    assert rig.reach(R, 0) == pages[1]


def test_pass_through(rig: Rig) -> None:
    page = rig.memory.alloc_page()
    rig.driver.pass_through(R)
    assert rig.reach(R, page) == page
    assert rig.unit.dma_write(R, Iova(rig.memory.base - PAGE), b"x") is False
    rig.driver.detach(R)
    assert rig.reach(R, page) is None


def _tables(memory: HostMemory, page: int, level: int) -> set[int]:
    """Collect the second-stage tables below one, by reading them."""
    found = {page}
    row = memory.bytes[page - memory.base :][:PAGE].view("<u8")
    for value in row[row != 0].tolist() if level > 1 else []:
        entry = SecondStageEntry(value)
        if not entry.PS:
            found |= _tables(memory, entry.ADDR << 12, level - 1)
    return found


def test_tables_are_never_mapped(rig: Rig) -> None:
    domain = rig.driver.create_domain(1)
    page = rig.memory.alloc_page()
    domain.map(Iova(0), page, PAGE)
    domain.map(Iova(5 * GIB), page, PAGE)
    rig.driver.attach(R, domain)
    root = rig.unit.read(Regs.RTADDR.offset, 8)
    context = int(rig.memory.bytes[root - rig.memory.base + 16 :][:8].view("<u8")[0]) & -PAGE
    tables = {root, context} | _tables(rig.memory, domain.tables.root, 4)
    ring = rig.unit.read(Regs.IQA.offset, 8)
    assert len(tables) == 8
    assert rig.driver.pages.count() == 10, "and the invalidation queue, and the word for its waits"
    for table in tables | {ring}:
        with pytest.raises(VirtfnError, match="not memory for devices"):
            domain.map(Iova(GIB), Hpa(table), PAGE)
    with pytest.raises(VirtfnError, match="not memory for devices"):
        domain.map(Iova(CHUNK), Hpa(page & -CHUNK), CHUNK)
    # The other way round: a page that devices reach does not become a table, even if its owner gave it back too early.
    rig.memory.free_page(page)
    with pytest.raises(VirtfnError, match="cannot hold a table"):
        rig.driver.create_domain(2)


def test_everything_is_given_back(rig: Rig) -> None:
    before = rig.driver.pages.count()
    domains = [rig.driver.create_domain(i, 3 + i % 2) for i in range(1, 6)]
    chunk = rig.memory.alloc_chunks(1)[0]
    for domain in domains:
        domain.map(Iova(3 * PAGE), Hpa(chunk + PAGE), CHUNK - PAGE)
        domain.map(Iova(30 * GIB), chunk, CHUNK)
        rig.driver.attach(Rid(R + domain.id), domain)
    domains[0].unmap(Iova(30 * GIB + PAGE), PAGE)
    full = rig.driver.pages.count()
    domains[1].unmap(Iova(0), 64 * GIB)
    assert rig.driver.pages.count() < full
    for domain in domains:
        rig.driver.detach(Rid(R + domain.id))
        domain.destroy()
    assert rig.driver.pages.count() == before + 1, "the context table stays"
    rig.driver.close()
    assert rig.driver.pages.count() == 0
    assert rig.unit.dma_read(R, Iova(chunk), 4) is not None, "remapping is off"


def test_stale_translations_do_not_survive_a_domain(rig: Rig) -> None:
    page = rig.memory.alloc_page()
    for _ in range(2):
        domain = rig.driver.create_domain(1)
        rig.driver.attach(R, domain)
        assert rig.reach(R, 0) is None
        domain.map(Iova(0), page, PAGE)
        assert rig.reach(R, 0) == page
        rig.driver.detach(R)
        domain.destroy()


@pytest.mark.parametrize(
    ("iova", "offset", "size", "errno"),
    [
        (0, 0, 0, "EINVAL"),
        (0, 0, -PAGE, "EINVAL"),
        (1, 0, PAGE, "EINVAL"),
        (-PAGE, 0, PAGE, "EINVAL"),
        (0, 1, PAGE, "EINVAL"),
        (0, 0, 100, "EINVAL"),
        (1 << 39, 0, PAGE, "EINVAL"),
        ((1 << 39) - PAGE, 0, 2 * PAGE, "EINVAL"),
        (0xFEE0_0000, 0, PAGE, "EINVAL"),
        (0xFEDF_F000, 0, 2 * PAGE, "EINVAL"),
        (0x4000, 0, PAGE, "EEXIST"),
        (0x3000, 0, 4 * PAGE, "EEXIST"),
        (0, -64 * CHUNK, PAGE, "EFAULT"),
        (0, 64 * CHUNK, PAGE, "EFAULT"),
        (GIB, 0, GIB, "EFAULT"),
    ],
)
def test_bad_mappings_change_nothing(rig: Rig, iova: int, offset: int, size: int, errno: str) -> None:
    domain = rig.driver.create_domain(1, 3)
    chunk = rig.memory.alloc_chunks(1)[0]
    domain.map(Iova(0x4000), chunk, PAGE)
    before, pages = domain.ranges(), rig.driver.pages.count()
    with pytest.raises(VirtfnError) as caught:
        domain.map(Iova(iova), Hpa(chunk + offset), size)
    assert caught.value.errno_name == errno
    assert (domain.ranges(), rig.driver.pages.count()) == (before, pages)


def test_no_rights_is_no_mapping(rig: Rig) -> None:
    with pytest.raises(VirtfnError, match="reads, writes or both"):
        rig.driver.create_domain(1).map(Iova(0), rig.memory.alloc_page(), PAGE, read=False, write=False)


def test_exhausted_memory_maps_nothing() -> None:
    rig = Rig(CHUNK)
    domain = rig.driver.create_domain(1)
    pages = [rig.memory.alloc_page() for _ in range(CHUNK // PAGE - rig.driver.pages.count() - 4)]
    domain.map(Iova(0), pages[0], PAGE)
    with pytest.raises(VirtfnError, match="exhausted"):
        # Two pages on either side of a boundary of level 3: the second needs tables that are not there.
        domain.map(Iova(GIB - PAGE), pages[0], 2 * PAGE)
    assert domain.ranges() == [Range(Iova(0), PAGE, True, True)]
    rig.memory.close()


def test_misuse_has_words(rig: Rig) -> None:
    domain = rig.driver.create_domain(1)
    for bad in (0, -1, 1, 1 << 16):
        with pytest.raises(VirtfnError):
            rig.driver.create_domain(bad)
    for levels in (2, 5):
        with pytest.raises(VirtfnError, match="levels"):
            rig.driver.create_domain(9, levels)
    rig.driver.attach(R, domain)
    with pytest.raises(VirtfnError, match=r"0000:01:10\.0 is attached"):
        rig.driver.attach(R, domain)
    with pytest.raises(VirtfnError, match=r"in use by 0000:01:10\.0"):
        domain.destroy()
    with pytest.raises(VirtfnError, match="not attached"):
        rig.driver.detach(Rid(R + 1))
    rig.driver.detach(R)
    domain.destroy()
    for late in (lambda: domain.map(Iova(0), Hpa(0), PAGE), lambda: domain.unmap(Iova(0), PAGE), domain.destroy):
        with pytest.raises(VirtfnError, match="destroyed"):
            late()
    with pytest.raises(VirtfnError, match="destroyed"):
        rig.driver.attach(R, domain)


def test_faults_are_taken_in_order_past_an_overflow(rig: Rig) -> None:
    rig.driver.attach(R, rig.driver.create_domain(1))
    for round_ in range(3):
        for i in range(12):
            rig.unit.dma_read(R, Iova((round_ * 100 + i) * PAGE), 1)
        taken = rig.driver.take_faults()
        assert [f.iova // PAGE for f in taken] == [round_ * 100 + i for i in range(8)]
    assert rig.driver.take_faults() == []


def test_fault_event_is_sent() -> None:
    sent: list[tuple[int, int]] = []
    memory = HostMemory(CHUNK)
    unit = IommuUnit(memory, send=lambda address, message: sent.append((address, message)))
    driver = VtdDriver(unit, memory, VirtualClock())
    driver.start((0xFEE0_1004, 0x31))
    assert unit.dma_read(R, Iova(0), 1) is None
    assert sent == [(0xFEE0_1004, 0x31)]
    driver.close()
    memory.close()


@pytest.mark.parametrize("name", ["GSTS", "CCMD", "IOTLB"])
def test_a_unit_that_hangs_is_given_up(name: str) -> None:
    memory = HostMemory(CHUNK)
    stuck = {"GSTS": 0, "CCMD": CCMD.ICC.mask, "IOTLB": IOTLB.IVT.mask}[name]
    clock = VirtualClock()
    driver = VtdDriver(Spy(IommuUnit(memory), ECAP=WITHOUT_QUEUE, **{name: stuck}), memory, clock)
    with pytest.raises(VirtfnError, match=f"hangs: {name}") as caught:
        driver.start()
    assert caught.value.errno_name == "ETIMEDOUT"
    assert 10 * MS_PS <= clock.now() <= 11 * MS_PS
    memory.close()


@pytest.mark.parametrize("name", ["CCMD", "IOTLB"])
def test_a_refused_invalidation_is_an_error(name: str) -> None:
    memory = HostMemory(CHUNK)
    driver = VtdDriver(Spy(IommuUnit(memory), ECAP=WITHOUT_QUEUE, **{name: 0}), memory, VirtualClock())
    with pytest.raises(VirtfnError, match="refused to invalidate"):
        driver.start()
    memory.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("CAP", CAP.of(SAGAW=8).value), ("CAP", CAP.of(SAGAW=6, CM=1).value), ("ECAP", ECAP.of(QI=1).value)],
)
def test_a_unit_that_lacks_what_it_takes(name: str, value: int) -> None:
    memory = HostMemory(CHUNK)
    with pytest.raises(VirtfnError, match="cannot drive"):
        VtdDriver(Spy(IommuUnit(memory), **{name: value}), memory, VirtualClock())
    memory.close()


def test_write_buffers_are_flushed_for_a_unit_that_has_them(rig: Rig) -> None:
    cap = CAP(rig.unit.read(Regs.CAP.offset, 8)).replace(RWBF=1)
    spy = Spy(rig.unit, CAP=cap.value)
    driver = VtdDriver(spy, rig.memory, rig.clock)
    domain = driver.create_domain(1)
    spy.writes.clear()
    domain.map(Iova(0), rig.memory.alloc_page(), PAGE)
    assert spy.writes[0][0] == "GCMD"
    assert spy.writes[0][1] & GCMD.WBF.mask


_step = st.tuples(
    st.sampled_from(["map", "map", "unmap"]),
    st.integers(0, 1600),
    st.sampled_from([1, 2, 3, 100, 512, 513, 1024]),
    st.integers(0, 600),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_step, max_size=25), levels=st.sampled_from([3, 4]), align=st.booleans(), queue=st.booleans())
def test_any_history_of_mappings(steps: list[tuple[str, int, int, int]], levels: int, align: bool, queue: bool) -> None:
    """After any steps, devices reach exactly what a dictionary of pages says, through warm caches."""
    rig = Rig(12 << 20, queue)
    chunks = rig.memory.alloc_chunks(4)
    domain = rig.driver.create_domain(3, levels)
    rig.driver.attach(R, domain)
    pages: dict[int, int] = {}
    for what, first, count, target in steps:
        if align:
            first, count, target = first & ~511, 512, target & ~511
        span = range(first, first + count)
        hpa = chunks[0] + target * PAGE
        if what == "unmap":
            assert domain.unmap(Iova(first * PAGE), count * PAGE) == sum(n in pages for n in span) * PAGE
            pages = {n: hpa for n, hpa in pages.items() if n not in span}
        elif any(n in pages for n in span):
            with pytest.raises(VirtfnError):
                domain.map(Iova(first * PAGE), Hpa(hpa), count * PAGE)
        else:
            domain.map(Iova(first * PAGE), Hpa(hpa), count * PAGE)
            pages |= {n: hpa + (n - first) * PAGE for n in span}
        for n in {first - 1, first, first + 1, first + count // 2, first + count - 1, first + count} - {-1}:
            wanted = pages.get(n)
            got = rig.unit.dma_write(R, Iova(n * PAGE), n.to_bytes(8, "little"))
            assert got is (wanted is not None)
            if wanted is not None:
                at = wanted - rig.memory.base
                assert rig.memory.bytes[at : at + 8].tobytes() == n.to_bytes(8, "little")
    covered = {n for r in domain.ranges() for n in range(r.iova // PAGE, (r.iova + r.bytes) // PAGE)}
    assert covered == set(pages)
    rig.driver.close()
    assert rig.driver.pages.count() == 0
    rig.memory.close()
