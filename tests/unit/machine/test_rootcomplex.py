import pytest

from unit.board import PlainCard, build
from virtfn.hw.pci import Type1
from virtfn.hw.types import Rid, make_rid, parse_rid
from virtfn.machine.ports import VirtfnError
from virtfn.machine.rootcomplex import RootComplex

PORT = make_rid(0, 1, 0)
ONES = 0xFFFFFFFF


def test_nothing_below_a_port_answers_before_buses_are_numbered():
    board = build(scan=False)
    assert board.root.config_read(PORT, 0, 4) == 0x34208086
    assert all(board.root.config_read(Rid(bus << 8), 0, 4) == ONES for bus in range(1, 256))


def test_routing_follows_the_programmed_bus_numbers():
    board = build(scan=False)
    board.root.config_write(PORT, 0x18, 4, 0x00070500)
    assert board.root.config_read(make_rid(5, 0, 0), 0, 4) == 0x10C98086
    assert board.root.config_read(make_rid(6, 0, 0), 0, 4) == ONES
    assert board.root.config_read(make_rid(8, 0, 0), 0, 4) == ONES


def test_a_card_captures_its_bus_from_type_0_writes_only():
    board = build(scan=False)
    board.root.config_write(PORT, 0x18, 4, 0x00070500)
    board.root.config_read(make_rid(5, 0, 0), 0, 4)
    assert board.card.bus == 0
    board.root.config_write(make_rid(6, 0, 0), 4, 2, 0)
    assert board.card.bus == 0
    board.root.config_write(make_rid(5, 0, 0), 4, 2, 0)
    assert board.card.bus == 5


@pytest.mark.parametrize("ari", [False, True])
def test_without_ari_forwarding_only_device_0_is_reached(ari):
    board = build(ari=ari)
    board.pcim.enable_vfs(board.pf, 1)
    where = parse_rid("01:10.0") if ari else parse_rid("02:10.0")
    assert board.card.rids() == [board.pf, where]
    assert board.root.config_read(where, 8, 4) == 0x02000001
    assert board.root.ports[0].ari_forwarding is ari
    board.root.config_write(PORT, 0x40 + 0x28, 2, 0)
    assert board.root.config_read(where, 8, 4) == (ONES if ari else 0x02000001)


def test_memory_goes_to_the_bar_that_claims_it():
    board = build()
    bar0 = board.pcim.functions[board.pf].bars[0]
    assert board.root.mmio_read(bar0.address, 4) == ONES
    board.pcim.enable_function(board.pf)
    board.root.mmio_write(bar0.address + 0x10, 4, 7)
    assert board.card.written == {(board.pf, 0, 0x10): 7}
    assert board.root.mmio_read(bar0.address + 0x10, 4) == 7
    board.root.ports[0].header.poke(Type1.COMMAND, 0, 0)
    assert board.root.mmio_read(bar0.address + 0x10, 4) == ONES, "the port no longer forwards"


def test_io_space_is_its_own():
    board = build()
    board.pcim.enable_function(board.pf)
    io = next(bar for bar in board.pcim.functions[board.pf].bars if bar.io)
    board.root.io_write(io.address, 4, 9)
    assert board.card.written == {(board.pf, 2, 0): 9}
    assert board.root.io_read(io.address, 4) == 9
    assert board.root.io_read(io.address + 32, 4) == ONES
    assert board.root.mmio_read(io.address, 4) == ONES


def test_vf_memory_needs_vf_enable_and_vf_mse_not_command():
    board = build()
    vf = board.pcim.enable_vfs(board.pf, 2)[1]
    target = board.root.decode(vf.bars[1].address + 8)
    assert target is not None
    assert (target.device, target.rid, target.bar, target.offset) == (board.card, vf.rid, 3, 8)
    assert board.root.decode(vf.bars[0].address + 0x4000) is None, "a third VF's slice, which is not there"
    board.root.config_write(board.pf, 0x168, 2, 1)
    assert board.root.decode(vf.bars[1].address + 8) is None


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
    board = build()
    board.root.detach(0)
    assert board.root.config_read(board.pf, 0, 4) == ONES
    board.root.config_write(board.pf, 4, 2, 7)


def test_a_port_remembers_that_nobody_answered():
    board = build()
    board.root.config_write(PORT, 0x1E, 2, 0xFFFF)
    board.root.config_read(Rid(board.pf + 1), 0, 4)
    assert board.root.config_read(PORT, 0x1E, 2) == 0x2000
