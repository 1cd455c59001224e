"""The 82576's mailboxes: ownership, what reading clears, doorbells both ways, and how a stuck one is freed."""

from __future__ import annotations

import pytest

from conformance.rig import PF, Rig
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import ICR, IVAR_MISC

REQ, ACK, VFU, PFU, PFSTS, PFACK, RSTI, RSTD = (1 << i for i in range(8))
STS, RVFU = 1, 0x10
VMMB = ICR.VMMB.mask


@pytest.fixture
def rig():
    rig = Rig(8)
    rig.use_msix(PF, *range(8))
    rig.set(Regs.CTRL_EXT, 1 << 14)
    rig.get(Regs.ICR)
    rig.set(Regs.VFLRE, 0xFF)
    for n in range(8):
        rig.get(VfRegs.V2PMAILBOX, vf=n)
    rig.take()
    yield rig
    rig.close()


def let_the_pf_hear(rig: Rig, causes: int = VMMB) -> None:
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=0, OTHER_VALID=1).value)
    rig.set(Regs.EIAC, 1)
    rig.set(Regs.EIMS, 1)
    rig.set(Regs.IMS, causes)


@pytest.mark.parametrize("n", range(8))
def test_the_words_are_one_memory_seen_from_both_sides_and_nobody_elses(rig, n):
    for i in range(16):
        rig.set(VfRegs.VMBMEM, 0xA000_0000 | n << 8 | i, i, vf=n)
    assert [rig.get(Regs.VMBMEM, 16 * n + i) for i in range(16)] == [0xA000_0000 | n << 8 | i for i in range(16)]
    rig.set(Regs.VMBMEM, 0x1234, 16 * n + 15)
    assert rig.get(VfRegs.VMBMEM, 15, vf=n) == 0x1234
    others = [rig.get(VfRegs.VMBMEM, i, vf=m) for m in range(8) if m != n for i in range(16)]
    assert not any(others)


def test_either_side_takes_the_buffer_only_while_the_other_does_not_have_it(rig):
    rig.set(VfRegs.V2PMAILBOX, VFU, vf=2)
    assert rig.get(VfRegs.V2PMAILBOX, vf=2) == VFU
    assert rig.get(Regs.P2VMAILBOX, 2) == 4, "the PF sees VFU"
    rig.set(Regs.P2VMAILBOX, PFU, 2)
    assert rig.get(Regs.P2VMAILBOX, 2) & PFU == 0
    rig.set(VfRegs.V2PMAILBOX, 0, vf=2)
    rig.set(Regs.P2VMAILBOX, PFU, 2)
    assert rig.get(Regs.P2VMAILBOX, 2) == PFU
    rig.set(VfRegs.V2PMAILBOX, VFU, vf=2)
    assert rig.get(VfRegs.V2PMAILBOX, vf=2) == PFU, "PFU is seen, VFU did not take"
    assert rig.get(Regs.P2VMAILBOX, 3) == 0, "the neighbour's mailbox is its own"


def test_a_command_without_the_ownership_bit_gives_the_buffer_back(rig):
    for command in (REQ, ACK, REQ | ACK):
        rig.set(VfRegs.V2PMAILBOX, VFU, vf=1)
        rig.set(VfRegs.V2PMAILBOX, command, vf=1)
        assert rig.get(VfRegs.V2PMAILBOX, vf=1) & VFU == 0
        assert rig.get(Regs.P2VMAILBOX, 1) == 0
    for command in (STS, ACK):
        rig.set(Regs.P2VMAILBOX, PFU, 1)
        rig.set(Regs.P2VMAILBOX, command, 1)
        assert rig.get(Regs.P2VMAILBOX, 1) == 0
    rig.set(Regs.P2VMAILBOX, PFU, 1)
    rig.set(Regs.P2VMAILBOX, STS | PFU, 1)
    assert rig.get(Regs.P2VMAILBOX, 1) == PFU, "kept if the write says so"


def test_what_the_pf_did_is_cleared_by_reading_it(rig):
    rig.set(Regs.P2VMAILBOX, ACK, 5)
    assert rig.get(VfRegs.V2PMAILBOX, vf=5) == PFACK
    assert rig.get(VfRegs.V2PMAILBOX, vf=5) == 0
    rig.set(Regs.P2VMAILBOX, STS, 5)
    rig.set(Regs.P2VMAILBOX, ACK, 5)
    assert rig.get(VfRegs.V2PMAILBOX, vf=4) == 0
    assert rig.get(VfRegs.V2PMAILBOX, vf=5) == PFSTS | PFACK
    assert rig.get(VfRegs.V2PMAILBOX, vf=5) == 0


def test_commands_read_back_as_nothing(rig):
    rig.set(VfRegs.V2PMAILBOX, REQ | ACK | VFU, vf=0)
    assert rig.get(VfRegs.V2PMAILBOX, vf=0) == VFU
    rig.set(Regs.P2VMAILBOX, RVFU | STS | ACK, 0)
    assert rig.get(Regs.P2VMAILBOX, 0) == 0


