"""A PF whole with the VFs that its guest makes: what the guest finds, what reaches the card, and what is lost when."""

import pytest

from unit.iovm.test_vconfig import AsBus
from unit.iovm.test_whole import Taker, free_pf
from unit.slotrig import build
from virtfn.hw.pci import Command, DevCtl, MsiX, Pcie, PmControl, SrIov
from virtfn.iovm.nested import NestedPf, NestedVf
from virtfn.iovm.walk import SrIovView, capability_of, offsets
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import VirtfnError

BAR0, BAR3 = 0xFD82_4000, 0xFD84_4000
ARI, VFE, MSE = 0x10, 0x01, 0x08
COMMAND = 4


class Nested:
    """The configuration spaces of a card with 8 VFs, as a guest has them: what a Linux does with them."""

    def __init__(self) -> None:
        self.rig = build()
        rig = self.rig
        self.pf = NestedPf(rig.root, rig.pcim.functions[rig.pf], rig.clock.now)
        self.vfs = [NestedVf(rig.root, vf, self.pf) for vf in rig.pcim.enable_vfs(rig.pf, 8)]
        rig.pcim.disable_vfs(rig.pf)
        self.view = SrIovView(AsBus(self.pf), rig.pf)
        self.inside = SrIovView(rig.root, rig.pf)

    def set(self, decl, value: int, index: int = 0) -> None:
        self.view.regs.set(decl, value, index)

    def enable(self, count: int) -> None:
        self.set(SrIov.CONTROL, ARI)
        for index, value in enumerate((BAR0, 0, 0, BAR3, 0)):
            self.set(SrIov.VF_BAR, value, index)
        self.set(SrIov.NUM_VFS, count)
        self.set(SrIov.CONTROL, ARI | VFE | MSE)
        self.rig.clock.sleep(S_PS)


@pytest.fixture
def nested() -> Nested:
    return Nested()


def test_the_guest_finds_sr_iov_and_ari_as_on_silicon(nested):
    found = offsets(AsBus(nested.pf), 0)
    assert [(number, at) for number, at, extended in found if extended] == [
        (1, 0x100),
        (3, 0x140),
        (0xE, 0x150),
        (0x10, 0x160),
    ]
    regs = nested.view.regs
    assert [regs.get(decl) for decl in (SrIov.INITIAL_VFS, SrIov.TOTAL_VFS, SrIov.VF_DEVICE_ID)] == [8, 8, 0x10CA]
    assert (regs.get(SrIov.SUPPORTED_PAGE_SIZES), regs.get(SrIov.SYSTEM_PAGE_SIZE)) == (0x553, 1)
    assert (regs.get(SrIov.FIRST_VF_OFFSET), regs.get(SrIov.VF_STRIDE)) == (0x180, 2)
    nested.set(SrIov.CONTROL, ARI)
    assert (regs.get(SrIov.FIRST_VF_OFFSET), regs.get(SrIov.VF_STRIDE)) == (0x80, 2)
    assert [vf.function for vf in nested.vfs] == [0x80, 0x82, 0x84, 0x86, 0x88, 0x8A, 0x8C, 0x8E]


def test_the_vf_bars_are_the_guests_to_size_and_place_and_the_card_keeps_its_own(nested):
    inside = nested.inside.regs
    before = [inside.get(SrIov.VF_BAR, index) for index in range(6)]
    for index in range(6):
        nested.set(SrIov.VF_BAR, 0xFFFFFFFF, index)
    regs = nested.view.regs
    sized = [regs.get(SrIov.VF_BAR, index) for index in range(6)]
    assert sized == [0xFFFFC004, 0xFFFFFFFF, 0, 0xFFFFC004, 0xFFFFFFFF, 0]
    nested.enable(3)
    assert [nested.pf.vf_bar(n, 0) for n in range(3)] == [BAR0, BAR0 + 0x4000, BAR0 + 0x8000]
    assert nested.pf.vf_bar(1, 3) == BAR3 + 0x4000
    assert [inside.get(SrIov.VF_BAR, index) for index in range(6)] == before


