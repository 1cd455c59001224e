"""The 82576's interrupts: which cause becomes which message, when, and what is left of it; for the PF and its VFs."""

from __future__ import annotations

import pytest

from conformance.rig import BROADCAST, MSI_ADDRESS, PF, Rig, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs, vf_vector
from virtfn.hw.i82576.fields import EICR, GPIE, ICR, IVAR_MISC, TCPTIMER
from virtfn.hw.i82576.rxtx import MRQC, RCTL, TCTL

LSC, VMMB, INTA = ICR.LSC.mask, ICR.VMMB.mask, ICR.INTA.mask
MULTIPLE = GPIE.of(NSICR=1, MULTIPLE_MSIX=1, EIAME=1, PBA_SUPPORT=1).value
ENABLE = 1 << 25
RX, TX, DATA, BUFFER = 0x1000, 0x2000, 0x10000, 0x20000


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


def open_queues(rig: Rig, base: int, domain: int, n: int | None, queue: int = 0) -> None:
    """Give a function's queue rings of 8 and 2 KiB buffers, in 2 MiB of memory of its own."""
    regs = Regs if n is None else VfRegs
    for i in range(8):
        rig.words(base + RX + 16 * i, BUFFER + 2048 * i, 0)
    for decl, value in (
        (regs.RDBAL, RX), (regs.RDLEN, 128), (regs.SRRCTL, 0x82000002), (regs.RXDCTL, ENABLE), (regs.RDT, 7),
        (regs.TDBAL, TX), (regs.TDLEN, 128), (regs.TXDCTL, ENABLE),
    ):  # fmt: skip
        rig.set(decl, value, queue, vf=n)


def post(rig: Rig, base: int, n: int | None, queue: int = 0, size: int = 60) -> None:
    """Send one broadcast."""
    regs = Regs if n is None else VfRegs
    tail = rig.get(regs.TDT, queue, vf=n)
    rig.store(base + DATA, ethernet(BROADCAST, size))
    rig.words(base + TX + 16 * tail, *data_descriptor(DATA, size))
    rig.set(regs.TDT, (tail + 1) % 8, queue, vf=n)


def move_frames(rig: Rig, mode: int = 3) -> None:
    """Let frames be received and sent."""
    rig.link_up()
    rig.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1).value)
    rig.set(Regs.TCTL, TCTL.of(EN=1).value)
    rig.set(Regs.MRQC, MRQC.of(MODE=mode).value)
    for n in range(8):
        rig.set(Regs.VMOLR, 0x8900_0000 | 1522 | 1 << 16, n)
    rig.set(Regs.VFRE, 0xFF)
    rig.set(Regs.VFTE, 0xFF)
    rig.set(Regs.VT_CTL, 1 << 30)
    rig.nic.port.settle()
    rig.get(Regs.ICR)
    rig.take()


# Extended causes.


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("vector", [0, 1, 2])
def test_a_vfs_vector_is_its_own_and_internal_bit_22_3n(rig, n, vector):
    rig.set(VfRegs.VTEIMS, 1 << vector, vf=n)
    rig.set(VfRegs.VTEICS, 1 << vector, vf=n)
    assert rig.take() == [(n, vector)]
    assert int(rig.nic.port.nic["port"]["eicr"]) == 1 << 22 - 3 * n + vector


def test_a_cause_is_read_once_and_by_its_owner(rig):
    rig.set(VfRegs.VTEICS, 5, vf=1)
    assert rig.get(Regs.EICR) == 0, "the PF does not see a VF's causes"
    assert rig.get(VfRegs.VTEICR, vf=0) == 0
    assert rig.get(VfRegs.VTEICR, vf=1) == 5
    assert rig.get(VfRegs.VTEICR, vf=1) == 0


def test_writing_ones_clears_causes(rig):
    rig.set(VfRegs.VTEICS, 7, vf=0)
    rig.set(VfRegs.VTEICR, 2, vf=0)
    assert rig.get(VfRegs.VTEICR, vf=0) == 5
    rig.set(Regs.EICS, 0b1011)
    rig.set(Regs.EICR, 0b0010)
    assert rig.get(Regs.EICR) == 0b1001


def test_masks_are_set_and_cleared_bit_by_bit(rig):
    rig.set(VfRegs.VTEIMS, 5, vf=0)
    rig.set(VfRegs.VTEIMS, 2, vf=0)
    assert rig.get(VfRegs.VTEIMS, vf=0) == 7
    rig.set(VfRegs.VTEIMC, 4, vf=0)
    assert rig.get(VfRegs.VTEIMS, vf=0) == 3
    assert rig.get(VfRegs.VTEIMC, vf=0) == 0
    assert rig.get(VfRegs.VTEIMS, vf=1) == 0
    rig.set(VfRegs.VTEIMC, 0xFFFFFFFF, vf=0)
    assert rig.get(VfRegs.VTEIMS, vf=0) == 0


