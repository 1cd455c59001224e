from unit.slotrig import build
from virtfn.devices.pci import Place
from virtfn.hw.pci import DevSta, Pcie
from virtfn.hw.types import Rid, parse_rid


def test_places_and_routing_ids_are_inverse():
    rig = build(ports=2)
    for found in rig.pcim.pfs():
        rig.pcim.enable_vfs(found.rid, 3)
    places = [Place(0), Place(1)] + [Place(f, n) for f in (0, 1) for n in range(3)]
    assert [rig.card.find(rig.card.rid(p)) for p in places] == places
    assert rig.card.rids() == [rig.card.rid(p) for p in places]
    assert rig.card.find(parse_rid("02:10.6")) is None
    assert rig.card.function(Place(1, 2)) is rig.card.pfs[1].vfs[2]


def test_a_request_for_no_function_is_logged_by_all():
    rig = build(ports=2)
    for pf in rig.card.pfs:
        pf.function[Pcie].poke(Pcie.DEVSTA, 0, 0)
    assert rig.card.config_read(Rid(rig.pf + 2), 0, 4) == 0xFFFFFFFF
    logged = [DevSta(pf.function[Pcie].peek(Pcie.DEVSTA)) for pf in rig.card.pfs]
    assert [(s.UNSUPPORTED_REQUEST, s.CORRECTABLE) for s in logged] == [(1, 1), (1, 1)]


def test_a_settling_vf_is_not_an_unsupported_request():
    rig = build()
    pf = rig.card.pfs[0].function
    pf.config_write(0x170, 2, 1)
    pf.config_write(0x168, 2, 1)
    pf[Pcie].poke(Pcie.DEVSTA, 0, 0)
    assert rig.card.config_read(parse_rid("02:10.0"), 0, 4) == 0xFFFFFFFF
    assert pf[Pcie].peek(Pcie.DEVSTA) == 0
