"""VFs with a device TLB: enabled by the host, unseen by the guest, invalidated in time; pages that come on demand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from unit.rig import Rig, frame, send, take
from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.i82576 import Regs as NicRegs
from virtfn.hw.pci import Ats, AtsControl, DevCtl, ExtendedHeader, PageRequestControl, PageRequests, Pcie
from virtfn.hw.types import Hpa, Iova, Mac, Rid
from virtfn.hw.vtd.queue import ResponseCode
from virtfn.hw.vtd.regs import FSTS, Regs
from virtfn.hw.vtd.tables import FaultReason, Request
from virtfn.iovm.walk import capability_of, offsets
from virtfn.kernels.vtd.iotlb import invalidate_contexts
from virtfn.machine.memory import PAGE
from virtfn.machine.ports import VirtfnError

ATS, PRI = 0x1A0, 0x1B0


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(iommu="{ats: true, device-tlb-entries: 4096}") as made:
        yield made


def control(rig: Rig, rid: Rid) -> AtsControl:
    found = capability_of(rig.machine.pcim.bus, rid, Ats)
    assert found is not None
    return AtsControl(found.get(Ats.CONTROL))


def domain(rig: Rig, i: int):
    return next(d for d in rig.machine.host.remapping.domains.values() if rig.vf(i).rid in d.rids)


def held(rig: Rig, rid: Rid) -> int:
    entries = rig.nic.ats._tlb["entries"]
    return int(((entries["rid"] == rid) & (entries["rights"] != 0)).sum())


def pass_frames(rig: Rig, count: int = 3) -> list[bytes]:
    for n in range(count):
        send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac, bytes([n] * 40)))
        rig.serve()
    return take(rig.driver(1))


# Configuration space.


def test_without_the_option_there_is_no_trace_of_it() -> None:
    with Rig() as rig:
        for rid in (rig.nic.pf_rid, rig.vf(0).rid):
            assert not {0xF, 0x13} & {number for number, _, extended in offsets(rig.machine.pcim.bus, rid) if extended}
            assert rig.nic.config_read(rid, ATS, 4) == rig.nic.config_read(rid, PRI, 4) == 0
        assert rig.nic.ats is None
        assert pass_frames(rig) != []
        assert rig.machine.device_tlb_counts() == {}


def test_capabilities_of_pf_and_vf(rig: Rig) -> None:
    nic = rig.nic
    pf, vf = nic.pf_rid, rig.vf(0).rid
    assert [at for number, at, extended in offsets(rig.machine.pcim.bus, pf) if extended and number in (0xF, 0x13)] == [
        ATS,
        PRI,
    ]
    assert nic.config_read(pf, ATS, 4) == 0x1B01000F
    assert nic.config_read(vf, ATS, 4) == 0x0001000F
    assert nic.config_read(pf, ATS + 4, 2) == nic.config_read(vf, ATS + 4, 2) == 0x20, "32 invalidations, aligned"
    for rid, writable in ((pf, 0x801F), (vf, 0x8000)):
        nic.config_write(rid, ATS + 6, 2, 0xFFFF)
        assert nic.config_read(rid, ATS + 6, 2) == writable
    assert nic.config_read(pf, PRI + 8, 4) == 64
    assert nic.config_read(pf, PRI + 6, 2) == 0x100, "stopped"
    assert nic.config_read(vf, PRI, 4) == 0


@pytest.mark.parametrize("entries", [0, 3, 1 << 15])
def test_a_device_tlb_that_cannot_be(entries: int) -> None:
    with pytest.raises(VirtfnError, match="power of two"):
        Card(Mac(2), ats=True, device_tlb_entries=entries)


def test_a_card_with_ats_needs_an_agent(rig: Rig) -> None:
    with pytest.raises(VirtfnError, match="ATS"):
        Nic82576(rig.machine.host, rig.machine.host.iommu.iommu, Card(Mac(2), ats=True))


def test_the_host_enables_it_and_the_guest_does_not_see_it(rig: Rig) -> None:
    assert control(rig, rig.vf(0).rid).ENABLE
    assert not control(rig, rig.vf(3).rid).ENABLE, "nobody has this one"
    config = rig.vf(0).config
    assert [config.read(at, 4) for at in (ATS, ATS + 4)] == [0, 0]
    ari = ExtendedHeader(config.read(0x150, 4))
    assert (ari.ID, ari.NEXT) == (0xE, 0)
    assert config.read(0x152, 2) == ari.value >> 16
    assert config.read(0x151, 1) == ari.value >> 8 & 0xFF
    config.write(ATS + 6, 2, 0)
    config.write(ATS + 4, 4, 0)
    assert control(rig, rig.vf(0).rid).ENABLE


def test_a_guests_reset_does_not_take_it_away(rig: Rig) -> None:
    rid = rig.vf(0).rid
    pass_frames(rig)
    assert held(rig, rid)
    pcie = capability_of(rig.machine.pcim.bus, rid, Pcie)
    assert pcie is not None
    rig.vf(0).config.write(pcie.base + Pcie.DEVCTL.offset, 2, DevCtl.FLR.mask)
    assert held(rig, rid) == 0
    assert control(rig, rid).ENABLE
    assert rid in rig.machine.host.iommu.device_tlbs
    rig.iovm.reset(rig.vf(0))
    assert control(rig, rid).ENABLE


# Frames.


def test_frames_go_by_the_device_tlb(rig: Rig) -> None:
    assert len(pass_frames(rig, 20)) == 20
    counts = rig.machine.device_tlb_counts()
    stats = rig.machine.host.iommu.stats()
    assert counts["hits"] > counts["translation_requests"] > 0
    assert stats["translation_requests"] == counts["translation_requests"]
    assert stats["translated"] == counts["hits"] + counts["misses"]
    assert (stats["faults"], counts["denied"], counts["unsupported"]) == (0, 0, 0)


def test_work_of_every_size_with_a_tiny_device_tlb() -> None:
    with Rig(iommu="{ats: true, device-tlb-entries: 1, iotlb-entries: 2}") as rig:
        engine = rig.engine("pairs", 300, length=1514)
        assert engine.run()
        assert all(f.corrupt + f.reordered + f.repeated == 0 for f in engine.workload.findings())
        rows = [rig.driver(i).netdev for i in (0, 1)]
        assert [int(r["rx_frames"]) for r in rows] == [300, 300]


def test_taking_back_leaves_nothing(rig: Rig) -> None:
    rid = rig.vf(0).rid
    pass_frames(rig)
    rig.iovm.take_back(rig.vf(0))
    assert held(rig, rid) == 0
    assert not control(rig, rid).ENABLE
    assert rid not in rig.machine.host.iommu.device_tlbs
    assert rig.machine.host.iommu.iommu.contexts[rid]["device_tlb"] == 0
    rig.iovm.assign(rig.vf(0), rig.spare_guest(mib=8))
    assert control(rig, rid).ENABLE


def test_vfs_that_go_take_their_entries_along(rig: Rig) -> None:
    pass_frames(rig)
    rids = [rig.vf(n).rid for n in (0, 1)]
    rig.machine.stop()
    assert [held(rig, rid) for rid in rids] == [0, 0]
    assert rig.machine.host.iommu.device_tlbs == {}


def test_forged_entries_are_stopped_by_the_context(rig: Rig) -> None:
    """A guest that gets at its device's TLB still needs the host's leave for translated requests."""
    pass_frames(rig)
    rid = rig.vf(0).rid
    host = rig.machine.host
    row = host.remapping.pages.row(host.remapping._contexts[rid >> 8])
    row[2 * (rid & 0xFF)] &= np.uint64(~0xC & (1 << 64) - 1)
    invalidate_contexts(host.iommu.iommu.row, 0, 0, -1)
    assert pass_frames(rig, 1) == []
    faults = host.iommu.faults()
    assert {(f.rid, f.reason, f.kind) for f in faults} == {(rid, FaultReason.BLOCKED_BY_TYPE, Request.TRANSLATED)}
    assert str(faults[0]).split(": ")[1].startswith("translated ")


# Invalidation.


def test_unmap_waits_for_the_device(rig: Rig) -> None:
    pass_frames(rig)
    rid = rig.vf(0).rid
    buffer = int(rig.driver(0).netdev["tx_iova"]) & -PAGE
    before = held(rig, rid)
    assert domain(rig, 0).unmap(Iova(buffer), PAGE) == PAGE
    assert held(rig, rid) == before - 1
    stats = rig.machine.host.iommu.stats()
    assert (stats["device_tlb_requests"], stats["device_tlb_timeouts"], stats["device_tlb_unexpected"]) == (1, 0, 0)
    assert rig.machine.host.remapping.queue_errors.total() == 0


def test_a_wait_does_not_retire_before_the_nic_has_answered(rig: Rig) -> None:
    """The queue written by hand: nobody but the NIC's own service point answers."""
    pass_frames(rig)
    rid = rig.vf(0).rid
    host = rig.machine.host
    status = host.memory.alloc_page()
    word = host.memory.bytes[status - host.memory.base :][:4]
    queue = host.remapping._invalidations
    row, tail = host.remapping.pages.row(queue._ring), queue._tail
    device_tlb = 3 | rid << 32, (1 << 63) - PAGE | 1
    wait = 5 | 1 << 5 | 0x77 << 32, status
    for i, (low, high) in enumerate((device_tlb, wait)):
        row[(tail + 16 * i) % PAGE // 8], row[(tail + 16 * i) % PAGE // 8 + 1] = low, high
    host.iommu.write(Regs.IQT.offset, 8, (tail + 32) % PAGE)
    assert (word[0], held(rig, rid) > 0) == (0, True)
    rig.nic.serve()
    assert (word[0], held(rig, rid)) == (0x77, 0)
    queue._tail = (tail + 32) % PAGE
    host.memory.free_page(Hpa(status))


def test_a_device_that_never_answers_is_a_time_out(rig: Rig) -> None:
    pass_frames(rig)
    rig.machine.host.iommu.device_tlbs[rig.vf(0).rid].serve = lambda: None
    page = Iova(int(rig.driver(0).netdev["tx_iova"]) & -PAGE)
    with pytest.raises(VirtfnError, match="device TLB"):
        domain(rig, 0).unmap(page, PAGE)
    assert rig.machine.host.remapping.queue_errors["ITE"] == 2
    assert FSTS(rig.machine.host.iommu.read(Regs.FSTS.offset, 4)).ITE == 0


def test_disabling_answers_what_is_owed(rig: Rig) -> None:
    pass_frames(rig)
    rid = rig.vf(0).rid
    rig.nic.ats.invalidate(rid, 0, 1 << 64, 0)
    rig.vf(0).config.set_ats(False)
    assert rig.machine.host.iommu.stats()["device_tlb_unexpected"] == 1, "the unit had not asked, but was answered"
    assert held(rig, rid) == 0
    assert len(pass_frames(rig)) == 3, "untranslated, through a context of type 01"


# Page requests.


class Demand:
    """The memory of guest `i`, mapped page by page as its VF asks. refuse: pages that are not given."""

    def __init__(self, rig: Rig, i: int) -> None:
        remapping = rig.machine.host.remapping
        if remapping._pages is None:
            rig.machine.host.start_page_requests()
            rig.iovm.allow_page_requests(rig.nic.pf_rid)
        self.asked: list[tuple[int, bool]] = []
        self.refuse: set[int] = set()
        self.rig = rig
        self.domain = domain(rig, i)
        self.where = {leaf.iova: leaf for leaf in self.domain.tables.leaves()}
        self.domain.unmap(Iova(0), 1 << 40)
        self.domain.pager = self.page

    def page(self, iova: Iova, write: bool) -> bool:
        self.asked.append((iova, write))
        leaf = next((leaf for at, leaf in self.where.items() if at <= iova < at + (1 << leaf.shift)), None)
        if leaf is None or iova in self.refuse:
            return False
        self.domain.map(iova, Hpa(leaf.hpa + iova - leaf.iova), PAGE)
        return True


def never_drop(rig: Rig) -> None:
    """Let receive queues hold the line up instead of dropping."""
    rig.nic.port.registers.write(NicRegs.QDE.offset, 4, 0)
    for q in range(16):
        value = rig.nic.port.registers.peek(NicRegs.SRRCTL, q)
        rig.nic.port.registers.poke(NicRegs.SRRCTL, q, value & ~(1 << 31))


def test_a_guest_whose_pages_come_on_demand(rig: Rig) -> None:
    """Both ways, with not one page mapped at first: every frame arrives once, unaltered and in order."""
    demands = [Demand(rig, 0), Demand(rig, 1)]
    never_drop(rig)
    engine = rig.engine("pairs", 1500, length=1514)
    assert engine.run()
    for i, finding in enumerate(engine.workload.findings()):
        assert (finding.corrupt, finding.reordered, finding.repeated) == (0, 0, 0)
        assert int(rig.driver(i).netdev["rx_frames"]) == 1500
        assert rig.drops(i) == {}
    for demand in demands:
        pages = [iova for iova, _ in demand.asked]
        assert len(pages) == len(set(pages)) > 50, "each page was asked for once"
    stats = rig.machine.host.iommu.stats()
    assert stats["faults"] == stats["page_requests_lost"] == 0
    assert stats["page_responses"] == sum(len(demand.asked) for demand in demands)


def test_a_queue_that_may_drop_drops_until_the_page_is_there(rig: Rig) -> None:
    Demand(rig, 1)
    assert pass_frames(rig, 1) == []
    drops = rig.drops(1)
    assert drops.keys() == {"page-absent"}
    for _ in range(4):
        pass_frames(rig, 1)
    assert rig.drops(1)["page-absent"] <= 3, "ring, buffer"
    assert len(pass_frames(rig, 2)) == 2


def test_a_page_that_is_refused_is_a_fault_like_any_other(rig: Rig) -> None:
    demand = Demand(rig, 0)
    d = rig.driver(0).netdev
    demand.refuse.add(int(d["tx_iova"]) & -PAGE)
    in_page = -(-PAGE // int(d["buffer_bytes"]))  # buffers that begin in it
    assert pass_frames(rig, in_page) == []
    assert rig.drops(0) == {"dma-fault": in_page}
    assert rig.machine.host.iommu.stats()["faults"] == 0
    assert len(pass_frames(rig, 1)) == 1, "the next page is given"


def test_a_slow_pager_stalls_its_own_queue_only(rig: Rig) -> None:
    demand = Demand(rig, 0)
    handler = rig.machine.host.remapping._pages
    handler._serving = True  # software does not get to it
    send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac))
    send(rig.driver(1), frame(Mac((1 << 48) - 1), rig.driver(1).mac))
    rig.serve(50)
    assert take(rig.driver(1)) == []
    assert demand.asked == []
    assert rig.drops(0) == {"page-absent": 1}, "the broadcast, which has nowhere to go"
    assert rig.machine.host.iommu.stats()["page_requests"] == 2, "the transmit ring and the receive ring"
    handler._serving = False
    assert rig.machine.host.remapping.serve_pages() == 2
    rig.serve(10)
    assert len(take(rig.driver(1))) == 1


