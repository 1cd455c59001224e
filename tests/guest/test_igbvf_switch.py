"""Trunks, mirrors, limits of storms, link state and trust, as guests with Linux's own igbvf feel them.

Measured by frames that arrive, or do not, and by what the card counts.
"""

from __future__ import annotations

import time

import pytest

from guest.rig import LinuxRig, address, guest_mac
from guest.test_igbvf_vlans import BROADCAST, FAMILY, STRANGER, interfaces, octets
from unit.saturation import jain
from virtfn.drivers.policy import LinkState, Mirror, StormLimits, SwitchPolicy
from virtfn.machine.ports import VirtfnError

pytestmark = pytest.mark.guest

GROUP = "01:00:5e:01:02:03"
NOBODY = bytes.fromhex("020000000099")
OUTSIDE = "10.0.0.99"
FROM_STRANGER = "ether src 02:00:00:00:00:ee"


def stray(to: bytes, vid: int | None = None, size: int = 60) -> bytes:
    """Make a frame of a stranger on the wire."""
    tag = b"" if vid is None else b"\x81\0" + vid.to_bytes(2, "big")
    return (to + STRANGER + tag + FAMILY).ljust(size, b"\0")


# Trunks.


def test_a_trunk_lets_its_vlans_pass_and_no_other(rig: LinuxRig):
    mine = octets(guest_mac(0))
    rig.driver.set_trunk(0, frozenset({5}))
    try:
        with interfaces(rig, 5) as five, interfaces(rig, 6) as six:
            assert rig.reaches(0, address(1, five))
            spoofed = rig.nic.drops(0).get("vlan-spoof", 0)
            assert rig.ping(0, address(1, six), "-c 2 -i 0.2 -W 1")[1] == 0
            assert rig.nic.drops(0)["vlan-spoof"] > spoofed, "what it sends in another VLAN"
            assert rig.ping(1, address(0, six), "-c 2 -i 0.2 -W 1")[1] == 0
            with rig.listen(0, FROM_STRANGER) as seen:
                rig.inject(*[stray(mine, vid) for vid in (5, 6)] * 5)
            assert len(seen) == 5, seen
            assert all("vlan 5" in line for line in seen), seen
            rig.driver.set_trunk(0, frozenset())
            rig.until(lambda: rig.ping(0, address(1, six), "-c 2 -i 0.2 -W 1")[1] > 0, "the VLAN works", timeout_s=60)
    finally:
        rig.driver.set_trunk(0, frozenset())
    rig.until(lambda: rig.carrier(0) and rig.carrier(1), "both have a link again")
    assert rig.reaches(0, address(1))


# Mirrors.

MIRRORS = (  # and what the receiver hears then: frames of the stranger, pings to the outside
    (None, 0, 0),
    (Mirror(to=1, vfs=(0,)), 10, 0),
    (Mirror(to=1, vlans=(5,)), 5, 0),
    (Mirror(to=1, received=True), 10, 0),
    (Mirror(to=1, sent=True), 0, 3),
)


def test_a_mirror_hears_what_it_is_to_hear(rig: LinuxRig):
    mine = octets(guest_mac(0))
    rig.run(0, "ip link add link eth0 name eth0.5 type vlan id 5 && ip link set eth0.5 up")
    rig.run(0, f"ip neigh replace {OUTSIDE} lladdr 02:00:00:00:00:77 dev eth0")
    everything = f"{FROM_STRANGER} or (icmp and ether dst 02:00:00:00:00:77)"
    try:
        for mirror, strays, pings in MIRRORS:
            rig.driver.set_switch(SwitchPolicy(() if mirror is None else (mirror,)))
            received = rig.nic.moved(rig.vfs[1].rid).rx_frames
            with rig.listen(1, everything) as heard, rig.listen(0, FROM_STRANGER) as seen:
                rig.inject(*[stray(mine), stray(mine, 5)] * 5)
                assert rig.ping(0, OUTSIDE, "-c 3 -i 0.1 -W 1") == (3, 0)
            assert len(seen) == 10, "who is mirrored does not feel it"
            assert sum(line.split()[1] == "02:00:00:00:00:ee" for line in heard) == strays, (mirror, heard)
            assert sum("ICMP echo request" in line for line in heard) == pings, (mirror, heard)
            assert rig.nic.moved(rig.vfs[1].rid).rx_frames - received >= strays + pings
    finally:
        rig.driver.set_switch(SwitchPolicy())
        rig.run(0, f"ip link del eth0.5; ip neigh del {OUTSIDE} dev eth0")


# Storms: 1 Mb/s is twelve frames of a thousand bytes in a window of 100 ms. (tcpdump has room for 32 at once.)

