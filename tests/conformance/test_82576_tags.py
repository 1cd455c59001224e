"""Tags, as VET, CTRL.VME and CTRL_EXT.EXT_VLAN have them. Spec: 82576 datasheet, section "802.1q VLAN Support"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.pooled import DD, DROP, EOP, LB, STRVLAN, VMOLR, VP, Pooled, mac
from conformance.rig import PF, Rig, ethernet
from conformance.whole import Whole
from unit.nicrig import EOP as EOP_TX
from unit.nicrig import IXSM, TCP, TSE, VLE, context, data, tagged
from unit.packets import ipv4, wrap
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.desc import RXD_IPCS, RXD_L4CS, RXD_PT_IPV4, RXD_PT_TCP, RXD_VEXT
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, VET, VlanInsert
from virtfn.hw.i82576.rxtx import DTXSWC, RCTL, VMVIR

OUTER, INNER = 0x88A8, 0x8100
SPLIT_ALWAYS = 0x0A000202 | DROP


def double(frame: bytes, outer: int, inner: int) -> bytes:
    return tagged(tagged(frame, inner, INNER), outer, OUTER)


def small(vf: int, source: int) -> bytes:
    """Make a TCP segment from VF `source` to VF `vf`."""
    return mac(vf) + mac(source) + wrap(ipv4(6, bytes(range(40))))[12:]


@pytest.fixture
def pools() -> Iterator[Pooled]:
    made = Pooled(3)
    yield made
    made.close()


@pytest.mark.parametrize("vme", [0, 1])
def test_without_pools_ctrl_vme_decides_who_strips(vme: int) -> None:
    rig = Whole(CTRL.of(VME=vme))
    frame = tagged(ethernet(b"\x02\0\0\0\0\x11", 100), 0xA005)
    assert rig.receive(frame) == 1
    body, q1 = rig.got()
    assert body == (frame[:12] + frame[16:] if vme else frame)
    assert (q1 & VP, q1 >> 48) == ((VP, 0xA005) if vme else (0, 0))
    rig.close()


@pytest.mark.parametrize("vme", [0, 1])
def test_without_pools_tags_are_inserted_in_vlan_mode_only(vme: int) -> None:
    rig = Whole(CTRL.of(VME=vme))
    rig.set(Regs.RCTL, RCTL.of(RXEN=1, UPE=1, LBM=3).value)
    frame = ethernet(b"\x02\0\0\0\0\x11", 100)
    rig.store(rig.base + rig.DATA, frame)
    rig.words(rig.base + rig.TX, *context(vlan=0xA005))
    rig.words(rig.base + rig.TX + 16, *data(rig.DATA, 100, 0x2B << 24 | VLE))
    rig.set(Regs.TDT, 2)
    rig.pass_time(1000)
    body, q1 = rig.got()
    # What was inserted on the way out is stripped on the way back.
    assert (body, q1 & VP, q1 >> 48) == (frame, VP * vme, 0xA005 * vme)
    rig.close()


def test_turning_vlan_mode_on_and_off_acts_at_once() -> None:
    rig = Whole(CTRL.of())
    frame = tagged(ethernet(b"\x02\0\0\0\0\x11", 100), 5)
    lengths = []
    for vme in (0, 1, 0):
        rig.set(Regs.CTRL, CTRL.of(FD=1, SLU=1, VME=vme).value)
        rig.receive(frame)
        lengths.append(len(rig.got()[0]))
    assert lengths == [104, 100, 104]
    rig.close()


def test_with_pools_vmolr_decides_whatever_vlan_mode_is(pools: Pooled) -> None:
    pools.set(Regs.CTRL, CTRL.of(FD=1, SLU=1, VME=1).value)
    pools.send(0, tagged(ethernet(mac(1), 100), 5))
    assert [len(f.body) for f in pools.got(1)] == [104]


# The outer tag.


def outer_mode(rig: Rig) -> None:
    rig.set(Regs.VET, VET.of(OUTER=OUTER, INNER=INNER).value)
    rig.set(Regs.CTRL_EXT, CTRL_EXT.of(EXT_VLAN=1).value)


def test_the_filter_skips_the_outer_tag(pools: Pooled) -> None:
    outer_mode(pools)
    pools.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1, VFE=1).value)
    pools.vlan(0, 5, 0b010)
    pools.vlan(1, 6, 0b001)
    plain = ethernet(mac(1), 100)
    good, bad, single, inner = double(plain, 6, 5), double(plain, 5, 6), tagged(plain, 6, OUTER), tagged(plain, 6)
    pools.send(0, good, bad, single, inner)
    # With one tag alone, a frame is untagged: the outer is skipped, and an inner one has no outer in front of it.
    assert [f.body for f in pools.got(1)] == [good, single, inner]
    assert pools.receive(bad, good) == 2
    assert [(f.body, f.status & ~RXD_VEXT) for f in pools.got(1)] == [(good, DD | EOP)]


def test_the_inner_tag_is_stripped_and_the_outer_stays(pools: Pooled) -> None:
    outer_mode(pools)
    pools.set(Regs.VMOLR, VMOLR | STRVLAN, 1)
    plain = small(1, 0)
    pools.send(0, double(plain, 0x2006, 0xA005), tagged(plain, 7, OUTER), plain)
    got = pools.got(1)
    assert [f.body for f in got] == [tagged(plain, 0x2006, OUTER), tagged(plain, 7, OUTER), plain]
    assert [(f.q1 & VP, f.q1 >> 48) for f in got] == [(VP, 0xA005), (0, 0), (0, 0)]


def test_checksums_are_looked_for_behind_both_tags(pools: Pooled) -> None:
    outer_mode(pools)
    plain = small(1, 0)
    pools.send(0, double(plain, 6, 5), tagged(plain, 6, OUTER), plain)
    found = RXD_IPCS | RXD_L4CS
    kinds = [(f.status & ~(DD | EOP | LB), f.q0 & 0x1FFF0) for f in pools.got(1)]
    seen = (RXD_VEXT | found, RXD_PT_IPV4 | RXD_PT_TCP)
    # Each frame is to have an outer tag: into one without it nobody looks.
    assert kinds == [seen, seen, (0, 0)]


def test_headers_are_split_behind_both_tags() -> None:
    rig = Pooled(2, layout=SPLIT_ALWAYS)
    outer_mode(rig)
    plain = small(1, 0)
    rig.send(0, double(plain, 6, 5), tagged(plain, 6, OUTER), plain)
    assert [f.q0 >> 21 & 0x3FF for f in rig.got(1)] == [8 + 54, 4 + 54, len(plain)]
    rig.close()


def test_a_tag_is_inserted_behind_the_outer_one(pools: Pooled) -> None:
    outer_mode(pools)
    plain = small(1, 0)
    sent = tagged(plain, 6, OUTER)
    wrong = bytearray(sent)
    wrong[28:30] = bytes(2)  # no checksum of the network header
    pools.store(pools.bases[0] + 0x10000, bytes(wrong))
    pools.post(0, context(maclen=18, vlan=0xA005, l4t=TCP), data(0x10000, len(sent), 0x2B << 24 | VLE | IXSM))
    (got,) = pools.got(1)
    assert got.body == double(plain, 6, 0xA005)


def test_who_may_send_is_asked_about_the_inner_vlan(pools: Pooled) -> None:
    outer_mode(pools)
    pools.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1, VLANAS=1).value)
    pools.vlan(0, 5, 0b011)
    plain = ethernet(mac(1), 100, mac(0))
    pools.send(0, double(plain, 9, 5), double(plain, 5, 9))
    assert [f.body for f in pools.got(1)] == [double(plain, 9, 5)]


def test_a_port_reset_leaves_the_mode_and_a_function_reset_ends_it(pools: Pooled) -> None:
    outer_mode(pools)
    pools.set(Regs.CTRL, CTRL.of(RST=1).value)
    assert CTRL_EXT(pools.get(Regs.CTRL_EXT)).EXT_VLAN == 1
    pools.flr(PF)
    pools.config(PF, 0x04, 0x0006)
    assert CTRL_EXT(pools.get(Regs.CTRL_EXT)).EXT_VLAN == 0


def test_standard_frames_may_be_longer_by_the_outer_tag(pools: Pooled) -> None:
    pools.set(Regs.VMOLR, VMOLR & ~(1 << 16), 1)
    frame = double(ethernet(mac(1), 1514, mac(0)), 6, 5)
    pools.send(0, frame)
    assert pools.got(1) == []
    outer_mode(pools)
    pools.send(0, frame)
    assert [len(f.body) for f in pools.got(1)] == [1522]


def departed(pools: Pooled) -> list[bytes]:
    """Take what has left by the wire."""
    port = pools.nic.port.nic["port"]
    store = pools.nic.port.nic["departed"][int(port["departed_head"]) : int(port["departed_tail"])].tobytes()
    port["departed_head"] = port["departed_tail"] = 0
    frames, at = [], 0
    while at < len(store):
        size = int.from_bytes(store[at : at + 4], "big")
        frames.append(store[at + 4 : at + 4 + size])
        at += 4 + size
    return frames


def test_a_port_vlan_holds_for_a_large_send_under_way(pools: Pooled) -> None:
    """On a wire with a rate, so that its segments leave one after the other."""
    pools.nic.set_wire(True, 10)
    pools.nic.open_wire()
    head = b"\x02\0\0\0\0\x77" + mac(0) + wrap(ipv4(6, bytes(12) + b"\x50" + bytes(7)))[12:]
    large = head[:54] + b"\x55" * 30000
    pools.store(pools.bases[0] + 0x40000, large)
    whole = data(0x40000, len(large), EOP_TX | TSE, len(large) - 54)
    pools.post(0, context(maclen=14, iplen=20, l4t=TCP, l4len=20, mss=1000), whole)
    left = departed(pools)
    assert 0 < len(left) < 30
    pools.set(Regs.VMVIR, VMVIR.of(PORT_VLAN=20, VLANA=VlanInsert.ALWAYS).value, 0)
    pools.pass_time(100_000)
    later = departed(pools)
    assert all(frame[12:16] == b"\x81\0\0\x14" for frame in later)
    assert pools.nic.drops(0) == {"withdrawn": 1}
    pools.post(0, context(maclen=14, iplen=20, l4t=TCP, l4len=20, mss=1000), whole)
    for _ in range(20):
        pools.pass_time(10_000)
    assert len(departed(pools)) == 30