def test_numvfs_and_vf_enable_reach_the_card_whose_vfs_stay_where_pcim_found_them(nested):
    heard = []
    nested.pf.on_vfs.append(heard.append)
    rids = [vf.vf.rid for vf in nested.vfs]
    nested.enable(5)
    assert (nested.inside.count(), nested.pf.vfs, heard) == (5, 5, [5])
    assert [nested.inside.rid_of(n) for n in range(8)] == rids
    nested.set(SrIov.NUM_VFS, 7)
    assert nested.view.count() == 5, "locked while VFs are enabled"
    nested.set(SrIov.CONTROL, ARI)
    assert (nested.inside.count(), nested.pf.vfs, heard) == (0, 0, [5, 0])
    assert nested.view.control.ARI
    nested.enable(8)
    assert (nested.inside.count(), heard) == (8, [5, 0, 8])


def test_more_vfs_than_there_are_are_not_enabled(nested):
    nested.enable(9)
    assert (nested.view.control.VFE, nested.pf.vfs, nested.inside.count()) == (0, 0, 0)


def test_memory_answers_where_a_vf_is_and_vf_mse_says_so(nested):
    nested.enable(2)
    assert [nested.pf.vf_memory(n) for n in range(3)] == [True, True, False]
    nested.set(SrIov.CONTROL, ARI | VFE)
    assert not nested.pf.vf_memory(0)


def test_a_vf_that_is_not_enabled_has_no_vendor_and_takes_nothing(nested):
    vf = nested.vfs[1]
    assert (vf.read(0, 4), vf.read(8, 4), vf.read(0x70, 1)) == (0xFFFFFFFF, 0x02000001, 0x11)
    vf.write(0x72, 2, 0x8000)
    vf.write(COMMAND, 2, 4)
    vf.write(0xA8, 2, DevCtl.FLR.mask)
    assert (vf.read(0x72, 2), vf.read(COMMAND, 2)) == (2, 0)
    nested.enable(2)
    assert (vf.read(0, 4), vf.read(0x72, 2)) == (0xFFFFFFFF, 2), (
        "every VF's vendor ID is FFFF, also of one that is there"
    )
    vf.write(0x72, 2, 0x8000)
    vf.write(COMMAND, 2, 4)
    assert (vf.read(0x72, 2), vf.read(COMMAND, 2) & 4) == (0x8002, 4)
    nested.set(SrIov.CONTROL, ARI)
    assert (vf.read(0x72, 2), vf.read(COMMAND, 2)) == (2, 0)


def test_while_vfs_settle_they_are_as_new(nested):
    nested.set(SrIov.NUM_VFS, 1)
    nested.set(SrIov.CONTROL, ARI | VFE | MSE)
    vf = nested.vfs[0]
    vf.write(COMMAND, 2, 4)
    assert (vf.read(0, 4), vf.read(0x70, 4) & 0xFF, vf.read(COMMAND, 2)) == (0xFFFFFFFF, 0x11, Command.MEM.mask)


def test_memory_space_enable_reads_as_vf_mse_says_whatever_was_told(nested):
    nested.enable(1)
    vf = nested.vfs[0]
    assert vf.read(COMMAND, 2) == Command.MEM.mask
    assert not vf.memory_enabled, "nobody has told it yet"
    vf.write(COMMAND, 2, Command.MEM.mask)
    assert vf.memory_enabled
    vf.write(COMMAND, 2, 0)
    assert (vf.read(COMMAND, 2), vf.memory_enabled) == (Command.MEM.mask, False)


