"""The remapping unit under a model of its caches, and under software that writes anything anywhere."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from unit.devices.iommu.rig import TYPES, FakeTlb, Queued, descriptor
from unit.remapping import RID
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import IotlbInvalidation
from virtfn.hw.vtd.regs import WINDOW_BYTES, Regs

PAGES = range(1, 13)
DOMAINS = {RID: 5, RID + 1: 9}  # whose pages have places of their own in an IOTLB of 64 entries

_step = st.one_of(
    st.tuples(st.just("touch"), st.sampled_from(list(DOMAINS)), st.sampled_from(PAGES), st.none()),
    st.tuples(st.just("flip"), st.none(), st.sampled_from(PAGES), st.none()),
    st.tuples(st.just("all"), st.none(), st.none(), st.none()),
    st.tuples(st.just("domain"), st.integers(4, 10), st.none(), st.none()),
    st.tuples(st.just("pages"), st.sampled_from((5, 9)), st.integers(0, 20), st.integers(0, 4)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_step, max_size=60))
def test_each_invalidation_takes_exactly_its_part(steps: list[tuple[str, int, int, int]]) -> None:
    """Two domains share tables of two mappings a page; a dictionary says which one each cache entry must hold."""
    q = Queued()
    frames = [q.memory.alloc_page(), q.memory.alloc_page()]
    for i, frame in enumerate(frames):
        q.put(frame, i)
    q.set_context(RID + 1, q.ss[4] | 1, 2 | 9 << 8)
    table = dict.fromkeys(PAGES, 0)
    for page in PAGES:
        q.put(q.ss[1] + 8 * page, frames[0] | 3)
    cached: dict[tuple[int, int], int] = {}
    for what, who, page, mask in steps:
        match what:
            case "touch":
                wanted = cached.setdefault((DOMAINS[who], page), table[page])
                assert q.device.dma_read(Rid(who), Iova(page << 12), 1) == bytes([wanted])
            case "flip":
                table[page] ^= 1
                q.put(q.ss[1] + 8 * page, frames[table[page]] | 3)
            case "all":
                q.go(descriptor(IotlbInvalidation, G=1))
                cached.clear()
            case "domain":
                q.go(descriptor(IotlbInvalidation, G=2, DID=who))
                cached = {key: value for key, value in cached.items() if key[0] != who}
            case "pages":
                q.go(descriptor(IotlbInvalidation, G=3, DID=who, ADDR=page, AM=mask))
                gone = {(who, n) for n in PAGES if n >> mask == page >> mask}
                cached = {key: value for key, value in cached.items() if key not in gone}
    assert q.errors.value == 0
    q.memory.close()


_words = st.one_of(
    st.integers(0, (1 << 128) - 1),
    st.sampled_from(list(TYPES.values())).flatmap(lambda t: st.integers(0, (1 << 124) - 1).map(lambda n: n << 4 | t)),
    st.sampled_from(list(TYPES.items())).flatmap(
        lambda kind: st.fixed_dictionaries(
            {f.name: st.integers(0, (1 << f.width) - 1) for f in kind[0].FIELDS if f.name not in ("TYPE", "PFSID_LOW")}
        ).map(lambda fields: kind[0].of(**fields).value | kind[1])
    ),
)
_registers = st.sampled_from([(decl.at(i), decl.size) for decl, i, _ in Regs.elements()])
_values = st.one_of(
    st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1 << 31, 1 << 26, 1 << 26 | 1 << 31, 0x70, (1 << 64) - 1])
)
_blow = st.one_of(
    st.tuples(st.just("queue"), st.lists(_words, min_size=1, max_size=8), st.booleans()),
    st.tuples(st.just("register"), _registers, _values),
    st.tuples(st.just("anywhere"), st.integers(-8, WINDOW_BYTES), st.tuples(st.sampled_from([4, 8, 1, 3]), _values)),
    st.tuples(st.just("clear"), st.none(), st.none()),
    st.tuples(st.just("complete"), st.integers(RID, RID + 2), st.integers(-1, 33)),
    st.tuples(st.just("request"), st.integers(0, 1 << 64), st.integers(0, 1 << 10)),
    st.tuples(st.just("sleep"), st.integers(0, 1500), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_blow, max_size=40))
def test_nothing_that_software_writes_raises(blows: list) -> None:
    q = Queued()
    tlb = FakeTlb(q.device)
    FakeTlb(q.device, RID + 1, prompt=True)
    for what, first, second in blows:
        match what:
            case "queue":
                for word in first:
                    q.place(word)
                if second:
                    q.write(Regs.IQT, q.tail)
            case "register":
                q.device.write(*first, second)
                q.device.read(*first)
            case "anywhere":
                q.device.write(first, second[0], second[1])
                q.device.read(first, second[0])
            case "clear":
                q.write(Regs.FSTS, 0x71)
            case "complete":
                q.device.complete_device_tlb(Rid(first), second)
            case "request":
                q.device.page_request(Rid(RID), Iova(first), True, True, bool(second & 1), second)
            case "sleep":
                q.clock.sleep(first)
                q.device.service()
    q.device.stats()
    q.device.reset()
    fresh = _again(q)
    fresh.complete(fresh.asked[-1][2])
    assert (q.word(q.status + 4), q.errors.value) == (0x600D, 0)
    assert tlb is not fresh
    q.memory.close()


def _again(q: Queued) -> FakeTlb:
    """Set the unit up anew after a reset, and have it translate, invalidate and wait."""
    q.put(q.root + (RID >> 8) * 16, q.context | 1)
    q.set_context(RID, q.ss[4] | 1, 2 | 5 << 8)
    q.put(q.ss[1] + 8, q.page | 3)
    q.enable()
    q.tail = 0
    q.write(Regs.IQA, q.ring)
    q.write(Regs.GCMD, 1 << 31 | 1 << 26)
    assert q.reaches(0x1000)
    q.put(q.ss[1] + 8, 0)
    fresh = FakeTlb(q.device)
    q.go(descriptor(IotlbInvalidation, G=1), 3 | RID << 32, q.wait(0x600D, 1))
    assert not q.reaches(0x1000)
    q.write(Regs.FRCD_HIGH, 1 << 63)
    q.write(Regs.FSTS, 0)
    assert q.errors.value & ~0xFF00 == 0
    q.device.write(Regs.FSTS.offset, 4, 0x71)
    return fresh
