import pytest

from unit.slotrig import build
from virtfn.devices.pci import VF_SETTLE_PS, SrIovUnit
from virtfn.hw.pci import Pcie, SrIov
from virtfn.hw.types import parse_rid

CONTROL, NUM_VFS, PAGE, OFFSET, VF_BAR0 = 0x168, 0x170, 0x180, 0x174, 0x184


@pytest.fixture
def rig():
    return build()


@pytest.fixture
def pf(rig):
    return rig.card.pfs[0].function


@pytest.fixture
def unit(rig) -> SrIovUnit:
    return rig.card.pfs[0].sriov


def test_num_vfs_is_locked_while_vfs_are_enabled(pf, unit):
    pf.config_write(NUM_VFS, 2, 3)
    pf.config_write(CONTROL, 2, 1)
    pf.config_write(NUM_VFS, 2, 5)
    assert (pf.config_read(NUM_VFS, 2), unit.count) == (3, 3)
    pf.config_write(CONTROL, 2, 0)
    pf.config_write(NUM_VFS, 2, 5)
    assert (pf.config_read(NUM_VFS, 2), unit.count) == (5, 0)


def test_too_many_vfs_cannot_be_enabled(pf, unit):
    pf.config_write(NUM_VFS, 2, 9)
    pf.config_write(CONTROL, 2, 9)
    assert (pf.config_read(CONTROL, 2), unit.count) == (8, 0)


def test_first_vf_offset_follows_ari_capable_hierarchy_until_vfs_are_enabled(pf):
    assert pf.config_read(OFFSET, 4) == 0x00020180
    pf.config_write(CONTROL, 2, 0x10)
    assert pf.config_read(OFFSET, 4) == 0x00020080
    pf.config_write(NUM_VFS, 2, 1)
    pf.config_write(CONTROL, 2, 0x01)
    assert pf.config_read(CONTROL, 2) == 1, "the bit may change in the write that enables"
    pf.config_write(CONTROL, 2, 0x11)
    assert pf.config_read(CONTROL, 2) == 1
    assert pf.config_read(OFFSET, 2) == 0x180


def test_only_the_lowest_pf_has_ari_capable_hierarchy():
    first, second = (p.function for p in build(ports=2).card.pfs)
    second.config_write(CONTROL, 2, 0x10)
    assert second.config_read(CONTROL, 2) == 0
    first.config_write(CONTROL, 2, 0x10)
    assert second.config_read(OFFSET, 2) == first.config_read(OFFSET, 2) == 0x80


def test_an_enabled_pf_keeps_its_offset_when_another_changes_the_hierarchy():
    rig = build(ports=2)
    first, second = (p.function for p in rig.card.pfs)
    second.config_write(NUM_VFS, 2, 1)
    second.config_write(CONTROL, 2, 1)
    first.config_write(CONTROL, 2, 0x10)
    assert (first.config_read(OFFSET, 2), second.config_read(OFFSET, 2)) == (0x80, 0x180)
    second.config_write(CONTROL, 2, 0)
    assert second.config_read(OFFSET, 2) == 0x80


def test_the_page_size_sets_the_least_vf_bar(pf, unit):
    pf.config_write(VF_BAR0, 4, 0xE0014000)
    pf.config_write(PAGE, 4, 0x10)
    assert unit.bars.size(0) == 0x10000
    assert pf.config_read(VF_BAR0, 4) == 0xE0010004
    pf.config_write(VF_BAR0, 4, 0xFFFFFFFF)
    assert pf.config_read(VF_BAR0, 4) == 0xFFFF0004
    pf.config_write(PAGE, 4, 1)
    assert unit.bars.size(0) == 0x4000


@pytest.mark.parametrize("value", [0, 3, 4, 0x80000000, 0x553])
def test_page_sizes_that_are_not_one_supported_bit_are_ignored(pf, value):
    pf.config_write(PAGE, 4, value)
    assert pf.config_read(PAGE, 4) == 1


def test_the_page_size_is_locked_while_vfs_are_enabled(pf):
    pf.config_write(NUM_VFS, 2, 1)
    pf.config_write(CONTROL, 2, 1)
    pf.config_write(PAGE, 4, 0x10)
    assert pf.config_read(PAGE, 4) == 1


def test_vf_bars_are_64_bit_and_sized_for_one_vf(pf):
    for at in range(VF_BAR0, VF_BAR0 + 24, 4):
        pf.config_write(at, 4, 0xFFFFFFFF)
    read = [pf.config_read(at, 4) for at in range(VF_BAR0, VF_BAR0 + 24, 4)]
    assert read == [0xFFFFC004, 0xFFFFFFFF, 0, 0xFFFFC004, 0xFFFFFFFF, 0]


def test_vfs_answer_100_ms_after_vf_enable(rig, pf, unit):
    where = parse_rid("02:10.0")
    pf.config_write(NUM_VFS, 2, 1)
    pf.config_write(CONTROL, 2, 9)
    rig.clock.sleep(VF_SETTLE_PS - 1)
    assert not unit.ready
    assert rig.root.config_read(where, 8, 4) == 0xFFFFFFFF
    rig.root.config_write(where, 4, 2, 4)
    assert unit.bar_at(unit.bar_address(0, 0)) is None
    rig.clock.sleep(1)
    assert rig.root.config_read(where, 8, 4) == 0x02000001
    assert rig.root.config_read(where, 4, 2) == 0, "the early write was lost"
    assert unit.bar_at(unit.bar_address(0, 0)) == (0, 0, 0)


def test_the_owner_hears_each_change_of_the_number_of_vfs(pf, unit):
    heard = []
    unit.on_change.append(heard.append)
    pf.config_write(NUM_VFS, 2, 4)
    pf.config_write(CONTROL, 2, 1)
    pf.config_write(CONTROL, 2, 9)
    pf.config_write(CONTROL, 2, 0)
    assert heard == [4, 0]


def test_a_pf_flr_takes_the_vfs_away(rig, pf, unit):
    heard = []
    rig.pcim.enable_vfs(rig.pf, 2)
    pf.config_write(0xA0 + Pcie.DEVCTL.offset, 2, 0x8000)
    unit.on_change.append(heard.append)
    assert unit.count == 0
    assert [pf[SrIov].peek(d) for d in (SrIov.CONTROL, SrIov.NUM_VFS, SrIov.SYSTEM_PAGE_SIZE)] == [0, 0, 1]
    assert rig.card.rids() == [rig.pf]
    assert pf.config_read(VF_BAR0, 4) == 4


def test_routing_ids_interleave_the_ports():
    rig = build(ports=2)
    for found in rig.pcim.pfs():
        rig.pcim.enable_vfs(found.rid, 8)
    first, second = (p.sriov for p in rig.card.pfs)
    assert [first.rid_of(0x100, n) for n in (0, 4, 7)] == [parse_rid(t) for t in ("02:10.0", "02:11.0", "02:11.6")]
    assert [second.rid_of(0x101, n) for n in (0, 7)] == [parse_rid(t) for t in ("02:10.1", "02:11.7")]
    assert second.index_of(0x101, parse_rid("02:11.7")) == 7
    assert second.index_of(0x101, parse_rid("02:11.6")) is None
