"""The 82576's statistics: what each counter counts, and what reading it does."""

from __future__ import annotations

import pytest

from conformance.pooled import DATA, Pooled, mac, untagged
from conformance.rig import BROADCAST, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs

SIZES = {"PRC64": 60, "PRC127": 61, "PRC255": 124, "PRC511": 252, "PRC1023": 508, "PRC1522": 1020}
PAIRS = [(Regs.GORCL, Regs.GORCH), (Regs.GOTCL, Regs.GOTCH), (Regs.TORL, Regs.TORH), (Regs.TOTL, Regs.TOTH),
         (Regs.HGORCL, Regs.HGORCH), (Regs.HGOTCL, Regs.HGOTCH)]  # fmt: skip


@pytest.fixture
def rig():
    rig = Pooled(2)
    yield rig
    rig.close()


def test_octets_count_the_frame_check_sequence(rig):
    rig.receive(ethernet(mac(0), 100))
    assert [rig.get(d) for d in (Regs.GPRC, Regs.GORCL, Regs.TPR, Regs.TORL)] == [1, 104, 1, 104]
    assert [rig.get(d, vf=0) for d in (VfRegs.VFGPRC, VfRegs.VFGORC)] == [1, 104]
    rig.send(0, untagged(0, None, 200))
    assert [rig.get(d) for d in (Regs.GPTC, Regs.GOTCL, Regs.TPT, Regs.TOTL)] == [1, 204, 1, 204]
    assert [rig.get(d, vf=0) for d in (VfRegs.VFGPTC, VfRegs.VFGOTC)] == [1, 204]
    assert [rig.get(d) for d in (Regs.RPTHC, Regs.HGPTC)] == [1, 1]


def test_reading_clears_a_counter_of_the_port(rig):
    rig.receive(ethernet(mac(0)), ethernet(BROADCAST), ethernet(b"\x01\0\0\0\0\1"))
    assert [rig.get(Regs.GPRC), rig.get(Regs.GPRC)] == [2, 0]
    assert [rig.get(Regs.TPR), rig.get(Regs.TPR)] == [3, 0]
    assert [rig.get(Regs.BPRC), rig.get(Regs.BPRC)] == [1, 0]
    rig.receive(ethernet(mac(0)))
    assert rig.get(Regs.GPRC) == 1


def test_the_counters_cannot_be_written(rig):
    rig.receive(ethernet(mac(0)))
    for decl in (Regs.GPRC, Regs.GORCL, Regs.GORCH, Regs.TPR):
        rig.set(decl, 0xFFFFFFFF)
    assert [rig.get(Regs.GPRC), rig.get(Regs.TPR), rig.get(Regs.GORCL)] == [1, 1, 64]
    rig.set(VfRegs.VFGPRC, 7, vf=0)
    assert rig.get(VfRegs.VFGPRC, vf=0) == 1


@pytest.mark.parametrize(("low", "high"), PAIRS, ids=[low.name for low, _ in PAIRS])
def test_a_64_bit_pair_is_cleared_by_its_high_half(rig, low, high):
    name = {"TORL": "tor", "TOTL": "tot"}.get(low.name, low.name[:-1].lower())
    rig.nic.port.nic["counters"][name] += (5 << 32) + 7
    before = rig.get(low)
    assert before == 7
    assert rig.get(low) == 7, "the low half rests"
    assert rig.get(high) == 5
    assert (rig.get(low), rig.get(high)) == (0, 0)


def test_vf_counters_run_on_and_wrap_at_32_bits(rig):
    rig.receive(ethernet(mac(1)))
    assert [rig.get(VfRegs.VFGPRC, vf=1), rig.get(VfRegs.VFGPRC, vf=1)] == [1, 1], "not cleared by reading"
    rig.nic.port.nic["pools"][1]["gorc"] += (1 << 32) - 64
    assert rig.get(VfRegs.VFGORC, vf=1) == 0, "2**32 bytes"
    rig.receive(ethernet(mac(1)))
    assert rig.get(VfRegs.VFGORC, vf=1) == 64
    assert [rig.get(d, vf=0) for d in (VfRegs.VFGPRC, VfRegs.VFGORC)] == [0, 0]


