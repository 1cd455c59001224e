from itertools import pairwise

import pytest

from unit.slotrig import PlainCard, build
from virtfn.hw.pci import SrIov, Type1
from virtfn.hw.types import format_rid, make_rid, parse_rid
from virtfn.iovm.pcim import Pcim
from virtfn.iovm.place import Windows
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import VirtfnError

PORT = make_rid(0, 1, 0)


def addresses(found) -> list[str]:
    return [format_rid(f.rid)[5:] for f in found]


@pytest.mark.parametrize(("ari", "buses"), [(False, (1, 2)), (True, (1, 1))])
def test_the_scan_numbers_buses_with_room_for_vfs(ari, buses):
    rig = build(ari=ari)
    header = rig.root.ports[0].header
    assert (header.peek(Type1.SECONDARY), header.peek(Type1.SUBORDINATE)) == buses
    assert rig.root.ports[1].secondary == buses[1] + 1
    assert addresses(rig.pcim.functions.values()) == ["00:00.0", "00:01.0", "01:00.0", "00:02.0"]
    assert [f.is_pf for f in rig.pcim.functions.values()] == [False, False, True, False]


def test_ari_chains_find_the_second_port():
    rig = build(ports=2, ari=True)
    assert addresses(rig.pcim.pfs()) == ["01:00.0", "01:00.1"]


def test_bars_are_sized_aligned_apart_and_inside_their_ports_window():
    rig = build(ports=2)
    spans = []
    for found in rig.pcim.pfs():
        assert {b.bar: b.size for b in found.bars} == {0: 128 << 10, 1: 4 << 20, 2: 32, 3: 16 << 10, 6: 4 << 20}
        assert {b.bar: (b.size, b.wide) for b in found.vf_bars} == {0: (16 << 10, True), 3: (16 << 10, True)}
        spans += [(b.address, b.size) for b in found.bars if not b.io]
        spans += [(b.address, b.size * 8) for b in found.vf_bars]
    spans.sort()
    assert all(a + size <= b for (a, size), (b, _) in pairwise(spans))
    assert all(b.address % b.size == 0 for f in rig.pcim.pfs() for b in f.bars + f.vf_bars)
    first, second = ([*port.windows(io=False)] for port in rig.root.ports)
    assert all(any(at in window for window in first) for a, size in spans for at in (a, a + size - 1))
    assert not any(spans[0][0] in window for window in second)


def test_a_rescan_finds_the_same():
    rig = build()
    before = rig.pcim.functions
    rig.pcim.scan()
    assert rig.pcim.functions == before


def test_a_rescan_disables_vfs_that_were_left_enabled():
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 3)
    began = rig.clock.now()
    Pcim(rig.root, rig.clock).scan()
    assert rig.clock.now() - began == S_PS
    assert rig.card.pfs[0].sriov.count == 0


@pytest.mark.parametrize(
    ("ari", "expected"), [(False, ["02:10.0", "02:10.2", "02:10.4"]), (True, ["01:10.0", "01:10.2", "01:10.4"])]
)
def test_vfs_come_to_light(ari, expected):
    rig = build(ari=ari)
    began = rig.clock.now()
    vfs = rig.pcim.enable_vfs(rig.pf, 3)
    assert rig.clock.now() - began == 100 * MS_PS
    assert addresses(vfs) == expected
    assert {(v.vendor_id, v.device_id, v.class_code, v.revision) for v in vfs} == {(0x8086, 0x10CA, 0x020000, 1)}
    pf = rig.pcim.functions[rig.pf]
    assert [v.bars[1].address for v in vfs] == [pf.vf_bars[1].address + n * 0x4000 for n in range(3)]
    assert pf.vfs == vfs


def test_no_scan_sees_a_vf():
    rig = build(ari=True)
    rig.pcim.enable_vfs(rig.pf, 8)
    assert all(rig.root.config_read(v.rid, 0, 4) == 0xFFFFFFFF for v in rig.pcim.functions[rig.pf].vfs)