STORMS = (
    (BROADCAST, StormLimits(broadcast=1)),
    (bytes.fromhex(GROUP.replace(":", "")), StormLimits(multicast=1)),
    (NOBODY, StormLimits(broadcast=1, unknown_unicast=True)),
)


def test_storms_from_the_wire_reach_a_guest_up_to_their_limits(rig: LinuxRig):
    rig.run(0, f"ip maddr add {GROUP} dev eth0")
    # igbvf never asks for frames to unknown addresses: the host's driver gives them.
    rig.driver.pools.set_promiscuous(0, True, False)
    try:
        for to, limits in STORMS:
            rig.driver.set_switch(SwitchPolicy(storm=limits))
            before = rig.nic.drops(None).get("storm", 0)
            with rig.listen(0, FROM_STRANGER) as seen:
                rig.inject(*[stray(to, size=996)] * 25)
                rig.inject(*[stray(octets(guest_mac(0)))] * 5)
            dropped = rig.nic.drops(None).get("storm", 0) - before
            assert 10 <= dropped <= 16, "guests send to groups, too, now and then"
            assert len(seen) == 30 - dropped, "each is heard, or counted; who is addressed alone is not held up"
    finally:
        rig.driver.set_switch(SwitchPolicy())
        rig.driver.pools.set_promiscuous(0, False, False)
        rig.run(0, f"ip maddr del {GROUP} dev eth0")


GUEST_STORMS = (  # where ping sends to, and what there is a limit of
    ("-b 10.0.0.255", StormLimits(broadcast=1)),
    ("-I eth0 239.1.2.3", StormLimits(multicast=1)),
    (OUTSIDE, StormLimits(broadcast=1, unknown_unicast=True)),
)


