"""The 82576's resets: what each forgets, what it leaves, and who hears of it."""

from __future__ import annotations

import pytest

from conformance.rig import PF, Rig
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, ICR, IVAR_MISC

RST, PHY_RST, PFRSTD = CTRL.RST.mask, CTRL.PHY_RST.mask, CTRL_EXT.PFRSTD.mask
RSTI, RSTD = 0x40, 0x80
ENABLE = 1 << 25
VMMB = ICR.VMMB.mask
SRIOV = range(0x160, 0x1A0, 4)


@pytest.fixture
def rig():
    rig = Rig(8)
    rig.use_msix(PF, *range(8))
    yield rig
    rig.close()


def sriov(rig: Rig) -> list[int]:
    return [rig.host.root.config_read(rig.nic.pf_rid, at, 4) for at in SRIOV]


def mailbox(rig: Rig, n: int) -> int:
    return rig.get(VfRegs.V2PMAILBOX, vf=n)


def set_a_queue_up(rig: Rig, n: int, queue: int = 0) -> None:
    for decl, value in (
        (VfRegs.RDBAL, 0x1000), (VfRegs.RDBAH, 1), (VfRegs.RDLEN, 0x400), (VfRegs.SRRCTL, 0x8A000202),
        (VfRegs.RXCTL, 0x8000), (VfRegs.RXDCTL, ENABLE | 0x10810), (VfRegs.RDT, 7),
        (VfRegs.TDBAL, 0x2000), (VfRegs.TDBAH, 1), (VfRegs.TDLEN, 0x400), (VfRegs.TXCTL, 0x2200),
        (VfRegs.TXDCTL, ENABLE), (VfRegs.TDWBAL, 0x3001), (VfRegs.TDWBAH, 2), (VfRegs.TDT, 0),
    ):  # fmt: skip
        rig.set(decl, value, queue, vf=n)


def set_interrupts_up(rig: Rig, n: int) -> None:
    for decl, value in (
        (VfRegs.VTEICS, 7), (VfRegs.VTEIMS, 7), (VfRegs.VTEIAC, 7), (VfRegs.VTEIAM, 7), (VfRegs.VTEITR, 0x1E8),
        (VfRegs.VTIVAR, 0x8081), (VfRegs.VTIVAR_MISC, 0x82),
    ):  # fmt: skip
        rig.set(decl, value, vf=n)
    rig.set(VfRegs.VTEICS, 7, vf=n)


def read_only_once(rig: Rig) -> dict[str, int]:
    """Read every register of the PF whose reading has no lasting effect on the others."""
    moving = {"FRTIMER", "SWSM", "STATUS"}
    return {decl.label(i): rig.get(decl, i) for decl, i, _ in Regs.elements() if decl.name not in moving}


# Power-on, and FLR of the PF.


def test_an_flr_of_the_pf_puts_everything_back():
    fresh, used = Rig(), Rig()
    used.use_msix(PF)
    for decl, i, _ in Regs.elements():
        if decl.name not in {"VTCTRL", "CTRL", "EECD", "CTRL_EXT", "EEWR", "MDIC", "EERD"}:
            used.set(decl, 0x5A5A5A5A, i)
    used.pcim.enable_vfs(used.nic.pf_rid, 4)
    used.flr(PF)
    assert sriov(used)[2] & 0x19 == 0, "VF Enable, VF MSE, ARI Capable Hierarchy"
    assert sriov(used)[4] & 0xFFFF == 0, "NumVFs"
    assert sriov(used)[8] == 1, "system page size"
    assert used.nic.vfs == 0
    used.config(PF, 0x04, 6)
    assert read_only_once(used) == read_only_once(fresh)
    fresh.close()
    used.close()


def test_the_reset_values_are_the_declared_ones():
    rig = Rig()
    derived = {"RAL[0]", "RAH[0]", "RXDCTL[0]", "TXDCTL[0]", "V2PMAILBOX"}
    rig.flr(PF)
    rig.config(PF, 0x04, 6)
    wrong = {}
    for decl, i, at in Regs.elements():
        if decl.label(i) in derived or decl.name in ("V2PMAILBOX", "STATUS", "FRTIMER"):
            continue
        value = rig.nic.bar_read(rig.nic.pf_rid, 0, at, 4)
        if value != decl.reset:
            wrong[decl.label(i)] = (value, decl.reset)
    assert wrong == {}
    assert rig.get(Regs.RXDCTL, 0) == 0x02010000, "queue 0 runs without being asked"
    assert rig.get(Regs.TXDCTL, 0) == 0x02000000
    assert (rig.get(Regs.RAL, 0), rig.get(Regs.RAH, 0)) == (0x2B211B00, 0x8000E046), "from the NVM"
    assert rig.get(Regs.TXCTL, 0) == 0x2A00
    assert rig.get(Regs.MBVFIMR) == rig.get(Regs.VFRE) == rig.get(Regs.VFTE) == 0xFF
    rig.close()


