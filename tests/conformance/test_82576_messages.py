"""The 82576's other causes and its messages: ICR, the TCP timer, MSI-X masked and pending, MSI, one vector for all."""

from __future__ import annotations

import pytest

from conformance.queues import move_frames, open_queues, post
from conformance.rig import BROADCAST, MSI_ADDRESS, PF, Rig, ethernet
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import EICR, GPIE, ICR, IVAR_MISC, TCPTIMER

LSC, VMMB, INTA = ICR.LSC.mask, ICR.VMMB.mask, ICR.INTA.mask
MULTIPLE = GPIE.of(NSICR=1, MULTIPLE_MSIX=1, EIAME=1, PBA_SUPPORT=1).value


@pytest.fixture
def rig():
    rig = Rig(2, connected=True)
    rig.use_msix(PF, 0, 1)
    rig.get(Regs.ICR)
    rig.take()
    yield rig
    rig.close()


@pytest.fixture
def alone():
    """A PF without VFs."""
    rig = Rig(connected=True)
    rig.get(Regs.ICR)
    yield rig
    rig.close()


# Other causes.


def others_on(rig: Rig, vector: int = 2) -> None:
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=vector, OTHER_VALID=1).value)
    rig.set(Regs.EIAC, 1 << vector)
    rig.set(Regs.EIMS, 1 << vector)


def test_other_causes_go_to_the_vector_of_ivar_misc_if_ims_has_them(rig):
    others_on(rig)
    rig.set(Regs.ICS, LSC)
    assert rig.take() == []
    assert rig.get(Regs.ICR) == LSC
    rig.set(Regs.IMS, LSC)
    rig.set(Regs.ICS, LSC)
    assert rig.take() == [(PF, 2)]
    assert rig.get(Regs.ICR) == LSC | INTA
    assert rig.get(Regs.ICR) == 0


def test_a_cause_noted_while_masked_fires_when_ims_gets_it(rig):
    others_on(rig)
    rig.set(Regs.ICS, LSC)
    rig.set(Regs.IMS, VMMB)
    assert rig.take() == []
    rig.set(Regs.IMS, LSC)
    assert rig.take() == [(PF, 2)]


def test_a_cause_that_is_not_enabled_does_not_ring_for_one_that_is(rig):
    others_on(rig)
    rig.set(Regs.IMS, LSC)
    rig.set(Regs.ICS, LSC)
    assert rig.take() == [(PF, 2)]
    rig.set(Regs.ICS, VMMB)
    assert rig.take() == []
    assert rig.get(Regs.ICR) == LSC | VMMB | INTA


def test_icr_is_cleared_by_reading_only_when_it_may_be(rig):
    rig.set(Regs.GPIE, MULTIPLE & ~GPIE.NSICR.mask)
    rig.set(Regs.ICS, LSC)
    assert rig.get(Regs.ICR) == LSC, "IMS is 0"
    assert rig.get(Regs.ICR) == 0
    rig.set(Regs.IMS, VMMB)
    rig.set(Regs.ICS, LSC)
    assert [rig.get(Regs.ICR), rig.get(Regs.ICR)] == [LSC, LSC], "enabled causes exist, none is asserted"
    rig.set(Regs.ICS, VMMB)
    assert [rig.get(Regs.ICR), rig.get(Regs.ICR)] == [LSC | VMMB | INTA, 0]
    rig.set(Regs.ICS, LSC | VMMB)
    rig.set(Regs.ICR, LSC)
    assert rig.get(Regs.ICR) == VMMB | INTA, "a written 1 clears"


def test_the_old_offsets_are_the_same_registers(rig):
    rid = rig.rid(PF)
    rig.nic.bar_write(rid, 0, 0xD0, 4, LSC)
    assert rig.get(Regs.IMS) == LSC
    rig.nic.bar_write(rid, 0, 0xC8, 4, LSC)
    assert rig.nic.bar_read(rid, 0, 0xC0, 4) == LSC | INTA
    rig.nic.bar_write(rid, 0, 0xD8, 4, LSC)
    assert rig.nic.bar_read(rid, 0, 0xD0, 4) == 0


