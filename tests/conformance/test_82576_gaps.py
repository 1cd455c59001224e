"""What other emulations of the 82576 leave out, or do otherwise; one test a gap, through registers and rings alone.

The PF is programmed as a driver would, register by register. What frames carry, and how the switch sorts them, has
tests of its own.
"""

from __future__ import annotations

import pytest

from conformance.pooled import (
    BUFFERS,
    DATA,
    DD,
    DROP,
    EOP,
    LB,
    LEGACY,
    MPME,
    ONE_BUFFER,
    ROMPE,
    ROPE,
    RSSE,
    RSV,
    RX,
    STRVLAN,
    TX,
    VMOLR,
    VP,
    Pooled,
    mac,
    untagged,
)  # fmt: skip
from conformance.rig import BROADCAST, PF, Rig, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import ICR, IVAR_MISC
from virtfn.hw.i82576.rxtx import DTXCTL, DTXSWC, MRQC, RCTL


@pytest.fixture
def rig():
    rig = Pooled()
    yield rig
    rig.close()


def tagged(body: bytes, tci: int) -> bytes:
    return body[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + body[12:]


def ip(n: int, target: bytes, last: int = 1) -> bytes:
    header = bytes.fromhex("450000140000000040000000") + bytes([10, 0, 0, last, 10, 0, 0, 200])
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return (target + mac(n) + b"\x08\0" + header[:10] + total.to_bytes(2, "big") + header[12:]).ljust(60, b"\0")


def test_gap_1_spoofed_frames_are_dropped_counted_and_told(rig):
    rig.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1, MACAS=1, VLANAS=1).value)
    rig.set(Regs.DTXCTL, DTXCTL.of(SPOOF_INT=1).value)
    rig.vlan(0, 9, 0b0010)
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=0, OTHER_VALID=1).value)
    rig.set(Regs.EIMS, 1)
    rig.set(Regs.IMS, ICR.DOUTSYNC.mask)
    rig.send(0, untagged(3, 1), tagged(untagged(0, 1), 9), untagged(0, 1))
    assert [f.body for f in rig.got(1)] == [untagged(0, 1)]
    assert rig.nic.drops(0) == {"mac-spoof": 1, "vlan-spoof": 1}
    assert rig.get(Regs.SSVPC) == 2
    assert rig.get(Regs.ICR) & ICR.DOUTSYNC.mask
    assert rig.get(Regs.WVBR) == 1, "queue 0, and not blocked"
    assert rig.get(Regs.WVBR) == 0, "read clears"
    rig.send(2, untagged(3, 1))
    assert len(rig.got(1)) == 1, "unchecked pools may"


def test_gap_1_a_malicious_driver_is_blocked_until_its_pool_is_switched_off_and_on(rig):
    rig.set(Regs.DTXCTL, DTXCTL.of(MDP_EN=1).value)
    rig.send(2, untagged(2, 1))
    assert rig.takers() == [1]
    address, word = data_descriptor(DATA, 60)
    rig.post(2, (address, word + (1 << 46)))
    assert rig.nic.drops(2) == {"malformed": 1}
    assert rig.get(Regs.WVBR) == 0x00040004, "misbehaved, and blocked"
    lvmmc = rig.get(Regs.LVMMC)
    assert lvmmc >> 16 & 0xF == 2
    assert lvmmc & 0x1C
    assert rig.get(Regs.LVMMC) == 0
    rig.send(2, untagged(2, 1))
    assert rig.takers() == []
    rig.send(2, untagged(2, 1), queue=1)
    assert rig.takers() == [1], "only the queue is blocked"
    rig.set(Regs.VFTE, 0xFB)
    rig.set(Regs.VFTE, 0xFF)
    rig.pass_time(1000)
    assert rig.takers() == [1]