# CTRL.RST.


def test_ctrl_rst_clears_itself_and_the_port_but_not_the_sriov_capability(rig):
    before = sriov(rig)
    for decl, i, value in (
        (Regs.RCTL, 0, 0x8002), (Regs.MRQC, 0, 3), (Regs.VT_CTL, 0, 1 << 30), (Regs.VFRE, 0, 0), (Regs.VFTA, 5, 1),
        (Regs.IMS, 0, 4), (Regs.GPIE, 0, 0x80000011), (Regs.VLVF, 3, 0x80001005), (Regs.RDBAL, 9, 0x1000),
        (Regs.VTIVAR, 2, 0x8080), (Regs.EIMS, 0, 1),
    ):  # fmt: skip
        rig.set(decl, value, i)
    set_a_queue_up(rig, 3)
    rig.set(Regs.CTRL, rig.get(Regs.CTRL) | RST)
    assert rig.get(Regs.CTRL) & RST == 0
    for decl, i in (
        (Regs.RCTL, 0), (Regs.MRQC, 0), (Regs.VT_CTL, 0), (Regs.VFRE, 0), (Regs.VFTA, 5), (Regs.IMS, 0),
        (Regs.GPIE, 0), (Regs.VLVF, 3), (Regs.RDBAL, 9), (Regs.VTIVAR, 2), (Regs.EIMS, 0),
    ):  # fmt: skip
        assert rig.get(decl, i) == decl.reset, decl.name
    assert rig.get(VfRegs.RXDCTL, vf=3) & ENABLE == 0
    assert rig.get(VfRegs.TXDCTL, vf=3) & ENABLE == 0
    assert sriov(rig) == before
    assert rig.nic.vfs == 8
    assert rig.get(Regs.STATUS) >> 14 & 0x1F == 0x18, "NUM_VFS and IOV_MODE"


def test_ctrl_rst_leaves_packet_buffers_and_throttles(rig):
    rig.set(Regs.RXPBS, 0x30)
    rig.set(Regs.TXPBS, 0x10)
    rig.set(Regs.EITR, 0x1E8, 7)
    rig.set(Regs.CTRL, RST)
    assert (rig.get(Regs.RXPBS), rig.get(Regs.TXPBS), rig.get(Regs.EITR, 7)) == (0x30, 0x10, 0x1E8)


def test_every_vf_sees_the_reset_pending_until_the_pf_says_done(rig):
    rig.set(Regs.CTRL, RST)
    for n in range(8):
        assert [mailbox(rig, n), mailbox(rig, n)] == [RSTI, RSTI], "a level, not cleared by reading"
    rig.set(Regs.CTRL_EXT, PFRSTD)
    assert rig.get(Regs.CTRL_EXT) & PFRSTD == 0, "self-clearing"
    for n in range(8):
        assert [mailbox(rig, n), mailbox(rig, n)] == [RSTD, 0]


def test_a_vf_reset_without_a_reset_of_the_pf_shows_no_rstd(rig):
    rig.set(Regs.CTRL_EXT, PFRSTD)
    rig.set(VfRegs.VTCTRL, RST, vf=1)
    assert mailbox(rig, 1) == RSTD, "the PF's reset is still news"
    rig.set(VfRegs.VTCTRL, RST, vf=1)
    assert mailbox(rig, 1) == 0


def test_a_vf_that_resets_while_the_pf_is_in_reset_still_sees_it(rig):
    rig.set(Regs.CTRL, RST)
    rig.set(VfRegs.VTCTRL, RST, vf=0)
    rig.flr(1)
    assert [mailbox(rig, 0), mailbox(rig, 1)] == [RSTI, RSTI]


def test_status_keeps_the_phys_reset_until_0_is_written(rig):
    rig.set(Regs.STATUS, 0)
    assert rig.get(Regs.STATUS) & 0x400 == 0
    rig.set(Regs.CTRL, 1 | PHY_RST)
    assert rig.get(Regs.CTRL) & PHY_RST == 0
    assert rig.get(Regs.STATUS) & 0x400
    assert rig.get(Regs.EEMNGCTL) & 1 << 18, "configuration done, as software waits for"
    rig.set(Regs.STATUS, 0xFFFFFFFF)
    assert rig.get(Regs.STATUS) & 0x400
    rig.set(VfRegs.VTSTATUS, 0, vf=0)
    assert rig.get(Regs.STATUS) & 0x400, "a VF's VTSTATUS is read only, whatever the PF may do there"


# A VF's reset, its two ways.

WAYS = pytest.mark.parametrize("reset", ["VTCTRL", "FLR"])


def reset_vf(rig: Rig, n: int, way: str) -> None:
    if way == "FLR":
        rig.flr(n)
    else:
        rig.set(VfRegs.VTCTRL, RST, vf=n)
        assert rig.get(VfRegs.VTCTRL, vf=n) == 0, "reads 0"