def test_iam_masks_on_reading_icr_if_ctrl_ext_says_so(rig):
    rig.set(Regs.IMS, LSC | VMMB)
    rig.set(Regs.IAM, LSC)
    rig.set(Regs.ICS, LSC)
    rig.get(Regs.ICR)
    assert rig.get(Regs.IMS) == LSC | VMMB
    rig.set(Regs.CTRL_EXT, 1 << 27)
    rig.set(Regs.ICS, LSC)
    rig.get(Regs.ICR)
    assert rig.get(Regs.IMS) == VMMB


def test_the_tcp_timer_has_a_vector_of_its_own(rig):
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(TCP_TIMER=3, TCP_TIMER_VALID=1).value)
    rig.set(Regs.EIAC, 8)
    rig.set(Regs.EIMS, 8)
    rig.set(Regs.TCPTIMER, TCPTIMER.of(DURATION=5, KICKSTART=1, ENABLE=1).value)
    assert rig.pass_time(4999) == []
    assert rig.pass_time(1) == [(PF, 3)]
    assert rig.pass_time(50_000) == []
    assert rig.get(Regs.ICR) & ICR.TCP_TIMER.mask
    rig.set(Regs.TCPTIMER, TCPTIMER.of(DURATION=2, KICKSTART=1, ENABLE=1, LOOP=1).value)
    assert [rig.pass_time(1000) for _ in range(4)] == [[], [(PF, 3)], [], [(PF, 3)]]
    rig.set(Regs.TCPTIMER, 0)
    assert rig.pass_time(10_000) == []
    rig.set(Regs.TCPTIMER, TCPTIMER.of(DURATION=200, ENABLE=1, FINISH=1).value)
    assert rig.pass_time(0) == [(PF, 3)]


def test_interrupts_are_counted(rig):
    rig.get(Regs.IAC)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 7, vf=0)
    assert rig.get(Regs.IAC) == 3
    assert rig.get(Regs.IAC) == 0


# MSI-X and MSI.


def test_a_masked_vector_becomes_pending_and_leaves_when_unmasked(rig):
    rid = rig.rid(0)
    rig.nic.bar_write(rid, 3, 16 * 1 + 12, 4, 1)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 2, vf=0)
    assert rig.take() == []
    assert rig.nic.bar_read(rid, 3, 0x2000, 4) == 2
    rig.nic.bar_write(rid, 3, 16 * 1 + 12, 4, 0)
    assert rig.take() == [(0, 1)]
    assert rig.nic.bar_read(rid, 3, 0x2000, 4) == 0


def test_a_masked_function_keeps_its_messages(rig):
    rig.config(0, 0x72, 0xC000)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 5, vf=0)
    assert rig.take() == []
    assert rig.nic.bar_read(rig.rid(0), 3, 0x2000, 8) == 5
    rig.config(0, 0x72, 0x8000)
    assert rig.take() == [(0, 0), (0, 2)]


def test_a_function_that_may_not_master_the_bus_sends_nothing(rig):
    rig.config(0, 0x04, 0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 1, vf=0)
    assert rig.take() == []
    rig.config(0, 0x04, 4)
    assert rig.take() == [(0, 0)]


@pytest.mark.parametrize(("n", "decl"), [(PF, Regs.PBACL), (0, VfRegs.VTPBACL)])
def test_pbacl_clears_pending_bits_of_its_own_function(rig, n, decl):
    for m in (PF, 0):
        for v in (0, 1):
            rig.nic.bar_write(rig.rid(m), 3, 16 * v + 12, 4, 1)
    rig.set(Regs.EIMS, 3)
    rig.set(Regs.EICS, 3)
    rig.set(VfRegs.VTEIMS, 3, vf=0)
    rig.set(VfRegs.VTEICS, 3, vf=0)
    rig.set(decl, 1, vf=n)
    assert {m: rig.nic.bar_read(rig.rid(m), 3, 0x2000, 4) for m in (PF, 0)} == {PF: 3, 0: 3} | {n: 2}


def test_a_vf_without_msix_interrupts_nobody(rig):
    rig.config(0, 0x72, 0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 7, vf=0)
    assert rig.take() == []