def test_a_storm_of_a_guest_reaches_the_other_up_to_its_limit(rig: LinuxRig):
    rig.run(0, "ip route add 239.0.0.0/8 dev eth0")
    rig.run(0, f"ip neigh replace {OUTSIDE} lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    rig.run(0, f"ip neigh replace {address(1)} lladdr {rig.mac(1)} dev eth0 nud permanent")
    rig.run(1, f"ip maddr add {GROUP} dev eth0")
    rig.driver.pools.set_promiscuous(1, True, False)  # as above
    try:
        for target, limits in GUEST_STORMS:
            assert storm(rig, target)[2] == 0, "without a limit, nothing is too much"
            rig.driver.set_switch(SwitchPolicy(storm=limits))
            sent, heard, dropped, windows, answered = storm(rig, target)
            rig.driver.set_switch(SwitchPolicy())
            assert dropped > 50, (target, sent)
            assert 10 <= heard <= 13 * windows, (target, heard, windows)
            assert abs(sent - dropped - heard) <= 10, "each is heard, or counted; some are not of the storm"
            assert answered == 20, "who is addressed is not held up"
    finally:
        rig.driver.set_switch(SwitchPolicy())
        rig.driver.pools.set_promiscuous(1, False, False)
        rig.run(0, "ip route del 239.0.0.0/8 dev eth0; ip neigh flush nud permanent dev eth0")
        rig.run(1, f"ip maddr del {GROUP} dev eth0")


def storm(rig: LinuxRig, target: str) -> tuple[int, int, int, int, int]:
    """Let guest 0 send frames of 996 bytes for a second, as fast as it can, and ping guest 1 meanwhile.

    Returns how many frames there were, those that guest 1 has heard, those that the card dropped as too many, the
    windows of a tenth of a second in which that was, and how many of 20 pings were answered.
    """
    moved = rig.nic.moved(rig.vfs[1].rid)
    before, began = (moved.rx_frames, rig.nic.drops(0).get("storm", 0)), time.monotonic()
    job = rig.start(0, f"ping -q -f -l 60000 -c 60000 -s 954 -w 1 {target} >/tmp/storm; true")
    answered = rig.ping(0, address(1), "-c 20 -i 0.02")[1]
    rig.finish(0, job)
    windows = int((time.monotonic() - began) / 0.1) + 2
    sent = int(rig.run(0, "grep -o '[0-9]* packets transmitted' /tmp/storm").split()[0])
    heard = rig.nic.moved(rig.vfs[1].rid).rx_frames - before[0] - answered
    return sent, heard, rig.nic.drops(0).get("storm", 0) - before[1], windows, answered


# Shares: of a wire that carries 0.4 Mb/s, since guests under emulation send a few hundred frames a second.


@pytest.mark.alone
def test_two_guests_get_equal_shares_of_a_wire_that_is_full(rig: LinuxRig):
    """Small frames against large ones: 64 and 1518 bytes on the wire; both guests want all of it."""
    for n in (0, 1):
        rig.run(n, f"ip neigh replace {OUTSIDE} lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
    pools = rig.nic.port.nic["pools"]
    rig.nic.port.nic["port"]["wire_ps_per_byte"] = 20_000_000
    jobs = [rig.start(n, f"ping -q -f -l 60000 -c 60000 -s {size} {OUTSIDE}") for n, size in enumerate((18, 1472))]
    try:
        rig.pause(2000)
        before, began = (pools["gotc"][:2].copy(), pools["gptc"][:2].copy()), time.monotonic()
        rig.pause(8000)
        took = time.monotonic() - began
        sent, frames = pools["gotc"][:2] - before[0], pools["gptc"][:2] - before[1]
    finally:
        rig.nic.port.set_wire(True, 0)
        for n, job in enumerate(jobs):
            rig.run(n, "killall -INT ping")
            rig.finish(n, job)
            rig.run(n, f"ip neigh del {OUTSIDE} dev eth0")
    assert (sent / frames).tolist() == pytest.approx([64, 1518], rel=0.01)
    assert jain(sent.tolist()) > 0.99, (sent, frames)
    assert (int(sent.sum()) + 20 * int(frames.sum())) * 8 / took == pytest.approx(400_000, rel=0.05), "it is full"


# Link state.


def test_a_link_that_the_host_takes_away_is_gone_for_the_guest(rig: LinuxRig):
    try:
        rig.driver.set_link_state(0, LinkState.DISABLE)
        rig.until(lambda: not rig.carrier(0), "the end of the link")
        assert "NO-CARRIER" in rig.run(0, "ip link show eth0")
        assert "LOWER_UP" in rig.run(1, "ip link show eth0"), "its neighbour's stays"
        before = rig.nic.drops(1).get("rx-disabled", 0), rig.nic.moved(rig.vfs[0].rid).rx_frames
        rig.run(1, f"ip neigh replace {address(0)} lladdr 02:00:00:00:00:10 dev eth0")
        assert rig.ping(1, address(0), "-c 3 -i 0.2 -W 1")[1] == 0
        assert rig.nic.drops(1)["rx-disabled"] - before[0] >= 3
        assert rig.nic.moved(rig.vfs[0].rid).rx_frames == before[1]
        rig.run(0, "ip link set eth0 down && ip link set eth0 up && sleep 3")
        assert not rig.carrier(0), "whatever its driver does"
        with pytest.raises(VirtfnError) as refused:
            rig.driver.set_link_state(0, LinkState.ENABLE)
        assert refused.value.errno_name == "EOPNOTSUPP"
        assert not rig.carrier(0)
    finally:
        rig.driver.set_link_state(0, LinkState.AUTO)
    rig.until(lambda: rig.carrier(0), "the link")
    rig.run(1, f"ip neigh del {address(0)} dev eth0")
    rig.until(lambda: rig.reaches(1, address(0)), "its frames")  # igbvf may begin anew once more


# Trust.


def test_trust_gives_a_guest_nothing_that_its_driver_does_not_ask_for(rig: LinuxRig):
    """igbvf asks for no promiscuity of either kind: trusted, it hears its own all the same."""
    frames = [stray(octets(guest_mac(1))), stray(bytes.fromhex("01005e428301")), stray(octets(guest_mac(0)))]
    rig.driver.set_trust(0, True)
    try:
        rig.run(0, "ip link set eth0 promisc on allmulticast on")
        with rig.listen(0, FROM_STRANGER, promiscuous=True) as seen:
            rig.inject(*frames * 5)
        assert len(seen) == 5, seen
    finally:
        rig.run(0, "ip link set eth0 promisc off allmulticast off")
        rig.driver.set_trust(0, False)


# Interrupts.


@pytest.mark.alone
def test_a_throttle_bounds_the_interrupts_of_a_guest_and_not_its_neighbours(rig: LinuxRig):
    """One in 8 ms, at most, however many frames come. (igbvf takes 5 and 10 ms for intervals that follow traffic.)"""
    frames = [stray(octets(guest_mac(n))) for n in (0, 1)]
    try:
        for intervals in ((10, 8_000), (8_000, 10)):
            for n, us in enumerate(intervals):
                rig.run(n, f"ethtool -C eth0 rx-usecs {us}")
            before, began = [interrupts(rig, n) for n in (0, 1)], time.monotonic()
            for _ in range(300):
                rig.inject(*frames)  # each some milliseconds after the one before
            counts = {us: interrupts(rig, n) - before[n] for n, us in enumerate(intervals)}
            assert 0 < counts[8_000] <= (time.monotonic() - began) / 0.008 + 2, counts
            assert counts[10] > counts[8_000], counts
    finally:
        for n in (0, 1):
            rig.run(n, "ethtool -C eth0 rx-usecs 3")  # by traffic, as ever


def interrupts(rig: LinuxRig, n: int) -> int:
    """Count interrupts for frames that guest `n` has received."""
    return int(rig.run(n, "grep eth0-rx /proc/interrupts").split()[1])
