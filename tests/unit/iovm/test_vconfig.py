import pytest

from unit.slotrig import build
from virtfn.hw.pci import Ari, MsiX, Pcie
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.iovm.walk import capability_of, offsets
from virtfn.machine.ports import VirtfnError


class AsBus:
    """One virtual configuration space in place of a bus."""

    def __init__(self, config: VirtualConfig) -> None:
        self.config = config

    def config_read(self, rid, offset, size):
        return self.config.read(offset, size)

    def config_write(self, rid, offset, size, value):
        self.config.write(offset, size, value)


@pytest.fixture
def rig():
    return build()


@pytest.fixture
def config(rig) -> VirtualConfig:
    return VirtualConfig(rig.root, rig.pcim.enable_vfs(rig.pf, 2)[1])


def vf_function(rig):
    return rig.card.pfs[0].vfs[1]


def test_the_guest_finds_an_ordinary_function(config):
    assert config.read(0, 4) == 0x10CA8086
    assert config.read(8, 4) == 0x02000001
    assert config.read(0x0E, 1) == 0
    assert config.read(0x2C, 4) == 0xA03C8086
    assert offsets(AsBus(config), 0) == [(0x11, 0x70, False), (0x10, 0xA0, False), (1, 0x100, True), (0xE, 0x150, True)]


def test_bars_are_the_guests_to_size_and_place(config):
    for at in (0x10, 0x14, 0x1C, 0x20, 0x18, 0x24):
        config.write(at, 4, 0xFFFFFFFF)
    assert [config.read(at, 4) for at in range(0x10, 0x28, 4)] == [0xFFFFC004, 0xFFFFFFFF, 0, 0xFFFFC004, 0xFFFFFFFF, 0]
    config.write(0x1C, 4, 0xFEB04000)
    config.write(0x20, 4, 1)
    assert config.bar_address(3) == 0x1_FEB0_4000
    assert config.bar_at(0x1_FEB0_4008) is None
    config.write(0x04, 2, 2)
    assert config.bar_at(0x1_FEB0_4008) == (3, 8)


def test_mem_is_virtual_and_bus_master_enable_is_real(rig, config):
    config.write(0x04, 2, 0x0407)
    assert config.read(0x04, 2) == 0x0406, "there is no I/O space to enable"
    assert config.memory_enabled
    assert config.bus_master
    assert vf_function(rig).config_read(0x04, 2) == 4
    assert not rig.card.pfs[0].vfs[0].bus_master
    config.write(0x04, 2, 2)
    assert not vf_function(rig).bus_master


def test_capabilities_are_the_vfs_own(rig, config):
    msix = capability_of(AsBus(config), 0, MsiX)
    assert msix is not None
    msix.set(MsiX.CONTROL, 0x8000)
    assert vf_function(rig).config_read(0x72, 2) == 0x8002
    assert capability_of(AsBus(config), 0, Ari) is not None


def test_a_guests_flr_resets_vf_and_header(rig, config):
    heard, changed = [], []
    vf_function(rig).on_reset.append(heard.append)
    config.on_change.append(lambda: changed.append(config.memory_enabled))
    config.write(0x10, 4, 0xFEB00000)
    config.write(0x04, 2, 6)
    config.write(0xA0 + Pcie.DEVCTL.offset, 2, 0x8000)
    assert len(heard) == 1
    assert (config.read(0x04, 2), config.bar_address(0), config.bus_master) == (0, 0, False)
    assert changed == [False, True, False]
    config.write(0xA0 + Pcie.DEVCTL.offset + 1, 1, 0x80)
    assert len(heard) == 2


def test_placing_from_outside(config):
    config.place(0, 0xFEB00000)
    assert config.bar_address(0) == 0xFEB00000
    with pytest.raises(VirtfnError, match="no BAR 1"):
        config.place(1, 0)
    config.reset()
    assert config.bar_address(0) == 0


def test_a_vf_that_is_gone_reads_ones(rig, config):
    rig.pcim.disable_vfs(rig.pf)
    assert [config.read(at, 4) for at in (0, 4, 0x10, 0x70)] == [0xFFFFFFFF] * 4
    config.write(0x04, 2, 6)
    assert not config.bus_master