def test_the_vf_cannot_set_what_belongs_to_the_pf(rig):
    rig.set(VfRegs.V2PMAILBOX, 0xFFFFFFFF & ~(REQ | ACK | VFU), vf=0)
    assert rig.get(VfRegs.V2PMAILBOX, vf=0) == 0
    assert rig.get(Regs.P2VMAILBOX, 0) == 0


@pytest.mark.parametrize(("command", "bit"), [(REQ, 1 << 6), (ACK, 1 << 22), (REQ | ACK, 1 << 6 | 1 << 22)])
def test_the_vf_rings_the_pf(rig, command, bit):
    let_the_pf_hear(rig)
    rig.set(VfRegs.V2PMAILBOX, command, vf=6)
    assert rig.take() == [(PF, 0)]
    assert rig.get(Regs.MBVFICR) == bit
    assert rig.get(Regs.ICR) & VMMB
    rig.set(Regs.MBVFICR, bit)
    assert rig.get(Regs.MBVFICR) == 0


def test_each_cause_is_cleared_by_writing_it_and_no_other(rig):
    for n in range(8):
        rig.set(VfRegs.V2PMAILBOX, REQ | ACK, vf=n)
    assert rig.get(Regs.MBVFICR) == 0x00FF00FF
    rig.set(Regs.MBVFICR, 0x00010004)
    assert rig.get(Regs.MBVFICR) == 0x00FE00FB


def test_a_vf_masked_in_mbvfimr_is_noted_but_does_not_interrupt(rig):
    let_the_pf_hear(rig)
    rig.set(Regs.MBVFIMR, 0xFF & ~(1 << 3))
    rig.set(VfRegs.V2PMAILBOX, REQ, vf=3)
    assert rig.take() == []
    assert rig.get(Regs.ICR) & VMMB == 0
    assert rig.get(Regs.MBVFICR) == 1 << 3
    rig.set(VfRegs.V2PMAILBOX, REQ, vf=4)
    assert rig.take() == [(PF, 0)]


def test_rvfu_frees_a_mailbox_that_a_vf_holds_in_both_views_and_forgets_its_causes(rig):
    for n in (1, 2):
        rig.set(VfRegs.V2PMAILBOX, REQ | ACK | VFU, vf=n)
    rig.set(Regs.P2VMAILBOX, RVFU, 1)
    assert rig.get(VfRegs.V2PMAILBOX, vf=1) == 0
    assert rig.get(Regs.P2VMAILBOX, 1) == 0
    assert rig.get(Regs.MBVFICR) == 1 << 2 | 1 << 18
    assert rig.get(VfRegs.V2PMAILBOX, vf=2) == VFU


def test_rvfu_and_pfu_in_one_write_take_the_buffer_over(rig):
    rig.set(VfRegs.V2PMAILBOX, VFU, vf=0)
    rig.set(Regs.P2VMAILBOX, RVFU | PFU, 0)
    assert rig.get(Regs.P2VMAILBOX, 0) == PFU
    assert rig.get(VfRegs.V2PMAILBOX, vf=0) == PFU


@pytest.mark.parametrize("n", [0, 3, 7])
@pytest.mark.parametrize("vector", [0, 1, 2])
@pytest.mark.parametrize("command", [STS, ACK])
def test_the_pf_rings_a_vf_on_the_vector_that_vtivar_misc_names(rig, n, vector, command):
    rig.set(VfRegs.VTIVAR_MISC, 0x80 | vector, vf=n)
    rig.set(VfRegs.VTEIMS, 7, vf=n)
    rig.set(Regs.P2VMAILBOX, command, n)
    assert rig.take() == [(n, vector)]


def test_no_doorbell_where_vtivar_misc_has_no_valid_entry(rig):
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    for misc in (0x00, 0x02, 0x83):
        rig.set(VfRegs.VTIVAR_MISC, misc, vf=0)
        rig.set(Regs.P2VMAILBOX, STS, 0)
        assert rig.take() == []
        assert rig.get(VfRegs.V2PMAILBOX, vf=0) == PFSTS, "the message is there all the same"


def test_a_doorbell_rung_while_masked_is_heard_when_unmasked(rig):
    rig.set(VfRegs.VTIVAR_MISC, 0x82, vf=4)
    rig.set(Regs.P2VMAILBOX, STS, 4)
    assert rig.take() == []
    rig.set(VfRegs.VTEIMS, 4, vf=4)
    assert rig.take() == [(4, 2)]


def test_an_access_across_words_reaches_no_neighbours_mailbox(rig):
    """A VF's window is cut word by word: no access may begin in its last word and end in the next VF's first."""
    rig.set(Regs.VMBMEM, 0x55555555, 16)
    rid = rig.rid(0)
    for offset, size in ((0x83D, 4), (0x83E, 4), (0x83F, 2), (0x83C, 8), (0xC41, 4), (0xC40, 8), (0x838, 8)):
        rig.nic.bar_write(rid, 0, offset, size, (1 << 8 * size) - 1)
        rig.nic.bar_read(rid, 0, offset, size)
    assert rig.get(Regs.VMBMEM, 16) == 0x55555555
    assert rig.get(Regs.V2PMAILBOX, 1) == 0
    assert rig.get(Regs.MBVFICR) & ~0x10001 == 0