def test_a_byte_write_of_the_mask_unmasks_nothing_else(rig):
    rig.set(Regs.EIMS, 0x3)
    rig.set(Regs.EIMC, 0x3)
    rig.nic.bar_write(rig.rid(PF), 0, Regs.EIMS.offset + 1, 1, 0x02)
    assert rig.get(Regs.EIMS) == 0x200


def test_the_pf_owns_the_vectors_of_vfs_that_are_not_enabled(rig):
    own = (1 << 25) - 1 & ~(7 << vf_vector(0)) & ~(7 << vf_vector(1))
    for decl, read in ((Regs.EICS, Regs.EICR), (Regs.EIMS, Regs.EIMS), (Regs.EIAC, Regs.EIAC), (Regs.EIAM, Regs.EIAM)):
        rig.set(decl, 0xFFFFFFFF)
        assert rig.get(read) == own, decl.name
    assert [rig.get(d, vf=n) for n in (0, 1) for d in (VfRegs.VTEIMS, VfRegs.VTEIAC, VfRegs.VTEIAM)] == [0] * 6


def test_with_seven_vfs_the_pf_keeps_bits_3_to_0():
    rig = Rig(7)
    rig.use_msix(PF)
    rig.set(Regs.EIMS, 0xFFFFFFFF)
    assert rig.get(Regs.EIMS) == 0xF
    rig.close()


def test_a_masked_cause_is_kept_and_fires_when_unmasked(rig):
    rig.set(VfRegs.VTEICS, 2, vf=0)
    assert rig.take() == []
    rig.set(VfRegs.VTEIMS, 1, vf=0)
    assert rig.take() == []
    rig.set(VfRegs.VTEIMS, 2, vf=0)
    assert rig.take() == [(0, 1)]
    rig.set(Regs.EICS, 1)
    assert rig.take() == []
    rig.set(Regs.EIMS, 1)
    assert rig.take() == [(PF, 0)]


def test_auto_clear_forgets_the_cause_as_its_message_leaves(rig):
    rig.set(VfRegs.VTEIAC, 2, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 7, vf=0)
    assert sorted(rig.take()) == [(0, 0), (0, 1), (0, 2)]
    assert rig.get(VfRegs.VTEICR, vf=0) == 5
    rig.set(VfRegs.VTEIAC, 0, vf=0)
    assert rig.get(VfRegs.VTEIAC, vf=0) == 0, "written, not only added to"


def test_auto_mask_masks_the_vector_that_fired_and_no_other(rig):
    rig.set(VfRegs.VTEIAM, 3, vf=0)
    rig.set(VfRegs.VTEIAC, 7, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 2, vf=0)
    assert rig.get(VfRegs.VTEIMS, vf=0) == 5
    rig.set(VfRegs.VTEICS, 4, vf=0)
    assert rig.get(VfRegs.VTEIMS, vf=0) == 5
    rig.take()
    rig.set(VfRegs.VTEICS, 2, vf=0)
    assert rig.take() == []
    rig.set(VfRegs.VTEIMS, 2, vf=0)
    assert rig.take() == [(0, 1)]


def test_without_eiame_it_is_the_acknowledge_that_masks(rig):
    rig.set(Regs.GPIE, MULTIPLE & ~GPIE.EIAME.mask)
    rig.set(VfRegs.VTEIAM, 1, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 1, vf=0)
    assert rig.take() == [(0, 0)]
    assert rig.get(VfRegs.VTEIMS, vf=0) == 7
    assert rig.get(VfRegs.VTEICR, vf=0) == 1
    assert rig.get(VfRegs.VTEIMS, vf=0) == 6
    rig.set(Regs.EIAM, 1)
    rig.set(Regs.EIMS, 3)
    rig.set(Regs.EICR, 1)
    assert rig.get(Regs.EIMS) == 2


# Routing.


@pytest.mark.parametrize(("byte", "queue", "receive"), [(0, 0, True), (1, 0, False), (2, 1, True), (3, 1, False)])
def test_vtivar_routes_each_of_a_vfs_four_queues(rig, byte, queue, receive):
    base = rig.domain(1, 0)
    rig.domain(2, 1, PF)
    open_queues(rig, base, 1, 0, queue)
    move_frames(rig, 5 if queue else 3)
    rig.set(VfRegs.VTIVAR, (0x80 | 2) << 8 * byte, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    if receive:
        frame = ethernet(BROADCAST, 60)
        if queue:
            # RSS sends every hash to virtual queue 1.
            rig.set(Regs.MRQC, MRQC.of(MODE=5, RSS_IPV4=1).value)
            for i in range(32):
                rig.set(Regs.RETA, 0x01010101, i)
            rig.set(Regs.VMOLR, rig.get(Regs.VMOLR, 0) | 1 << 17, 0)
            ip = bytes.fromhex("4500001400000000400066e70a0000010a000002")
            frame = (BROADCAST + b"\x02\0\0\0\0\x99" + b"\x08\0" + ip).ljust(60, b"\0")
        rig.receive(frame)
    else:
        post(rig, base, 0, queue)
        rig.nic.serve()
    assert rig.take() == [(0, 2)]


def test_an_invalid_vtivar_entry_routes_nowhere_and_a_new_entry_replaces_the_old(rig):
    base = rig.domain(1, 0)
    rig.domain(2, 1, PF)
    open_queues(rig, base, 1, 0)
    move_frames(rig)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTIVAR, 0x00000001, vf=0)
    rig.receive(ethernet(BROADCAST))
    assert rig.take() == []
    for vector in (2, 0, 1):
        rig.set(VfRegs.VTIVAR, 0x80 | vector, vf=0)
        rig.receive(ethernet(BROADCAST))
        assert rig.take() == [(0, vector)]


