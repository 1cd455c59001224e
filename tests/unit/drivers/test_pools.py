"""What VFs share is kept so that no guest can take it all, and the host's port VLANs always find room."""

from __future__ import annotations

import random

import pytest

from unit.rig import Rig
from virtfn.drivers.pools import Pools
from virtfn.hw.i82576 import Message, Opcode, Regs
from virtfn.hw.i82576.rxtx import VLVF


@pytest.fixture(scope="module")
def full_house():
    """Eight guests."""
    with Rig([("pf0", n) for n in range(8)], total_vfs=8, memory_mib=4) as made:
        yield made


@pytest.fixture
def eight(full_house: Rig):
    yield full_house
    for n in range(8):
        full_house.igb.set_vlan(n, 0)
        full_house.driver(n).recover()


def members(rig: Rig) -> dict[int, int]:
    """The pools of each VLAN in the table; each has one entry."""
    entries = [VLVF(rig.nic.port.registers.peek(Regs.VLVF, i)) for i in range(Regs.VLVF.count)]
    found = {e.VID: e.POOLSEL for e in entries if e.VI_EN}
    assert len(found) == sum(e.VI_EN for e in entries)
    assert all(found.values())
    return found


def asks(rig: Rig, n: int, vid: int, join: bool = True) -> bool:
    word = Message.of(OPCODE=Opcode.SET_VLAN, INFO=int(join)).value
    return bool(Message(rig.mailbox(n).ask([word, vid])[0]).ACK)


def test_a_guest_that_joins_all_leaves_room_for_the_host_and_the_others(eight: Rig):
    had = [vid for vid in range(64) if asks(eight, 0, vid)]
    assert had == list(range(17)), "VLAN 0, and 16 others"
    others = [[asks(eight, n, 100 * n + k) for k in range(3)] for n in range(1, 8)]
    assert others == [[True, False, False]] * 7
    assert len(members(eight)) == 1 + 16 + 7
    assert members(eight)[0] == 0xFF
    for n in range(8):
        eight.igb.set_vlan(n, 2000 + n)
    assert members(eight) == {2000 + n: 1 << n for n in range(8)}


def test_port_vlans_find_room_beside_full_guests():
    """A guest in VLANs of its own choice, all other VFs in port VLANs that change: all entries are in use."""
    with Rig(total_vfs=8) as rig:
        had = sum(asks(rig, 0, vid) for vid in range(1, 64))
        for turn in range(3):
            for n in range(1, 8):
                rig.igb.set_vlan(n, 1000 + 10 * turn + n)
        assert len(members(rig)) == 1 + had + 7
        rig.igb.set_vlan(0, 3000)
        assert members(rig)[3000] == 1


def test_a_guest_does_not_keep_what_was_the_hosts(eight: Rig):
    """It joins each port VLAN of others, and stays when the host moves them on: that counts as its own."""
    vid = 100
    for _ in range(40):
        for n in range(1, 8):
            eight.igb.set_vlan(n, vid + n)
        for n in range(1, 8):
            asks(eight, 0, vid + n)
        vid += 10
    found = members(eight)
    assert sum(bool(pools & 1) for pools in found.values()) == 1 + 16
    assert sum(pools & 0xFE != 0 for pools in found.values()) == 7


def test_one_vlan_of_all_takes_one_entry(eight: Rig):
    for n in range(8):
        assert all(asks(eight, n, vid) for vid in range(17))
    assert members(eight) == dict.fromkeys(range(17), 0xFF)
    assert asks(eight, 3, 5), "once more"
    for n in range(8):
        assert asks(eight, n, 5, join=False)
    assert 5 not in members(eight)
    assert asks(eight, 0, 500)


def test_what_is_left_can_be_had_again(eight: Rig):
    for _ in range(3):
        assert all(asks(eight, 0, vid) for vid in range(1, 17))
        assert not asks(eight, 0, 17)
        eight.driver(0).recover()  # the PF forgets what its driver asked for
        assert members(eight) == {0: 0xFF}
    assert all(asks(eight, 0, vid) for vid in range(1, 17))
    eight.igb.set_vlan(0, 9)
    assert members(eight) == {0: 0xFE, 9: 1}
    assert not asks(eight, 0, 10), "a guest in a port VLAN is in no other"
    eight.igb.set_vlan(0, 0)
    assert members(eight) == {0: 0xFF} | dict.fromkeys(range(1, 17), 1)
    assert not asks(eight, 0, 17)


@pytest.mark.parametrize(("vfs", "most"), [(2, 28), (4, 24), (8, 16)])
def test_the_share_grows_as_there_are_fewer_vfs(vfs: int, most: int):
    with Rig(total_vfs=vfs) as rig:
        assert sum(asks(rig, 0, vid) for vid in range(1, 64)) == most


def test_whatever_is_asked_a_port_vlan_never_fails(eight: Rig):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pools: Pools = eight.igb.pools
    port = [0] * 8
    for _ in range(3000):
        n, vid = rng.randrange(8), rng.randrange(1, 80)
        match rng.randrange(4):
            case 0:
                port[n] = rng.choice((0, vid))
                eight.igb.set_vlan(n, port[n])
            case 1 if not port[n]:
                pools.leave_vlan(n, vid)
            case _ if not port[n]:
                pools.admit(n, vid)
    found = members(eight)
    for n, vid in enumerate(port):
        assert vid or found[0] >> n & 1
        assert not vid or {v for v, pools in found.items() if pools >> n & 1} == {vid}


def test_guests_that_act_together_take_no_ones_first_vlan(eight: Rig):
    """One fills its share, one joins what that is in, one takes what this made free, and the second leaves again."""
    pools: Pools = eight.igb.pools
    assert sum(pools.admit(0, vid) for vid in range(1, 40)) == 16
    assert pools.admit(1, 1)
    assert pools.admit(2, 100)
    assert not pools.admit(2, 101)
    pools.leave_vlan(1, 1)
    for n in (1, *range(3, 8)):
        assert pools.admit(n, 200 + n), "its first"
    for n in range(8):
        eight.igb.set_vlan(n, 3000 + n)
    assert len(members(eight)) == 8
