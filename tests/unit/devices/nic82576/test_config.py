import pytest

from unit.slotrig import SILICON_MAC, build
from virtfn.devices.nic82576.config import Card, build_endpoint, virtual_function
from virtfn.hw.pci import SrIov
from virtfn.machine.clock import VirtualClock
from virtfn.machine.ports import Reset, VirtfnError


def test_a_single_port_card_has_one_function():
    pf = build_endpoint(Card(SILICON_MAC), VirtualClock().now).pfs[0].function
    assert pf.config_read(0x0E, 1) == 0
    assert pf.config_read(0x154, 2) == 0


def test_the_ports_of_a_dual_port_card_are_chained():
    first, second = (p.function for p in build_endpoint(Card(SILICON_MAC, ports=2), VirtualClock().now).pfs)
    assert [f.config_read(0x0E, 1) for f in (first, second)] == [0x80, 0x80]
    assert [f.config_read(0x154, 2) for f in (first, second)] == [0x0100, 0]
    assert [f.config_read(0x172, 1) for f in (first, second)] == [0, 1]


def test_the_serial_number_is_the_mac_address():
    pf = build_endpoint(Card(SILICON_MAC), VirtualClock().now).pfs[0].function
    raw = b"".join(pf.config_read(at, 4).to_bytes(4, "little") for at in (0x144, 0x148))
    assert raw.hex(" ") == "e0 46 2b ff ff 21 1b 00"


@pytest.mark.parametrize("total", [1, 4, 8])
def test_initial_vfs_is_total_vfs(total):
    pf = build_endpoint(Card(SILICON_MAC, total_vfs=total), VirtualClock().now).pfs[0]
    assert pf.function.config_read(0x16C, 4) == total | total << 16
    assert len(pf.vfs) == total


def test_a_card_without_vfs_has_no_sriov_capability():
    pf = build_endpoint(Card(SILICON_MAC, total_vfs=0), VirtualClock().now).pfs[0]
    assert SrIov not in pf.function
    assert pf.function.config_read(0x150, 4) == 0x0001000E
    assert build(total_vfs=0).pcim.pfs() == []


@pytest.mark.parametrize("wrong", [{"total_vfs": 9}, {"total_vfs": -1}, {"ports": 3}, {"flash_size": 3000}])
def test_impossible_cards_are_refused(wrong):
    with pytest.raises(VirtfnError):
        Card(SILICON_MAC, **wrong)


def test_a_vf_has_the_light_configuration_space():
    vf = virtual_function(Card(SILICON_MAC))
    assert vf.config_read(0, 4) == 0xFFFFFFFF
    assert vf.config_read(8, 4) == 0x02000001
    for at in range(0x10, 0x28, 4):
        vf.config_write(at, 4, 0xFFFFFFFF)
        assert vf.config_read(at, 4) == 0
    vf.config_write(0x04, 4, 0xFFFFFFFF)
    vf.config_write(0x3C, 4, 0xFFFFFFFF)
    assert vf.config_read(0x04, 4) == 0x00100004
    assert vf.config_read(0x3C, 4) == 0
    assert [vf.config_read(at, 4) for at in (0x70, 0x74, 0x78)] == [0x0002A011, 3, 0x2003]
    assert [vf.config_read(at, 4) for at in (0xA0, 0x100, 0x150)] == [0x00020010, 0x15010001, 0x0001000E]
    vf.config_write(0xA8, 2, 0x7FFF)
    assert vf.config_read(0xA8, 2) == 0


def test_a_vf_flr_touches_that_vf_only():
    vfs = build().card.pfs[0].vfs
    heard = []
    for n in (0, 1):
        vfs[n].on_reset.append(lambda kind, n=n: heard.append((n, kind)))
        vfs[n].config_write(0x04, 2, 4)
        vfs[n].config_write(0x72, 2, 0xC000)
    vfs[1].config_write(0xA8, 2, 0x8000)
    assert heard == [(1, Reset.FLR)]
    assert [v.bus_master for v in vfs[:2]] == [True, False]
    assert [v.config_read(0x72, 2) for v in vfs[:2]] == [0xC002, 2]


def test_power_data_is_known_for_d0_only():
    pf = build_endpoint(Card(SILICON_MAC), VirtualClock().now).pfs[0].function
    assert pf.config_read(0x47, 1) == 0x1A
    pf.config_write(0x44, 2, 3 << 9)
    assert pf.config_read(0x47, 1) == 0
