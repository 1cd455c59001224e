"""A PF given whole to a guest: what it finds, what is hidden from it, and how it comes back."""

from contextlib import contextmanager

import pytest

from unit.iovm.test_vconfig import AsBus
from unit.rig import Rig
from unit.slotrig import SILICON_MAC, build
from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.pci import DevCtl, Pcie
from virtfn.hw.types import Rid
from virtfn.iovm.iovm import Iovm
from virtfn.iovm.pcim import Pcim
from virtfn.iovm.walk import capability_of, offsets
from virtfn.iovm.whole import WholeConfig
from virtfn.machine.clock import VirtualClock
from virtfn.machine.configspace import size_bars
from virtfn.machine.memory import CHUNK
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.host import Host

SRIOV_AT = 0x160


@pytest.fixture
def rig():
    return build()


@pytest.fixture
def config(rig) -> WholeConfig:
    return WholeConfig(rig.root, rig.pcim.functions[rig.pf])


class Taker:
    """A VM that takes what it is given, or not."""

    name = "taker"

    def __init__(self, *, willing: bool = True) -> None:
        self.willing = willing
        self.has = {}

    def address_space(self, rid):
        return self

    def populate(self, domain):
        self.domain = domain

    def plug(self, device, rid, config, domain, *, mapped=True):
        if not self.willing:
            raise VirtfnError("no", errno_name="ENODEV")
        self.has[rid] = config

    def unplug(self, rid, *, surprise=False):
        if self.has.pop(rid, None) is None:
            raise VirtfnError("it does not have it", errno_name="ENODEV")


@contextmanager
def free_pf():
    """A machine with a card that nobody drives."""
    host = Host(VirtualClock(), CHUNK, slots=1)
    nic = Nic82576(host, host.iommu.iommu, Card(SILICON_MAC))
    host.root.attach(nic)
    pcim = Pcim(host.root, host.clock)
    pcim.scan()
    pcim.enable_function(nic.pf_rid)
    yield Iovm(pcim, host.remapping, host.clock), pcim.functions[nic.pf_rid], nic, host.remapping
    nic.close()
    host.close()


def test_the_guest_finds_a_card_without_sr_iov(rig, config):
    assert config.read(0, 4) == 0x10C98086
    assert offsets(AsBus(config), 0) == [
        (1, 0x40, False),
        (0x11, 0x70, False),
        (0x10, 0xA0, False),
        (1, 0x100, True),
        (3, 0x140, True),
    ]
    assert {bar: size for bar, (size, _) in size_bars(config).items()} == {0: 0x20000, 1: 0x400000, 3: 0x4000}


def test_what_is_hidden_reads_0_and_takes_no_write(rig, config):
    for at in (*range(0x50, 0x68), *range(SRIOV_AT, SRIOV_AT + 0x40)):
        assert config.read(at, 1) == 0
        config.write(at, 1, 0xFF)
    assert rig.root.config_read(rig.pf, SRIOV_AT + 8, 2) == 0, "SR-IOV Control"
    assert rig.root.config_read(rig.pf, SRIOV_AT + 0x10, 2) == 0, "NumVFs"


def test_links_are_whole_at_every_width(config):
    word = config.read(0x140, 4)
    assert word >> 20 == 0
    assert b"".join(config.read(0x140 + i, 1).to_bytes(1, "little") for i in range(4)) == word.to_bytes(4, "little")
    assert config.read(0x41, 1) == 0x70


def test_given_taken_and_given_again():
    with Rig() as rig:
        iovm, pf = rig.machine.iovm, rig.nic.pf_rid
        found = rig.machine.pcim.functions[pf]
        with pytest.raises(VirtfnError, match="in use") as caught:
            iovm.assign_whole(found, rig.nic, Taker())
        assert caught.value.errno_name == "EBUSY"


def test_a_pf_that_another_driver_has_attached_is_refused_and_leaves_no_domain():
    with free_pf() as (iovm, found, nic, remapping):
        remapping.pass_through(found.rid)
        with pytest.raises(VirtfnError, match="attached"):
            iovm.assign_whole(found, nic, Taker())
        assert not remapping.domains
        remapping.detach(found.rid)
        iovm.assign_whole(found, nic, Taker())


def test_a_whole_pf_that_is_gone_has_no_domain_any_more():
    with free_pf() as (iovm, found, nic, remapping):
        iovm.assign_whole(found, nic, Taker())
        nic.config_read = lambda rid, offset, size: (1 << 8 * size) - 1
        with pytest.raises(VirtfnError, match="cannot be reset"):
            iovm.take_back_whole(found.rid)
        assert not remapping.domains


def test_a_whole_pf_has_a_domain_and_is_reset_when_it_comes_back():
    with free_pf() as (iovm, found, nic, remapping):
        taker = Taker()
        iovm.assign_whole(found, nic, taker)
        assert taker.domain.rids == {found.rid}
        config = taker.has[found.rid]
        config.write(4, 2, 6)
        nic.bar_write(found.rid, 0, 0x100, 4, 2)
        iovm.take_back_whole(found.rid)
        assert not taker.has
        assert not remapping.domains
        assert nic.bar_read(found.rid, 0, 0x100, 4) == 0
        with pytest.raises(VirtfnError, match="assigned to nobody"):
            iovm.take_back_whole(found.rid)
        with pytest.raises(VirtfnError, match="no"):
            iovm.assign_whole(found, nic, Taker(willing=False))
        iovm.assign_whole(found, nic, taker)
        pcie = capability_of(iovm.pcim.bus, found.rid, Pcie)
        assert pcie is not None
        config = taker.has[found.rid]
        nic.bar_write(found.rid, 0, 0x100, 4, 2)
        config.write(pcie.base + Pcie.DEVCTL.offset, 2, DevCtl.of(FLR=1).value)
        assert nic.bar_read(Rid(found.rid), 0, 0x100, 4) in (0, 0xFFFFFFFF)