@pytest.mark.parametrize(("byte", "queue", "receive"), [(0, 5, True), (1, 5, False), (2, 13, True), (3, 13, False)])
def test_ivar_routes_the_pfs_queues_n_and_n_plus_8(rig, byte, queue, receive):
    base = rig.domain(1, PF)
    rig.domain(2, 0, 1)
    open_queues(rig, base, 1, None, queue)
    move_frames(rig, 5 if queue > 7 else 3)
    rig.set(Regs.IVAR, (0x80 | 3) << 8 * byte, 5)
    rig.set(Regs.EIMS, 0xF)
    if receive and queue > 7:
        rig.set(Regs.MRQC, MRQC.of(MODE=5, RSS_IPV4=1).value)
        for i in range(32):
            rig.set(Regs.RETA, 0x01010101, i)
        rig.set(Regs.VMOLR, rig.get(Regs.VMOLR, 5) | 1 << 17, 5)
        ip = bytes.fromhex("4500001400000000400066e70a0000010a000002")
        rig.receive((BROADCAST + b"\x02\0\0\0\0\x99" + b"\x08\0" + ip).ljust(60, b"\0"))
    elif receive:
        rig.receive(ethernet(BROADCAST))
    else:
        post(rig, base, None, queue)
        rig.nic.serve()
    assert rig.take() == [(PF, 3)]


def test_a_frame_interrupts_the_receiver_and_the_sender_only_if_it_asked(rig):
    base = rig.domain(1, 0)
    rig.domain(2, 1, PF)
    open_queues(rig, base, 1, 0)
    move_frames(rig)
    rig.set(VfRegs.VTIVAR, 0x8180, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.store(base + DATA, ethernet(BROADCAST))
    address, word = data_descriptor(DATA, 60)
    rig.words(base + TX, address, word & ~(1 << 27))
    rig.set(VfRegs.TDT, 1, vf=0)
    rig.nic.serve()
    assert rig.take() == []
    assert rig.get(VfRegs.TDH, vf=0) == 1


# Throttle.


def test_eitr_keeps_messages_of_a_vector_apart(rig):
    rig.set(VfRegs.VTEITR, 100 << 2, 1, vf=0)
    rig.set(VfRegs.VTEIAC, 7, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEICS, 2, vf=0)
    assert rig.take() == [(0, 1)], "the first leaves at once"
    rig.set(VfRegs.VTEICS, 2, vf=0)
    assert rig.take() == []
    assert rig.pass_time(99) == []
    assert rig.pass_time(1) == [(0, 1)], "100 us later"
    assert rig.pass_time(1000) == [], "and once only"
    rig.set(VfRegs.VTEICS, 1, vf=0)
    rig.set(VfRegs.VTEICS, 1, vf=0)
    assert rig.take() == [(0, 0), (0, 0)], "another vector's throttle is its own"


def test_eitr_of_a_vf_is_the_pfs_eitr_of_its_internal_vector(rig):
    rig.set(VfRegs.VTEITR, 0x1E8, 2, vf=1)
    assert rig.get(Regs.EITR, 22 - 3 + 2) == 0x1E8


def test_writing_eitr_starts_counting_anew_unless_told_not_to(rig):
    rig.set(VfRegs.VTEIAC, 7, vf=0)
    rig.set(VfRegs.VTEIMS, 7, vf=0)
    rig.set(VfRegs.VTEITR, 1000 << 2, 0, vf=0)
    rig.set(VfRegs.VTEICS, 1, vf=0)
    assert rig.take() == [(0, 0)]
    rig.set(VfRegs.VTEITR, 1000 << 2 | 1 << 31, 0, vf=0)
    rig.set(VfRegs.VTEICS, 1, vf=0)
    assert rig.take() == [], "CNT_INGR leaves the counter running"
    assert rig.get(VfRegs.VTEITR, 0, vf=0) == 1000 << 2
    rig.set(VfRegs.VTEITR, 1000 << 2, 0, vf=0)
    assert rig.pass_time(0) == [(0, 0)]


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