def test_group_frames_of_a_vf(rig):
    rig.receive(ethernet(BROADCAST), ethernet(mac(0)))
    assert rig.get(VfRegs.VFMPRC, vf=0) == 1, "broadcast too, as silicon counts"
    assert rig.get(VfRegs.VFMPRC, vf=1) == 1
    rig.send(0, ethernet(BROADCAST, 60, mac(0)), ethernet(b"\x01\0\0\0\0\1", 60, mac(0)))
    assert [rig.get(Regs.BPTC), rig.get(Regs.MPTC)] == [1, 1]


@pytest.mark.parametrize("name", SIZES)
def test_frames_by_size_at_both_ends_of_each_class(rig, name):
    following = dict(zip(SIZES, [*list(SIZES.values())[1:], 1519], strict=True))
    for direction in ("PRC", "PTC"):
        for size in (SIZES[name], following[name] - 1):
            if direction == "PRC":
                rig.receive(ethernet(mac(0), min(size, 1514)))
            else:
                rig.send(0, untagged(0, None, min(size, 1514)))
        counts = {n: rig.get(getattr(Regs, n.replace("PRC", direction))) for n in SIZES}
        assert counts == dict.fromkeys(SIZES, 0) | {name: 2}


def test_short_and_long_frames(rig):
    rig.receive(b"\xff" * 10, ethernet(mac(0), 9800), ethernet(mac(0), 1600))
    assert [rig.get(Regs.RUC), rig.get(Regs.ROC)] == [1, 2]
    assert rig.nic.drops(None) == {"undersize": 1, "oversize": 1}
    assert rig.nic.drops(0) == {"oversize": 1}


def test_a_segmented_send_is_one_context_and_many_frames(rig):
    header = mac(1) + mac(0) + b"\x08\0" + bytes.fromhex("4500000000010000400600000a0000010a000002")
    header += bytes.fromhex("00010002000000010000000050180000") + b"\0" * 4
    rig.store(rig.bases[0] + DATA, header + b"x" * 3000)
    context = (20 | 14 << 9, 1 << 10 | 1 << 11 | 2 << 20 | 1 << 29 | 20 << 40 | 1000 << 48)
    data = (DATA, 3054 | 3 << 20 | 0xAB << 24 | 3 << 40 | 3000 << 46)
    rig.post(0, context, data)
    assert rig.get(Regs.TSCTC) == 1
    assert rig.get(VfRegs.VFGPTC, vf=0) == 3
    assert rig.get(VfRegs.VFGOTC, vf=0) == 3 * (54 + 1000 + 4)
    assert [len(f.body) for f in rig.got(1)] == [1054] * 3


def test_a_vfs_counters_run_on_over_its_software_reset_and_start_anew_after_an_flr(rig):
    rig.receive(ethernet(mac(0)), ethernet(mac(1)))
    rig.set(VfRegs.VTCTRL, 1 << 26, vf=0)
    assert rig.get(VfRegs.VFGPRC, vf=0) == 1, "drivers note where they start at probe, and count over their resets"
    rig.flr(0)
    assert rig.get(VfRegs.VFGPRC, vf=0) == 0
    assert rig.get(VfRegs.VFGPRC, vf=1) == 1
    assert rig.get(Regs.GPRC) == 2, "the port's are its own"
    rig.set(Regs.CTRL, 1 << 26)
    assert [rig.get(Regs.GPRC), rig.get(VfRegs.VFGPRC, vf=1)] == [0, 0]


def test_descriptors_that_ask_for_no_report_are_counted_all_the_same(rig):
    rig.store(rig.bases[0] + DATA, untagged(0, 1))
    address, word = data_descriptor(DATA, 60)
    rig.post(0, *[(address, word & ~(1 << 27))] * 3)
    assert rig.get(VfRegs.VFGPTC, vf=0) == 3