@WAYS
def test_a_vf_reset_stops_its_queues_and_leaves_their_configuration(rig, reset):
    for queue in (0, 1):
        set_a_queue_up(rig, 5, queue)
    set_a_queue_up(rig, 4)
    reset_vf(rig, 5, reset)
    for queue in (0, 1):
        assert rig.get(VfRegs.RXDCTL, queue, vf=5) & ENABLE == 0
        assert rig.get(VfRegs.TXDCTL, queue, vf=5) & ENABLE == 0
        kept = [rig.get(d, queue, vf=5) for d in (VfRegs.SRRCTL, VfRegs.TDWBAL, VfRegs.TDWBAH)]
        assert kept == [0x8A000202, 0x3001, 2]
        assert [rig.get(d, queue, vf=5) for d in (VfRegs.RXCTL, VfRegs.TXCTL)] == [0x8000, 0x2200]
        assert [rig.get(d, queue, vf=5) for d in (VfRegs.RDBAL, VfRegs.RDLEN, VfRegs.TDBAL)] == [0x1000, 0x400, 0x2000]
    assert rig.get(VfRegs.RXDCTL, vf=4) & ENABLE
    assert rig.get(VfRegs.TXDCTL, vf=4) & ENABLE


@WAYS
def test_a_vf_reset_clears_its_interrupts_and_no_others(rig, reset):
    for n in (2, 3):
        set_interrupts_up(rig, n)
    reset_vf(rig, 2, reset)
    names = (VfRegs.VTEICR, VfRegs.VTEIMS, VfRegs.VTEIAC, VfRegs.VTEIAM, VfRegs.VTEITR, VfRegs.VTIVAR_MISC)
    assert [rig.get(d, vf=2) for d in names] == [0] * 6
    assert rig.get(VfRegs.VTIVAR, vf=2) == 0x0A0A0A0A
    assert [rig.get(d, vf=3) for d in names[1:]] == [0, 7, 7, 0x1E8, 0x82], "auto-masked as they fired"


@WAYS
def test_a_vf_reset_clears_its_pool_enables_and_tells_the_pf(rig, reset):
    rig.set(Regs.VFLRE, 0xFF)
    rig.set(Regs.VFRE, 0xFF)
    rig.set(Regs.VFTE, 0xFF)
    rig.get(Regs.ICR)
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=0, OTHER_VALID=1).value)
    rig.set(Regs.EIMS, 1)
    rig.set(Regs.IMS, VMMB)
    rig.take()
    reset_vf(rig, 6, reset)
    assert (rig.get(Regs.VFRE), rig.get(Regs.VFTE)) == (0xBF, 0xBF)
    assert rig.get(Regs.VFLRE) == 1 << 6
    assert (PF, 0) in rig.take()
    assert rig.get(Regs.ICR) & VMMB
    rig.set(Regs.VFLRE, 1 << 6)
    assert rig.get(Regs.VFLRE) == 0


@WAYS
def test_a_vf_reset_gives_its_mailbox_back(rig, reset):
    rig.set(Regs.CTRL_EXT, PFRSTD)
    mailbox(rig, 7)
    rig.set(VfRegs.V2PMAILBOX, 4, vf=7)
    rig.set(Regs.P2VMAILBOX, 3, 7)
    reset_vf(rig, 7, reset)
    assert mailbox(rig, 7) == 0
    assert rig.get(Regs.P2VMAILBOX, 7) == 0


def test_the_pf_can_reset_a_vf_through_its_own_view(rig):
    set_a_queue_up(rig, 1)
    rig.set(Regs.VTCTRL, RST, 1)
    assert rig.get(VfRegs.RXDCTL, vf=1) & ENABLE == 0
    assert rig.get(Regs.VFLRE) >> 1 & 1


def test_an_flr_masks_the_vfs_vectors_and_takes_its_bus_mastering(rig):
    rig.flr(0)
    assert rig.nic.bar_read(rig.rid(0), 3, 12, 4) == 1
    assert rig.host.root.config_read(rig.rid(0), 0x72, 2) & 0x8000 == 0
    assert rig.host.root.config_read(rig.rid(0), 0x04, 2) & 4 == 0


# VFs that go.


def test_nothing_of_a_vf_that_went_is_left_for_the_next(rig):
    set_a_queue_up(rig, 0)
    set_a_queue_up(rig, 0, 1)
    set_interrupts_up(rig, 0)
    rig.set(VfRegs.VMBMEM, 0x5EC2E7, 3, vf=0)
    rig.pcim.disable_vfs(rig.nic.pf_rid)
    assert rig.get(Regs.STATUS) >> 14 & 0x1F == 0
    rig.pcim.enable_vfs(rig.nic.pf_rid, 8)
    fresh = Rig(8)
    for decl, i, _ in VfRegs.elements():
        if decl.name not in ("VTSTATUS", "VTFRTIMER", "V2PMAILBOX"):
            assert rig.get(decl, i, vf=0) == fresh.get(decl, i, vf=0), decl.label(i)
    fresh.close()
