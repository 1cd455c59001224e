from unit.board import build
from virtfn.devices.pci import Place
from virtfn.hw.pci import DevSta, Pcie
from virtfn.hw.types import Rid, parse_rid


def test_places_and_routing_ids_are_inverse():
    board = build(ports=2)
    for found in board.pcim.pfs():
        board.pcim.enable_vfs(found.rid, 3)
    places = [Place(0), Place(1)] + [Place(f, n) for f in (0, 1) for n in range(3)]
    assert [board.card.find(board.card.rid(p)) for p in places] == places
    assert board.card.rids() == [board.card.rid(p) for p in places]
    assert board.card.find(parse_rid("02:10.6")) is None
    assert board.card.function(Place(1, 2)) is board.card.pfs[1].vfs[2]


def test_a_request_for_no_function_is_logged_by_all():
    board = build(ports=2)
    for pf in board.card.pfs:
        pf.function[Pcie].poke(Pcie.DEVSTA, 0, 0)
    assert board.card.config_read(Rid(board.pf + 2), 0, 4) == 0xFFFFFFFF
    logged = [DevSta(pf.function[Pcie].peek(Pcie.DEVSTA)) for pf in board.card.pfs]
    assert [(s.UNSUPPORTED_REQUEST, s.CORRECTABLE) for s in logged] == [(1, 1), (1, 1)]


def test_a_settling_vf_is_not_an_unsupported_request():
    board = build()
    pf = board.card.pfs[0].function
    pf.config_write(0x170, 2, 1)
    pf.config_write(0x168, 2, 1)
    pf[Pcie].poke(Pcie.DEVSTA, 0, 0)
    assert board.card.config_read(parse_rid("02:10.0"), 0, 4) == 0xFFFFFFFF
    assert pf[Pcie].peek(Pcie.DEVSTA) == 0
