"""A function in a guest's hands: what traps, what does not, and whose interrupts come."""

from __future__ import annotations

import pytest

from unit.rig import Rig, frame, send, take
from virtfn.hw.i82576 import VfRegs
from virtfn.hw.i82576.fields import STATUS
from virtfn.hw.pci import DevCtl, Pcie, Type0
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.walk import capability_of
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.assign import GuestBar

TABLE, CONTROL = 3, 12
VECTORS = 3


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


@pytest.fixture
def function(rig):
    return rig.guest(0).nics[0].function


def device_entry(rig, vector, n=0):
    return [rig.nic.bar_read(rig.vf(n).rid, TABLE, vector * 16 + at, 4) for at in (0, 4, 8, 12)]


# Exits.


def test_exits_are_counted_by_kind_and_ring_pages_have_none(rig, function):
    guest = rig.guest(0)
    before = guest.meter.read()
    function.bar(0).read(VfRegs.VTSTATUS.offset)
    function.bar(0).write(VfRegs.VTEIMC.offset, 0)
    function.config.read(0, 4)
    function.read(TABLE, 0)
    send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac))
    after = guest.meter.read()
    counted = {event: after[event] - before[event] for event in after if after[event] != before[event]}
    assert counted == {"exit_bar": 2, "exit_config": 1, "exit_msix": 1}
    rig.serve()
    assert len(take(rig.driver(1))) == 1


def test_the_mapped_page_is_the_register(rig, function):
    bar = function.bar(0)
    address = bar.mapped(VfRegs.TDT.offset)
    view_bytes(address, 4)[:] = (17, 0, 0, 0)
    assert bar.read(VfRegs.TDT.offset) == 17
    bar.write(VfRegs.TDT.offset, 0)
    assert bytes(view_bytes(address, 4)) == bytes(4)


def test_pages_with_side_effects_are_never_mapped(function):
    for decl in (VfRegs.VTCTRL, VfRegs.VTEIMS, VfRegs.VMBMEM, VfRegs.V2PMAILBOX, VfRegs.VTEITR):
        assert function.bar(0).mapped(decl.offset) is None
    assert function.bar(TABLE).mapped(0) is None
    assert function.bar(0).mapped(0x4000) is None
    assert function.bar(0).mapped(-4) is None


def test_exits_outlive_the_function(rig):
    guest = rig.guest(0)
    exits = guest.exits
    assert exits > 50
    rig.iovm.take_back(rig.vf(0))
    assert guest.exits > exits
    assert guest.exits == sum(count for event, count in guest.meter.read().items() if event.startswith("exit_"))


def test_there_is_no_negative_bar(function):
    with pytest.raises(VirtfnError):
        GuestBar(function, -1)


# The virtual MSI-X table.


def test_the_guest_sees_its_own_messages_and_the_device_the_hosts(rig, function):
    mine = [function.read(TABLE, 16 + at) for at in (0, 4, 8, 12)]
    assert mine == [0xFEE00000, 0, 0x21, 0]
    theirs = device_entry(rig, 1)
    assert theirs != mine
    assert theirs[3] == 0
    function.write(TABLE, 16 + 8, 0x1234)
    assert function.read(TABLE, 16 + 8) == 0x1234
    assert device_entry(rig, 1) == theirs


def test_masking_reaches_the_device_and_the_interrupt_waits(rig, function):
    driver, guest = rig.driver(0), rig.guest(0)
    function.write(TABLE, 16 + CONTROL, 1)
    assert device_entry(rig, 1)[3] == 1
    send(rig.driver(1), frame(driver.mac, rig.driver(1).mac))
    rig.nic.serve()
    assert not guest.interrupted
    assert function.read(TABLE, 0x2000) == 2  # the pending bit, from the device
    function.write(TABLE, 16 + CONTROL, 0)
    assert guest.interrupted


@pytest.mark.parametrize("word", range(4))
def test_only_what_the_specification_lets_change_changes(function, word):
    function.write(TABLE, 32 + 4 * word, 0xFFFFFFFF)
    assert function.read(TABLE, 32 + 4 * word) == (0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 1)[word]


def test_a_pair_of_words_is_one_access_and_narrow_writes_are_none(function):
    function.write(TABLE, 0, 0x1122334455667788, 8)
    assert function.read(TABLE, 0, 8) == 0x1122334455667788
    assert function.read(TABLE, 4) == 0x11223344
    assert function.read(TABLE, 5, 1) == 0x33
    assert function.read(TABLE, 6, 2) == 0x1122
    for size, at in ((1, 0), (2, 2), (4, 2), (8, 4)):
        function.write(TABLE, at, 0, size)
    assert function.read(TABLE, 0, 8) == 0x1122334455667788


def test_beyond_the_table_there_is_nothing(rig, function):
    for offset in (VECTORS * 16, 0x100, 0x1FFC, 0x2100, 0x3FFC):
        function.write(TABLE, offset, 0xFFFFFFFF)
        assert function.read(TABLE, offset) == 0
    assert function.read(TABLE, -4) == 0xFFFFFFFF
    assert rig.nic._tables[0].vectors == VECTORS


def test_a_message_of_another_requester_is_refused_and_counted(rig):
    host = rig.machine.host
    address, _, message, _ = device_entry(rig, 1, n=0)
    interrupts = rig.guest(0).interrupts
    host.msi(rig.vf(1).rid, address, message)
    host.msi(rig.nic.pf_rid, address, message)
    assert [f.reason for f in host.iommu.faults()] == [FaultReason.INTERRUPT_SOURCE] * 2
    assert rig.guest(0).interrupts == interrupts
    host.msi(rig.vf(0).rid, address, message)
    assert rig.guest(0).interrupts == interrupts + 1


def test_an_flr_by_the_guest_empties_its_table_and_it_can_start_anew(rig, function):
    driver = rig.driver(0)
    config = function.config
    pcie = capability_of(rig.machine.host.root, rig.vf(0).rid, Pcie)
    at = pcie.base + Pcie.DEVCTL.offset
    command, control = config.read(Type0.COMMAND.offset, 2), config.read(0x72, 2)
    config.write(at, 2, config.read(at, 2) | DevCtl.FLR.mask)
    assert [function.read(TABLE, offset) for offset in range(0, 48, 4)] == [0, 0, 0, 1] * 3
    assert config.read(Type0.COMMAND.offset, 2) == 0
    # As an operating system does after the reset of a function: restore, then recover.
    rig.clock.sleep(100_000_000_000)
    for vector in range(VECTORS):
        for offset, value in ((0, 0xFEE00000), (4, 0), (8, 0x20 + vector), (CONTROL, 0)):
            function.write(TABLE, vector * 16 + offset, value)
    config.write(0x72, 2, control)
    config.write(Type0.COMMAND.offset, 2, command)
    driver.recover()
    send(rig.driver(1), frame(driver.mac, rig.driver(1).mac))
    rig.serve()
    assert driver.netdev["polling"] == 1
    assert len(take(driver)) == 1


def test_released_functions_give_their_messages_back(rig, function):
    entries = rig.machine.host.interrupt_table.entries()
    function.release()
    assert len(rig.machine.host.interrupt_table.entries()) == len(entries) - VECTORS
    assert function.read(0, 8) == 0xFFFFFFFF
    function.write(0, 8, 0)
    function.config.write(4, 2, 0)
    assert function.config.read(4, 2) == 0xFFFF
    assert function.bar(0).mapped(VfRegs.TDT.offset) is None
    assert STATUS(rig.nic.bar_read(rig.vf(0).rid, 0, 8, 4)).LU