def test_gap_2_nobody_hears_itself_unless_lle_says_so(rig):
    rig.send(1, ethernet(BROADCAST, 60, mac(1)))
    assert rig.takers() == [0, 2, 3]
    rig.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1, LLE=0b0010).value)
    rig.send(1, ethernet(BROADCAST, 60, mac(1)))
    assert rig.takers() == [0, 1, 2, 3]
    rig.send(2, ethernet(BROADCAST, 60, mac(2)))
    assert rig.takers() == [0, 1, 3]


@pytest.mark.parametrize("vector", [0, 1, 2])
def test_gap_3_the_mailbox_vector_is_a_number(rig, vector):
    rig.set(VfRegs.VTIVAR_MISC, 0x80 | vector, vf=1)
    rig.set(VfRegs.VTEIMS, 7, vf=1)
    rig.set(Regs.P2VMAILBOX, 1, 1)
    assert rig.take() == [(1, vector)]


def test_gap_4_a_vf_reads_its_causes_and_its_mask(rig):
    rig.set(VfRegs.VTEICS, 5, vf=3)
    assert rig.get(VfRegs.VTEICR, vf=3) == 5
    rig.set(VfRegs.VTEIMS, 6, vf=3)
    rig.set(VfRegs.VTEIMC, 2, vf=3)
    assert rig.get(VfRegs.VTEIMS, vf=3) == 4


def test_gap_5_pools_with_rss_use_both_queues_and_both_interrupt(rig):
    rig.set(Regs.MRQC, MRQC.of(MODE=5, RSS_IPV4=1).value)
    for i in range(32):
        rig.set(Regs.RETA, 0x01000100, i)
    for i in range(10):
        rig.set(Regs.RSSRK, 0x9E3779B9 * (i + 1) & 0xFFFFFFFF, i)
    rig.set(Regs.VMOLR, VMOLR | RSSE, 1)
    rig.set(VfRegs.VTIVAR, 0x00810082, vf=1)
    rig.set(VfRegs.VTEIMS, 7, vf=1)
    rig.receive(*[ip(0, mac(1), last) for last in range(8)])
    vectors = {message for n, message in rig.take() if n == 1}
    first, second = rig.got(1), rig.got(1, 1)
    assert len(first) + len(second) == 8
    assert first
    assert second
    assert vectors == {1, 2}
    rig.receive(*[ip(0, mac(2), last) for last in range(8)])
    assert len(rig.got(2)) == 8, "a pool without RSSE has one queue"


def test_gap_6_unicast_hashes_go_by_rope_and_multicast_by_rompe_and_mpme(rig):
    stranger, group = b"\x02\0\0\0\x12\x34", b"\x01\0\x5e\0\x12\x34"
    rig.receive(ethernet(stranger), ethernet(group))
    assert rig.takers() == []
    for decl in (Regs.UTA, Regs.MTA):
        for i in range(128):
            rig.set(decl, 0xFFFFFFFF, i)
    for bits, unicast, multicast in (
        (ROPE, [1], []), (ROMPE, [], [1]), (MPME, [], [1]), (0, [], []), (ROPE | ROMPE, [1], [1]),
    ):  # fmt: skip
        rig.set(Regs.VMOLR, VMOLR | bits, 1)
        rig.receive(ethernet(stranger))
        assert rig.takers() == unicast, hex(bits)
        rig.receive(ethernet(group))
        assert rig.takers() == multicast, hex(bits)
    for i in range(128):
        rig.set(Regs.MTA, 0, i)
    rig.set(Regs.VMOLR, VMOLR | MPME, 1)
    rig.receive(ethernet(group))
    assert rig.takers() == [1], "all groups, whatever the table has"