@pytest.mark.parametrize("pager", [None, "fails"])
def test_without_a_pager_that_works_everything_is_refused(rig: Rig, pager: str | None) -> None:
    demand = Demand(rig, 0)

    def fails(iova: Iova, write: bool) -> bool:
        raise VirtfnError("no memory left")

    demand.domain.pager = None if pager is None else fails
    assert pass_frames(rig, 1) == []
    handler = rig.machine.host.remapping._pages
    assert handler.counts["granted"] == handler.counts["overflows"] == 0
    assert handler.counts["refused"] > 0


def test_response_failure_switches_page_requests_off(rig: Rig) -> None:
    demand = Demand(rig, 0)
    handler = rig.machine.host.remapping._pages
    handler._serving = True
    send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac))
    rig.serve(1)
    rid, pf = rig.vf(0).rid, rig.nic.pf_rid
    group = int(rig.nic.ats._tlb["pages"][0]["group"])
    rig.nic.ats.page_response(rid, group ^ 64, ResponseCode.SUCCESS)
    rig.nic.ats.page_response(Rid(rid + 2), group, ResponseCode.SUCCESS)
    assert rig.nic.config_read(pf, PRI + 6, 2) == 2, "unexpected groups"
    rig.nic.ats.page_response(rid, group, ResponseCode.FAILURE)
    assert rig.nic.config_read(pf, PRI + 6, 2) == 0x103
    rig.nic.config_write(pf, PRI + 6, 2, 3)
    assert rig.nic.config_read(pf, PRI + 6, 2) == 0x100
    rig.serve(2)
    assert rig.drops(0) == {"dma-fault": 1}
    assert demand.asked == []


def test_reset_and_disabling_of_page_requests(rig: Rig) -> None:
    Demand(rig, 0)
    handler = rig.machine.host.remapping._pages
    handler._serving = True
    pf = rig.nic.pf_rid
    send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac))
    rig.serve(1)
    rig.nic.config_write(pf, PRI + PageRequests.CONTROL.offset, 2, 0)
    assert rig.nic.config_read(pf, PRI + 6, 2) == 0, "one is under way yet"
    rig.nic.config_write(pf, PRI + PageRequests.CONTROL.offset, 2, PageRequestControl.RESET.mask)
    assert rig.nic.config_read(pf, PRI + 4, 4) == 0x1000000
    handler._serving = False
    rig.machine.host.remapping.serve_pages()
    assert rig.nic.config_read(pf, PRI + 6, 2) == 0x102, "the answer was not expected any more"


def test_page_requests_that_cannot_be(rig: Rig) -> None:
    with Rig() as plain, pytest.raises(VirtfnError, match="page requests"):
        plain.iovm.allow_page_requests(plain.nic.pf_rid)
