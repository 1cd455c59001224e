"""What the host decides about VFs and the switch, as guests feel it: link state, trunks, rates, mirrors, storms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.rig import BROADCAST, Rig, frame, pass_time, send, take
from virtfn.drivers.igbvf import Igbvf, MailboxError, State
from virtfn.drivers.policy import LinkState, Mirror, StormLimits, SwitchPolicy, VfPolicy
from virtfn.hw.i82576 import Opcode, Regs, VfRegs, vf_vector
from virtfn.hw.i82576.rxtx import SCCRL, STORM_THRESHOLD, VLVF, VMRCTL
from virtfn.hw.types import Mac, parse_mac
from virtfn.machine.clock import MS_PS, S_PS, US_PS
from virtfn.machine.ports import VirtfnError

STRANGER = parse_mac("02:00:00:00:00:77")
CTS, NACK = 1 << 29, 1 << 30


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


@pytest.fixture
def four() -> Iterator[Rig]:
    with Rig([("pf0", n) for n in range(4)]) as made:
        yield made


def moves(rig: Rig, a: Igbvf, b: Igbvf) -> bool:
    """Tell whether a frame of `a` reaches `b`."""
    send(a, frame(b.mac, a.mac))
    rig.serve()
    return len(take(b)) == 1


# Link state.


def test_a_link_that_is_off_is_felt_by_both_sides_and_comes_back(rig: Rig) -> None:
    a, b = rig.driver(0), rig.driver(1)
    rig.igb.set_link_state(0, LinkState.DISABLE)
    rig.serve()
    assert (a.link, a.state, b.link) == (False, State.RUNNING, True)
    assert not moves(rig, b, a)
    assert not moves(rig, a, b)
    assert rig.drops(1) == {"rx-disabled": 1}
    rig.igb.set_link_state(0, LinkState.AUTO)
    rig.serve()
    assert a.link
    assert len(take(b)) == 1, "what waited in its ring"
    assert moves(rig, b, a)


def test_what_a_driver_does_meanwhile_brings_no_link_and_needs_no_reset(rig: Rig) -> None:
    a = rig.driver(0)
    rig.igb.set_link_state(0, LinkState.DISABLE)
    rig.serve()
    a.set_multicast([parse_mac("01:00:5e:00:00:01")])
    with pytest.raises(MailboxError, match="SET_MAC"):
        a.set_mac(STRANGER)
    a.check_link()
    assert (a.link, a.state) == (False, State.RUNNING)
    a.recover()
    assert (a.link, a.state) == (False, State.RUNNING)
    assert not moves(rig, rig.driver(1), a)
    rig.igb.reset()
    rig.serve()
    a.recover()
    rig.driver(1).recover()
    assert not a.link, "a reset of the port brings none either"
    rig.igb.set_link_state(0, LinkState.AUTO)
    rig.serve()
    assert a.link
    assert moves(rig, rig.driver(1), a)


def test_a_driver_that_looks_for_its_link_finds_neither_leave_nor_refusal(rig: Rig) -> None:
    """Linux's igbvf takes the first for a link, and the second for a reason to reset."""
    rig.igb.set_link_state(0, LinkState.DISABLE)
    box, regs = rig.mailbox(0), rig.registers(0)
    assert not regs.get(VfRegs.VMBMEM) & (CTS | NACK)
    assert box.ask([Opcode.SET_PROMISC | 3 << 16]) == [Opcode.SET_PROMISC | 3 << 16 | NACK]
    assert not regs.get(VfRegs.VMBMEM) & (CTS | NACK), "the refusal that it has read is gone"
    rig.igb.set_link_state(0, LinkState.AUTO)
    assert regs.get(VfRegs.VMBMEM) & CTS