def test_gap_7_replication_local_vlans_vlan_only_pools_and_the_default_pool(rig):
    rig.set(Regs.VT_CTL, 1 << 29)
    rig.receive(ethernet(BROADCAST))
    assert rig.takers() == [0], "RPL_EN clear: the first pool alone"
    rig.set(Regs.VT_CTL, 1 << 30 | 2 << 7)
    rig.receive(ethernet(b"\x02\0\0\0\0\x77"))
    assert rig.takers() == [2], "the default pool"
    rig.set(Regs.VT_CTL, 1 << 30 | 1 << 29 | 2 << 7)
    rig.receive(ethernet(b"\x02\0\0\0\0\x77"))
    assert rig.takers() == [], "DIS_DEF_POOL"
    rig.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1, VFE=1).value)
    rig.vlan(0, 7, 0b1010)
    rig.set(Regs.VT_CTL, 1 << 30 | 1 << 29 | 1 << 28)
    rig.receive(tagged(ethernet(b"\x02\0\0\0\0\x77"), 7))
    assert rig.takers() == [1, 3], "IGN_MAC: by VLAN alone"
    rig.set(Regs.VT_CTL, 1 << 30 | 1 << 29)
    rig.vlan(1, 8, 0b0111, local=True)
    rig.get(Regs.GPTC)
    rig.send(0, tagged(ethernet(BROADCAST, 60, mac(0)), 8))
    assert rig.takers() == [1, 2]
    assert rig.get(Regs.GPTC) == 0, "LVLAN: not to the wire"
    rig.send(0, tagged(ethernet(BROADCAST, 60, mac(0)), 7))
    assert rig.get(Regs.GPTC) == 1


def test_gap_8_mbvfimr_masks_and_rvfu_frees_in_both_views(rig):
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=0, OTHER_VALID=1).value)
    rig.set(Regs.EIMS, 1)
    rig.set(Regs.IMS, ICR.VMMB.mask)
    rig.set(Regs.MBVFIMR, 0xFD)
    rig.take()
    rig.set(VfRegs.V2PMAILBOX, 5, vf=1)
    assert rig.take() == []
    assert rig.get(Regs.P2VMAILBOX, 1) & 4
    rig.set(Regs.P2VMAILBOX, 0x10, 1)
    assert rig.get(Regs.P2VMAILBOX, 1) & 4 == 0
    assert rig.get(VfRegs.V2PMAILBOX, vf=1) & 4 == 0


def test_gap_9_eiac_and_eiam_are_what_was_written_and_act(rig):
    for decl in (Regs.EIAC, Regs.EIAM):
        rig.set(decl, 3)
        rig.set(decl, 4)
        assert rig.get(decl) == 4
    rig.set(Regs.EIMS, 7)
    rig.set(Regs.EICS, 4)
    assert rig.get(Regs.EIMS) == 3
    assert rig.get(Regs.EICR) == 0


def test_gap_10_vtivar_written_anew_forgets_the_old_vectors(rig):
    rig.set(VfRegs.VTEIMS, 7, vf=2)
    for vector in (1, 2, 0):
        rig.set(VfRegs.VTIVAR, 0x80 | vector, vf=2)
        rig.receive(ethernet(mac(2)))
        assert rig.take() == [(2, vector)]


def test_gap_11_a_queue_drops_and_counts_or_holds_the_line_up():
    rig = Pooled(layout=ONE_BUFFER)
    rig.set(Regs.QDE, 0)
    frames = [untagged(0, 1, 60 + i) for i in range(20)]
    rig.send(0, *frames[:15])
    rig.send(0, *frames[15:16])
    assert rig.get(VfRegs.RQDPC, vf=1) == 0
    rig.send(2, untagged(2, 3))
    assert rig.got(3) == [], "the line is held up for everyone"
    rig.set(Regs.QDE, 1 << 1)
    rig.pass_time(1000)
    assert len(rig.got(3)) == 1
    assert rig.get(VfRegs.RQDPC, vf=1) == 1
    assert rig.get(VfRegs.RQDPC, vf=1) == 0, "read clears"
    assert rig.nic.drops(1) == {"no-descriptor": 1}
    assert rig.get(Regs.RNBC) == 1
    assert [f.body for f in rig.got(1)] == frames[:15]
    rig.set(Regs.QDE, 0)
    rig.set(VfRegs.SRRCTL, ONE_BUFFER | DROP, vf=1)
    rig.send(0, *frames[:16])
    assert rig.get(VfRegs.RQDPC, vf=1) == 1, "DROP_EN of the queue does the same"
    rig.close()


