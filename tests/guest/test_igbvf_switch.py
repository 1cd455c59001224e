"""Trunks, mirrors, limits of storms, link state and trust, as guests with Linux's own igbvf feel them.

Measured by frames that arrive, or do not, and by what the card counts.
"""

from __future__ import annotations

import time

import pytest

from guest.rig import LinuxRig, address, guest_mac
from guest.test_igbvf_vlans import BROADCAST, FAMILY, STRANGER, interfaces, octets
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
    assert rig.reaches(1, address(0))


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


def test_a_throttle_bounds_the_interrupts_of_a_guest(rig: LinuxRig):
    """One in 4 ms, at most, however many frames come. (igbvf takes 5 and 10 ms for intervals that follow traffic.)"""
    mine = stray(octets(guest_mac(0)))
    counts = {}
    try:
        for us in (10, 4_000):
            rig.run(0, f"ethtool -C eth0 rx-usecs {us}")
            before, began = interrupts(rig), time.monotonic()
            for _ in range(300):
                rig.inject(mine)
                rig.pause(1)
            counts[us], took = interrupts(rig) - before, time.monotonic() - began
    finally:
        rig.run(0, "ethtool -C eth0 rx-usecs 3")  # by traffic, as ever
    assert 0 < counts[4_000] <= took / 0.004 + 2, counts
    assert counts[10] > counts[4_000], counts


def interrupts(rig: LinuxRig) -> int:
    """Count interrupts for frames that guest 0 has received."""
    return int(rig.run(0, "grep eth0-rx /proc/interrupts").split()[1])