def test_quarantine_and_link_are_two_locks(rig: Rig) -> None:
    a, b = rig.driver(0), rig.driver(1)
    rig.igb.stop_vf(0)
    rig.igb.set_link_state(0, LinkState.DISABLE)
    rig.igb.start_vf(0)
    assert not moves(rig, b, a)
    rig.igb.stop_vf(0)
    rig.igb.set_link_state(0, LinkState.AUTO)
    assert not moves(rig, b, a)
    rig.igb.start_vf(0)
    assert moves(rig, b, a)


# Trunks.


def test_a_trunk_holds_its_vlans_and_no_other(rig: Rig) -> None:
    a, b = rig.driver(0), rig.driver(1)
    for vid in (5, 6):
        b.set_vlan(vid)
    a.set_vlan(6)
    rig.igb.set_policy(0, VfPolicy(trunk=frozenset({5}), spoof_check=False))
    a.set_vlan(5)
    with pytest.raises(MailboxError, match="SET_VLAN"):
        a.set_vlan(7)
    send(a, frame(b.mac, a.mac, vid=5), frame(b.mac, a.mac, vid=6), frame(b.mac, a.mac))
    rig.serve()
    assert [body[12:16] for body in take(b)] == [b"\x81\0\0\5", frame(b.mac, a.mac)[12:16]]
    assert rig.drops(0) == {"vlan-spoof": 1}, "though its addresses are not checked"
    send(b, frame(a.mac, b.mac, vid=6), frame(a.mac, b.mac, vid=5))
    rig.serve()
    assert [body[12:16] for body in take(a)] == [b"\x81\0\0\5"]
    rig.igb.set_trunk(0, frozenset())
    rig.serve()
    a.recover()
    assert 6 in a.vlans
    send(b, frame(a.mac, b.mac, vid=6))
    rig.serve()
    assert len(take(a)) == 1, "asked for again, and given"


# Rates.


IP = bytes.fromhex("0800450000280000000040110000") + bytes(200)


def body(size: int, a: Igbvf, b: Igbvf, *, ip: bool) -> bytes:
    """A frame of `size` bytes with the frame check sequence."""
    plain = frame(b.mac, a.mac, length=size - 4)
    return (plain[:12] + IP)[: size - 4].ljust(size - 4, b"\0") if ip else plain