def test_a_reset_of_a_vf_leaves_what_is_the_pfs(nested):
    nested.enable(1)
    vf = nested.vfs[0]
    for at, value in ((0x10, BAR0), (0x1C, BAR3), (COMMAND, 6)):
        vf.write(at, 4, value)
    pcie = capability_of(AsBus(vf), 0, Pcie)
    assert pcie is not None
    pcie.set(Pcie.DEVCTL, DevCtl.FLR.mask)
    assert (vf.bar_address(0), vf.bar_address(3), vf.memory_enabled) == (BAR0, BAR3, True)
    assert not vf.bus_master
    vf.reset()
    assert (vf.bar_address(0), vf.memory_enabled) == (0, False)


@pytest.mark.parametrize("how", ["flr", "wake"])
def test_a_reset_of_the_pf_takes_the_vfs_away_in_both_capabilities(nested, how):
    nested.enable(4)
    heard = []
    nested.pf.on_vfs.append(heard.append)
    if how == "flr":
        pcie = capability_of(AsBus(nested.pf), 0, Pcie)
        assert pcie is not None
        pcie.set(Pcie.DEVCTL, pcie.get(Pcie.DEVCTL) | DevCtl.FLR.mask)
    else:
        nested.pf.write(0x44, 2, PmControl.of(STATE=3).value)
        nested.pf.write(0x44, 2, PmControl.of(STATE=0).value)
    assert (nested.pf.vfs, nested.view.control.value, nested.inside.count()) == (0, 0, 0)
    assert nested.pf.vf_bar(0, 0) == 0
    assert 0 in heard
    assert nested.view.regs.get(SrIov.FIRST_VF_OFFSET) == 0x180
    nested.enable(2)
    assert nested.inside.count() == 2


def test_accesses_that_no_bus_carries_do_nothing(nested):
    at = nested.view.regs.base + SrIov.NUM_VFS.offset
    nested.pf.write(at, 8, 5)
    nested.pf.write(at + 3, 2, 5)
    assert nested.pf.read(at, 2) == 0
    assert nested.pf.read(at + 1, 4) == 0xFFFFFFFF
    nested.pf.write(at, 2, 0x1_0003)
    assert nested.pf.read(at, 2) == 3


def test_hidden_capabilities_stay_hidden(nested):
    assert all(number != 5 for number, _, extended in offsets(AsBus(nested.pf), 0) if not extended), "MSI"
    assert capability_of(AsBus(nested.pf), 0, MsiX) is not None


class HostTaker(Taker):
    """A VM that takes a whole card with its VFs, or not."""

    def plug_card(self, device, pf, vfs):
        if not self.willing:
            raise VirtfnError("no", errno_name="ENODEV")
        self.has[pf.rid] = pf.config
        self.vfs = vfs

    def address_space(self, rid):
        return self, rid

    def populate(self, domain):
        self.domains = [*getattr(self, "domains", []), domain]


def test_a_card_is_given_with_all_its_functions_each_in_a_domain_and_comes_back_reset():
    with free_pf() as (iovm, found, nic, remapping):
        taker = HostTaker()
        iovm.assign_host(found, nic, taker)
        rids = [found.rid, *(vf.rid for vf in taker.vfs)]
        assert len(rids) == 9
        assert [domain.rids for domain in taker.domains] == [{rid} for rid in rids]
        assert nic.vfs == 0
        with pytest.raises(VirtfnError, match="in use"):
            iovm.assign_host(found, nic, HostTaker())
        guest = SrIovView(AsBus(taker.has[found.rid]), found.rid)
        guest.regs.set(SrIov.NUM_VFS, 3)
        guest.regs.set(SrIov.CONTROL, VFE | MSE)
        assert nic.vfs == 3
        iovm.take_back_whole(found.rid)
        assert (nic.vfs, taker.has, remapping.domains) == (0, {}, {})
        with pytest.raises(VirtfnError, match="no"):
            iovm.assign_host(found, nic, HostTaker(willing=False))
        assert not remapping.domains
        iovm.assign_whole(found, nic, Taker())
