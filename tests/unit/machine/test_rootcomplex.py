import pytest

from unit.slotrig import PlainCard, build
from virtfn.hw.pci import Type1
from virtfn.hw.types import Rid, make_rid, parse_rid
from virtfn.machine.ports import Reset, VirtfnError
from virtfn.machine.rootcomplex import RootComplex

PORT = make_rid(0, 1, 0)
ONES = 0xFFFFFFFF


def test_nothing_below_a_port_answers_before_buses_are_numbered():
    rig = build(scan=False)
    assert rig.root.config_read(PORT, 0, 4) == 0x34208086
    assert all(rig.root.config_read(Rid(bus << 8), 0, 4) == ONES for bus in range(1, 256))


def test_routing_follows_the_programmed_bus_numbers():
    rig = build(scan=False)
    rig.root.config_write(PORT, 0x18, 4, 0x00070500)
    assert rig.root.config_read(make_rid(5, 0, 0), 0, 4) == 0x10C98086
    assert rig.root.config_read(make_rid(6, 0, 0), 0, 4) == ONES
    assert rig.root.config_read(make_rid(8, 0, 0), 0, 4) == ONES


def test_a_card_captures_its_bus_from_type_0_writes_only():
    rig = build(scan=False)
    rig.root.config_write(PORT, 0x18, 4, 0x00070500)
    rig.root.config_read(make_rid(5, 0, 0), 0, 4)
    assert rig.card.bus == 0
    rig.root.config_write(make_rid(6, 0, 0), 4, 2, 0)
    assert rig.card.bus == 0
    rig.root.config_write(make_rid(5, 0, 0), 4, 2, 0)
    assert rig.card.bus == 5


@pytest.mark.parametrize("ari", [False, True])
def test_without_ari_forwarding_only_device_0_is_reached(ari):
    rig = build(ari=ari)
    rig.pcim.enable_vfs(rig.pf, 1)
    where = parse_rid("01:10.0") if ari else parse_rid("02:10.0")
    assert rig.card.rids() == [rig.pf, where]
    assert rig.root.config_read(where, 8, 4) == 0x02000001
    assert rig.root.ports[0].ari_forwarding is ari
    rig.root.config_write(PORT, 0x40 + 0x28, 2, 0)
    assert rig.root.config_read(where, 8, 4) == (ONES if ari else 0x02000001)


def test_memory_goes_to_the_bar_that_claims_it():
    rig = build()
    bar0 = rig.pcim.functions[rig.pf].bars[0]
    assert rig.root.mmio_read(bar0.address, 4) == ONES
    rig.pcim.enable_function(rig.pf)
    rig.root.mmio_write(bar0.address + 0x10, 4, 7)
    assert rig.card.written == {(rig.pf, 0, 0x10): 7}
    assert rig.root.mmio_read(bar0.address + 0x10, 4) == 7
    rig.root.config_write(PORT, Type1.COMMAND.offset, 2, 0)
    assert rig.root.mmio_read(bar0.address + 0x10, 4) == ONES, "the port no longer forwards"
    rig.root.config_write(PORT, Type1.COMMAND.offset, 2, 2)
    assert rig.root.mmio_read(bar0.address + 0x10, 4) == 7
    rig.root.ports[0].reset(Reset.POWER_ON)
    assert rig.root.mmio_read(bar0.address + 0x10, 4) == ONES


def test_io_space_is_its_own():
    rig = build()
    rig.pcim.enable_function(rig.pf)
    io = next(bar for bar in rig.pcim.functions[rig.pf].bars if bar.io)
    rig.root.io_write(io.address, 4, 9)
    assert rig.card.written == {(rig.pf, 2, 0): 9}
    assert rig.root.io_read(io.address, 4) == 9
    assert rig.root.io_read(io.address + 32, 4) == ONES
    assert rig.root.mmio_read(io.address, 4) == ONES


def test_vf_memory_needs_vf_enable_and_vf_mse_not_command():
    rig = build()
    vf = rig.pcim.enable_vfs(rig.pf, 2)[1]
    target = rig.root.decode(vf.bars[1].address + 8)
    assert target is not None
    assert (target.device, target.rid, target.bar, target.offset) == (rig.card, vf.rid, 3, 8)
    assert rig.root.decode(vf.bars[0].address + 0x4000) is None, "a third VF's slice, which is not there"
    rig.root.config_write(rig.pf, 0x168, 2, 1)
    assert rig.root.decode(vf.bars[1].address + 8) is None


def test_slots_are_taken_and_freed():
    root, card = RootComplex(1), PlainCard([])
    assert root.attach(card) == 0
    with pytest.raises(VirtfnError, match="no free slot"):
        root.attach(card)
    with pytest.raises(VirtfnError, match="taken"):
        root.attach(card, 0)
    root.detach(0)
    assert root.attach(card, 0) == 0
    with pytest.raises(VirtfnError, match="no slot"):
        root.detach(1)


@pytest.mark.parametrize("slots", [0, 32])
def test_a_root_complex_has_a_sane_number_of_slots(slots):
    with pytest.raises(VirtfnError):
        RootComplex(slots)


def test_a_card_that_was_pulled_reads_ones():
    rig = build()
    rig.root.detach(0)
    assert rig.root.config_read(rig.pf, 0, 4) == ONES
    rig.root.config_write(rig.pf, 4, 2, 7)


def test_a_port_remembers_that_nobody_answered():
    rig = build()
    rig.root.config_write(PORT, 0x1E, 2, 0xFFFF)
    rig.root.config_read(Rid(rig.pf + 1), 0, 4)
    assert rig.root.config_read(PORT, 0x1E, 2) == 0x2000