def use_msi(rig: Rig) -> None:
    for offset, value in ((0x54, MSI_ADDRESS), (0x58, 0), (0x5C, 77)):
        rig.config(PF, offset, value, 4)
    rig.config(PF, 0x52, 1)


def test_msi_carries_other_causes_enabled_in_ims_alone(alone):
    """As Linux's driver has it without MSI-X: it writes IMS, and never EIMS."""
    use_msi(alone)
    alone.set(Regs.ICS, LSC)
    assert alone.take() == []
    alone.set(Regs.IMS, LSC)
    assert alone.take() == [(PF, 77)]
    assert alone.get(Regs.EICR) == EICR.OTHER.mask
    assert alone.get(Regs.ICR) == LSC | INTA
    assert alone.get(Regs.EICR) == 0, "reading ICR clears EICR's bit for it"
    alone.set(Regs.ICS, LSC)
    assert alone.take() == [(PF, 77)]


def test_msi_carries_queues_by_icr_and_by_eicr(alone):
    base = alone.domain(1, PF)
    open_queues(alone, base, 1, None)
    move_frames(alone, 0)
    use_msi(alone)
    alone.receive(ethernet(BROADCAST))
    assert alone.take() == []
    assert alone.get(Regs.ICR) & ICR.RXDW.mask
    alone.set(Regs.IMS, ICR.RXDW.mask)
    alone.receive(ethernet(BROADCAST))
    assert alone.take() == [(PF, 77)]
    assert alone.get(Regs.ICR) == ICR.RXDW.mask | INTA
    post(alone, base, None)
    alone.nic.serve()
    assert alone.take() == []
    assert alone.get(Regs.ICR) & ICR.TXDW.mask
    alone.set(Regs.IMC, 0xFFFFFFFF)
    alone.set(Regs.IVAR, 0x80 | 4, 0)
    alone.set(Regs.EIMS, 1 << 4)
    alone.receive(ethernet(BROADCAST))
    assert alone.take() == [(PF, 77)]
    assert alone.get(Regs.EICR) == 1 << 4


def test_a_masked_msi_becomes_pending(alone):
    use_msi(alone)
    alone.config(PF, 0x60, 1, 4)
    alone.set(Regs.IMS, LSC)
    alone.set(Regs.ICS, LSC)
    assert alone.take() == []
    assert alone.host.root.config_read(alone.rid(PF), 0x64, 4) == 1
    alone.config(PF, 0x60, 0, 4)
    assert alone.take() == [(PF, 77)]
    assert alone.host.root.config_read(alone.rid(PF), 0x64, 4) == 0


def test_msix_with_one_vector_is_used_like_msi(alone):
    """GPIE.MULTIPLE_MSIX clear, MSI-X enabled: everything goes to vector 0, as in the driver's interrupt self-test."""
    alone.use_msix(PF)
    alone.set(Regs.GPIE, 0)
    alone.set(Regs.IMS, LSC)
    alone.set(Regs.ICS, LSC)
    assert alone.take() == [(PF, 0)]


@pytest.mark.parametrize("gpie", [0, MULTIPLE])
def test_the_drivers_interrupt_self_test(alone, gpie):
    """Every cause of the mask, one by one: not seen while masked, seen when enabled, none of the others."""
    alone.use_msix(PF)
    alone.set(Regs.GPIE, gpie)
    alone.set(Regs.IVAR_MISC, 0x8000)
    alone.set(Regs.EIMS, 1)
    seen = [0]

    def handler() -> int:
        seen[0] = 0
        for _ in alone.take():
            seen[0] |= alone.get(Regs.ICR)
        return seen[0]

    causes = 0x77D4FBFD
    for bit in (1 << i for i in range(31) if causes >> i & 1):
        for mask, force, expected in ((Regs.IMC, bit, 0), (Regs.IMS, bit, bit), (Regs.IMC, ~bit & 0x7FFFFFFF, 0)):
            alone.set(Regs.ICR, 0xFFFFFFFF)
            alone.set(mask, force)
            alone.set(Regs.ICS, force)
            assert handler() & force == expected
        alone.set(Regs.IMC, 0xFFFFFFFF)
