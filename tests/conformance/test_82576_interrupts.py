"""The 82576's extended interrupts: causes, masks, routing and throttle, for the PF and its VFs."""

from __future__ import annotations

import pytest

from conformance.queues import DATA, TX, move_frames, open_queues, post
from conformance.rig import BROADCAST, PF, Rig, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs, vf_vector
from virtfn.hw.i82576.fields import GPIE
from virtfn.hw.i82576.rxtx import MRQC

MULTIPLE = GPIE.of(NSICR=1, MULTIPLE_MSIX=1, EIAME=1, PBA_SUPPORT=1).value


@pytest.fixture
def rig():
    rig = Rig(2, connected=True)
    rig.use_msix(PF, 0, 1)
    rig.get(Regs.ICR)
    rig.take()
    yield rig
    rig.close()


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