@pytest.mark.parametrize("ip", [False, True])
@pytest.mark.parametrize("size", [64, 357, 1518])
@pytest.mark.parametrize("mbps", [10, 100, 1000])
def test_a_rate_is_kept_within_a_hundredth(rig: Rig, mbps: int, size: int, ip: bool) -> None:
    a, b = rig.driver(0), rig.driver(1)
    rig.igb.set_rate(0, mbps)
    one = body(size, a, b, ip=ip)
    step = min(24 * size * 8 * US_PS // mbps, MS_PS)  # what 24 frames take, but less than the credit of 2 ms
    wanted = 2 * (4000 * mbps // 8 // size + 500)  # the credit is used up in the first half
    sent = got = begun = start = end = 0
    while got < wanted:
        if sent - got < 256:
            send(a, *[one] * 64)
            sent += 64
        rig.nic.serve()
        got += len(take(b))
        end = rig.clock.now()
        if not start and got >= wanted // 2:
            start, begun = end, got
        rig.clock.sleep(step)
    rate = (got - begun) * size * 8 * S_PS / (end - start) / 1e6
    assert rate == pytest.approx(mbps, rel=0.01)


# Mirrors.


def test_what_is_for_a_vf_goes_to_its_mirror_too(four: Rig) -> None:
    a, b, c, d = (four.driver(i) for i in range(4))
    four.igb.set_switch(SwitchPolicy(mirrors=(Mirror(to=3, vfs=(1,)),)))
    send(a, frame(b.mac, a.mac, b"mirrored"), frame(c.mac, a.mac, b"not"))
    four.serve()
    assert take(d) == [frame(b.mac, a.mac, b"mirrored")] == take(b)
    assert len(take(c)) == 1
    four.igb.set_switch(SwitchPolicy())
    assert moves(four, a, b)
    assert take(d) == []


def test_a_vlan_is_mirrored_whatever_entry_it_has(four: Rig) -> None:
    a, b, _, d = (four.driver(i) for i in range(4))
    four.igb.set_switch(SwitchPolicy(mirrors=(Mirror(to=3, vlans=(9,)),)))
    for driver in (a, b):
        for vid in (8, 9):
            driver.set_vlan(vid)
    entry = next(i for i in range(32) if VLVF(register(four, Regs.VLVF, i)).VID == 9)
    assert register(four, Regs.VMRVLAN) == 1 << entry
    send(a, frame(b.mac, a.mac, vid=8), frame(b.mac, a.mac, vid=9))
    four.serve()
    assert take(d) == [frame(b.mac, a.mac, vid=9)]
    for driver in (a, b):
        driver.set_vlan(9, False)
    assert register(four, Regs.VMRVLAN) == 0


def test_the_wire_is_mirrored_both_ways(four: Rig) -> None:
    a, d = four.driver(0), four.driver(3)
    four.nic.set_wire(True, 0)
    four.nic.open_wire()
    four.igb.set_switch(SwitchPolicy(mirrors=(Mirror(to=3, received=True), Mirror(to=2, sent=True))))
    arrives(four, frame(a.mac, STRANGER))
    assert take(d) == [frame(a.mac, STRANGER)] == take(a)
    send(a, frame(STRANGER, a.mac))
    four.serve()
    assert take(four.driver(2)) == [frame(STRANGER, a.mac)]
    assert take(d) == []


def test_a_reset_of_the_port_brings_mirrors_and_limits_back(four: Rig) -> None:
    policy = SwitchPolicy((Mirror(to=3, vfs=(1,), sent=True),), StormLimits(broadcast=5, multicast=7))
    four.igb.set_switch(policy)
    kinds = (Regs.VMRCTL, Regs.VMRVM, Regs.SCCRL, Regs.BSCTRH, Regs.MSCTRH)
    before = [register(four, decl) for decl in kinds]
    assert VMRCTL(before[0]) == VMRCTL.of(VPME=1, DPME=1, MP=3)
    assert SCCRL(before[2]) == SCCRL.of(BDICW=1, MDICW=1, INTERVAL=100)
    assert pytest.approx(5e6 / 8 / 10, abs=64) == STORM_THRESHOLD(before[3]).UTRESH * 64
    four.igb.reset()
    assert [register(four, decl) for decl in kinds] == before
    assert four.igb.switch_policy() == policy


# Storms.


def test_broadcasts_of_all_are_limited_together(four: Rig) -> None:
    a, b, c, _ = (four.driver(i) for i in range(4))
    four.igb.set_switch(SwitchPolicy(storm=StormLimits(broadcast=1)))
    heard = 0
    for _ in range(200):  # 10 ms each: 20 windows
        send(a, *[frame(BROADCAST, a.mac, length=996)] * 4)
        send(b, *[frame(BROADCAST, b.mac, length=996)] * 4)
        four.nic.serve()
        heard += len(take(c))
        take(a), take(b), take(four.driver(3))
        pass_time(four, 10)
    assert heard * 1000 * 8 / 2 == pytest.approx(1e6, rel=0.1), "1 Mb/s for 2 s"
    assert four.drops(0)["storm"] + four.drops(1)["storm"] == 1600 - heard
    assert moves(four, a, b), "who is addressed alone is not held up"


@pytest.mark.parametrize(
    ("policy", "errno_name"),
    [
        (SwitchPolicy((Mirror(to=4, sent=True),)), "EINVAL"),
        (SwitchPolicy((Mirror(to=0, vfs=(9,)),)), "EINVAL"),
        (SwitchPolicy((Mirror(to=0, vlans=(4095,)),)), "EINVAL"),
        (SwitchPolicy((Mirror(to=0),)), "EINVAL"),
        (SwitchPolicy((Mirror(to=0, sent=True),) * 5), "EOPNOTSUPP"),
        (SwitchPolicy(storm=StormLimits(broadcast=1001)), "EINVAL"),
        (SwitchPolicy(storm=StormLimits(unknown_unicast=True)), "EINVAL"),
    ],
)
def test_a_switch_that_cannot_be_is_refused_and_nothing_changes(
    rig: Rig, policy: SwitchPolicy, errno_name: str
) -> None:
    with pytest.raises(VirtfnError) as caught:
        rig.igb.set_switch(policy)
    assert caught.value.errno_name == errno_name
    assert rig.igb.switch_policy() == SwitchPolicy()


# All or nothing.


def test_policies_hold_together_or_not_at_all(rig: Rig) -> None:
    mac = parse_mac("02:00:00:00:00:55")
    good = VfPolicy(mac=mac, vlan=10, trust=True, max_tx_rate=10)
    for bad in (
        VfPolicy(mac=mac),
        VfPolicy(mac=rig.igb.mac),
        VfPolicy(mac=rig.driver(1).mac),
        VfPolicy(mac=Mac(1)),
        VfPolicy(vlan=4095),
        VfPolicy(qos=1),
        VfPolicy(vlan=5, trunk=frozenset({5})),
        VfPolicy(trunk=frozenset({0})),
        VfPolicy(max_tx_rate=1001),
        VfPolicy(link_state=LinkState.ENABLE),
    ):
        with pytest.raises(VirtfnError):
            rig.igb.set_policies({0: good, 2: bad})
        assert [rig.igb.policy(n) for n in range(4)] == [VfPolicy()] * 4
    rig.igb.set_policies({0: good, 2: VfPolicy(vlan=10)})
    assert rig.igb.policy(0) == good
    assert rig.igb.address(0) == mac
    rig.igb.set_policies({0: VfPolicy(), 2: VfPolicy(mac=mac)})
    assert rig.igb.address(2) == mac, "what one gives up another may have, in one call"


def register(rig: Rig, decl: object, index: int = 0) -> int:
    value: int = rig.nic.port.registers.peek(decl, index)
    return value


def arrives(rig: Rig, *frames: bytes) -> None:
    """Let frames come in by the wire."""
    import numpy as np

    store = np.frombuffer(b"".join(frames) + bytes(64), np.uint8).copy()
    lengths = np.array([len(one) for one in frames], np.int64)
    rig.nic.arrive(store, np.cumsum(lengths) - lengths, lengths, 0, len(frames))
    rig.serve()


def test_mirrors_and_limits_go_with_the_vfs(four: Rig) -> None:
    kinds = (Regs.VMRCTL, Regs.VMRVM, Regs.VMRVLAN, Regs.SCCRL)
    for end in (four.igb.end_vfs, lambda: four.igb.start(4)):
        four.igb.set_switch(SwitchPolicy((Mirror(to=2, vfs=(0,)),), StormLimits(broadcast=10)))
        end()
        assert four.igb.switch_policy() == SwitchPolicy()
        assert [register(four, decl) for decl in kinds] == [0] * 4
        four.igb.start(4)


def test_a_throttle_goes_with_its_owner(rig: Rig) -> None:
    vector = vf_vector(1, 0)
    rig.nic.port.registers.poke(Regs.EITR, vector, 0x7FFC)
    rig.igb.throttle(1, 10)
    rig.igb.release_vf(1)
    assert register(rig, Regs.EITR, vector) == 0


def test_the_hosts_address_given_again_is_in_force_again(rig: Rig) -> None:
    mine, taken = parse_mac("02:00:00:00:00:33"), parse_mac("02:00:00:00:00:44")
    rig.igb.set_mac(0, mine)
    rig.igb.set_trust(0, True)
    rig.driver(0).set_mac(taken)
    assert rig.igb.address(0) == taken
    rig.igb.set_rate(0, 100)
    assert rig.igb.address(0) == taken, "another decision is none about the address"
    rig.igb.set_mac(0, mine)
    assert rig.igb.address(0) == mine