def test_gap_12_frames_from_inside_are_counted_and_marked_and_replicated_ones_stripped_by_rplolr(rig):
    rig.send(0, untagged(0, 1))
    rig.receive(ethernet(mac(1)))
    inside, outside = rig.got(1)
    assert inside.status & LB
    assert not outside.status & LB
    assert [rig.get(d, vf=0) for d in (VfRegs.VFGPTLBC, VfRegs.VFGOTLBC)] == [1, 64]
    assert [rig.get(d, vf=1) for d in (VfRegs.VFGPRLBC, VfRegs.VFGORLBC)] == [1, 64]
    assert [rig.get(d, vf=1) for d in (VfRegs.VFGPRC, VfRegs.VFGORC)] == [2, 128]
    rig.set(Regs.VMOLR, VMOLR | STRVLAN, 1)
    rig.receive(tagged(ethernet(mac(1), 60), 5), tagged(ethernet(BROADCAST, 60), 5))
    own, replicated = rig.got(1)
    assert own.status & VP
    assert own.q1 >> 48 == 5
    assert len(own.body) == 60
    assert not replicated.status & VP, "VMOLR does not count for replicated frames"
    assert len(replicated.body) == 64
    rig.set(Regs.RPLOLR, RSV | STRVLAN)
    rig.receive(tagged(ethernet(BROADCAST, 60), 5))
    (replicated,) = rig.got(1)
    assert replicated.status & VP


def test_gap_13_rates_are_limited_and_traffic_mirrored(rig):
    rig.set(Regs.RTTDQSEL, 0)
    rig.set(Regs.RTTBCNRC, 1 << 31 | 100 << 14)  # a hundredth of the link: 10 Mb/s
    assert rig.get(Regs.RTTBCNRC) == 1 << 31 | 100 << 14
    rig.store(rig.bases[0] + DATA, untagged(0, 1, 1496))
    rig.post(0, *[tuple(data_descriptor(DATA, 1496))] * 12)
    assert len(rig.got(1)) in (2, 3), "what an idle sender may save up"
    for _ in range(5):
        rig.pass_time(1200)
        assert len(rig.got(1)) == 1, "1500 bytes each 1.2 ms"
    rig.set(Regs.RTTBCNRC, 0)
    rig.pass_time(1000)
    rig.got(1)
    rig.set(Regs.VMRCTL, 1 | 3 << 8, 0)
    rig.set(Regs.VMRVM, 0b0010, 0)
    rig.send(0, untagged(0, 1))
    assert rig.takers() == [1, 3], "what pool 1 gets, pool 3 gets too"
    rig.send(0, untagged(0, 2))
    assert rig.takers() == [2]


def test_gap_14_legacy_write_back_has_length_status_and_vlan_where_old_drivers_look():
    rig = Pooled(layout=LEGACY | DROP)
    rig.set(Regs.VMOLR, VMOLR | STRVLAN, 1)
    rig.receive(tagged(ethernet(mac(1), 60), 0x2005))
    word = int.from_bytes(rig.load(rig.bases[1] + RX + 8, 8), "little")
    assert word & 0xFFFF == 60
    assert word >> 32 & 0xFF == DD | EOP | VP
    assert word >> 40 & 0xFF == 0
    assert word >> 48 == 0x2005
    assert rig.load(rig.bases[1] + BUFFERS, 60) == ethernet(mac(1), 60)
    rig.store(rig.bases[0] + DATA, untagged(0, 2, 60))
    rig.post(0, (DATA, 60 | 0x4B << 24 | 9 << 48))
    sent = int.from_bytes(rig.load(rig.bases[0] + TX + 8, 8), "little")
    assert sent >> 32 & 1, "done"
    word = int.from_bytes(rig.load(rig.bases[2] + RX + 8, 8), "little")
    assert word & 0xFFFF == 64
    assert rig.load(rig.bases[2] + BUFFERS, 64) == tagged(untagged(0, 2, 60), 9)
    rig.close()