def test_disabling_waits_a_second_before_num_vfs():
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 8)
    seen = []
    rig.card.pfs[0].sriov.on_change.append(lambda count: seen.append((count, rig.clock.now())))
    began = rig.clock.now()
    rig.pcim.disable_vfs(rig.pf)
    assert seen == [(0, began)]
    assert rig.clock.now() - began == S_PS
    assert rig.root.config_read(rig.pf, 0x170, 2) == 0
    assert rig.pcim.functions[rig.pf].vfs == []
    rig.pcim.disable_vfs(rig.pf)
    assert rig.clock.now() - began == S_PS, "nothing to wait for"


@pytest.mark.parametrize(("n", "errno"), [(0, "EINVAL"), (-1, "EINVAL"), (9, "ERANGE"), (70000, "ERANGE")])
def test_wrong_numbers_of_vfs_are_refused(n, errno):
    rig = build()
    with pytest.raises(VirtfnError) as caught:
        rig.pcim.enable_vfs(rig.pf, n)
    assert caught.value.errno_name == errno
    assert rig.card.pfs[0].sriov.count == 0


def test_vfs_change_only_by_way_of_none():
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 2)
    with pytest.raises(VirtfnError, match="2 VFs are enabled") as caught:
        rig.pcim.enable_vfs(rig.pf, 3)
    assert caught.value.errno_name == "EBUSY"
    rig.pcim.disable_vfs(rig.pf)
    assert len(rig.pcim.enable_vfs(rig.pf, 3)) == 3


@pytest.mark.parametrize(
    ("decl", "value", "errno"),
    [
        (SrIov.INITIAL_VFS, 7, "EIO"),
        (SrIov.VF_STRIDE, 0, "EIO"),
        (SrIov.FIRST_VF_OFFSET, 0, "EIO"),
        (SrIov.FIRST_VF_OFFSET, 0x400, "ENOMEM"),
        (SrIov.FIRST_VF_OFFSET, 0xFFFF, "ENOMEM"),
    ],
)
def test_a_bad_capability_is_an_error(decl, value, errno):
    rig = build()
    file = rig.card.pfs[0].function[SrIov]
    file.poke(decl, 0, value)
    with pytest.raises(VirtfnError) as caught:
        rig.pcim.enable_vfs(rig.pf, 2)
    assert caught.value.errno_name == errno
    assert rig.card.pfs[0].sriov.count == 0


def test_a_silent_vf_is_an_error_and_nothing_stays_enabled():
    rig = build()
    rig.root.config_write(PORT, 0x1A, 1, 1)
    with pytest.raises(VirtfnError, match="does not answer") as caught:
        rig.pcim.enable_vfs(rig.pf, 1)
    assert caught.value.errno_name == "EIO"
    assert rig.card.pfs[0].sriov.count == 0


def test_only_pfs_can_be_cut():
    rig = build()
    for rid, errno in ((PORT, "ENOSYS"), (parse_rid("07:00.0"), "ENODEV")):
        with pytest.raises(VirtfnError) as caught:
            rig.pcim.enable_vfs(rid, 1)
        assert caught.value.errno_name == errno


@pytest.mark.parametrize("windows", [Windows(memory=(0xC0000000, 0xC0100000)), Windows(io=(0x1000, 0x1010))])
def test_address_space_can_run_out(windows):
    rig = build(scan=False)
    with pytest.raises(VirtfnError, match="address space") as caught:
        Pcim(rig.root, rig.clock, windows=windows).scan()
    assert caught.value.errno_name == "ENOMEM"


def test_two_cards_do_not_meet():
    rig = build(scan=False)
    other = PlainCard(build(scan=False).card.pfs)
    rig.root.attach(other)
    rig.pcim.scan()
    assert addresses(rig.pcim.pfs()) == ["01:00.0", "03:00.0"]
    rig.pcim.enable_function(parse_rid("03:00.0"))
    target = rig.root.decode(rig.pcim.functions[parse_rid("03:00.0")].bars[0].address)
    assert target is not None
    assert target.device is other