def test_gap_15_a_vf_reset_clears_interrupts_and_mailbox_but_not_queue_addresses(rig):
    rig.send(1, untagged(1, 0))
    rig.set(VfRegs.VTEIMS, 7, vf=1)
    rig.set(VfRegs.V2PMAILBOX, 4, vf=1)
    assert rig.get(VfRegs.VFGPTC, vf=1) == 1
    rig.set(VfRegs.VTCTRL, 1 << 26, vf=1)
    assert rig.get(VfRegs.VTEIMS, vf=1) == 0
    assert rig.get(VfRegs.V2PMAILBOX, vf=1) & 4 == 0
    assert rig.get(VfRegs.VFGPTC, vf=1) == 1, "drivers count on over their resets"
    assert rig.get(VfRegs.TDBAL, vf=1) == TX


def test_gap_16_configuration_done_is_there_and_eewr_works(rig):
    assert rig.get(Regs.EEMNGCTL) & 0xC0000 == 0xC0000
    rig.set(Regs.EEWR, 1 | 0x30 << 2 | 0xBEEF << 16)
    assert rig.get(Regs.EEWR) & 2
    rig.set(Regs.EERD, 1 | 0x30 << 2)
    assert rig.get(Regs.EERD) >> 16 == 0xBEEF


def test_gap_17_first_vf_offset_follows_ari_and_vf_bars_are_not_prefetchable():
    rig = Rig()
    read = rig.host.root.config_read
    assert read(rig.nic.pf_rid, 0x174, 2) == 0x180
    rig.config(PF, 0x168, 0x10)
    assert read(rig.nic.pf_rid, 0x174, 2) == 0x080
    assert [read(rig.nic.pf_rid, at, 4) & 0xF for at in (0x184, 0x190)] == [4, 4]
    rig.close()


@pytest.mark.parametrize("queue", range(4))
@pytest.mark.parametrize(("old", "new"), [(0x2800, 0xC000), (0x3800, 0xE000)])
def test_gap_18_every_queue_register_answers_at_its_old_place(rig, queue, old, new):
    rid = rig.rid(PF)
    for offset in (0x00, 0x04, 0x08, 0x14, 0x28):
        value = 0x02010080 if offset == 0x28 else 0x0000A280
        rig.nic.bar_write(rid, 0, old + 0x100 * queue + offset, 4, value)
        assert rig.nic.bar_read(rid, 0, new + 0x40 * queue + offset, 4) == value
        rig.nic.bar_write(rid, 0, new + 0x40 * queue + offset, 4, 0)
        assert rig.nic.bar_read(rid, 0, old + 0x100 * queue + offset, 4) == 0


def test_gap_19_offloads_do_what_the_context_says_and_payload_length_is_checked(rig):
    """MACLEN and IPLEN say where the checksum starts; the device does not look for a header itself."""
    body = mac(1) + mac(0) + b"\x88\xb5" + bytes(range(46))
    rig.store(rig.bases[0] + DATA, body)
    context = (20 | 20 << 9, 2 << 20 | 1 << 29)  # 20 and 20 bytes, UDP: the field at 46
    address, word = data_descriptor(DATA, 60)
    rig.post(0, context, (address, word | 1 << 41))
    (frame,) = rig.got(1)
    words = [int.from_bytes(body[i : i + 2], "big") for i in range(40, 60, 2)]
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert frame.body[:46] + frame.body[48:] == body[:46] + body[48:]
    assert int.from_bytes(frame.body[46:48], "big") == ~total & 0xFFFF
    rig.post(0, (address, word - (1 << 46)))
    assert rig.got(1) == []
    assert rig.nic.drops(0) == {"malformed": 1}


def test_gap_20_vfmprc_answers_where_either_header_has_it(rig):
    rig.receive(ethernet(BROADCAST))
    rid = rig.rid(PF)
    assert rig.get(VfRegs.VFMPRC, vf=1) == 1
    assert [rig.nic.bar_read(rid, 0, at, 4) for at in (0x10138, 0x1013C)] == [1, 1]
