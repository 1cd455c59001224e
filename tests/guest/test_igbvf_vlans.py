"""VLANs of a VF under Linux's own igbvf: priority tags, priorities of its own VLANs, and the host's in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guest.rig import LinuxRig, address, guest_mac
from virtfn.hw.types import Mac, format_mac

pytestmark = pytest.mark.guest

STRANGER = bytes.fromhex("0200000000ee")
BROADCAST = b"\xff" * 6
FAMILY = b"\x88\xb5"  # an experimental EtherType


def octets(mac: Mac) -> bytes:
    return bytes.fromhex(format_mac(mac).replace(":", ""))


@contextmanager
def interfaces(rig: LinuxRig, vid: int, priority: int = 5) -> Iterator[str]:
    """Give both guests an interface for a VLAN, all of whose frames have a priority; tell their network."""
    name, net = f"eth0.{vid}", f"10.0.{vid or 50}"
    for n in (0, 1):
        rig.run(n, f"ip link add link eth0 name {name} type vlan id {vid} egress-qos-map 0:{priority}")
        rig.run(n, f"ip link set {name} up && ip addr add {address(n, net)}/24 dev {name}")
    try:
        yield net
    finally:
        for n in (0, 1):
            rig.attempt(n, f"ip link del {name}")


@pytest.mark.parametrize("target", ["guest", "all"])
def test_priority_tags_from_the_wire_reach_a_guest_without_vlans(rig: LinuxRig, target: str):
    to = octets(guest_mac(0)) if target == "guest" else BROADCAST
    frame = to + STRANGER + bytes.fromhex("8100a000") + FAMILY + bytes(46)
    drops = rig.nic.drops(None), rig.nic.drops(0)
    with rig.listen(0, "ether src 02:00:00:00:00:ee") as seen:
        rig.inject(*[frame] * 5)
    assert len(seen) == 5, seen
    assert all("vlan 0, p 5" in line for line in seen), seen
    assert (rig.nic.drops(None), rig.nic.drops(0)) == drops


def test_priority_tags_pass_between_guests(rig: LinuxRig):
    """VLAN 0 is no VLAN: no message of the guest's asks for it, and its frames pass the check of senders."""
    spoofs = rig.nic.drops(0).get("vlan-spoof", 0)
    with interfaces(rig, 0) as net:
        with rig.capture() as frames:
            assert rig.reaches(0, address(1, net))
        passed = [who for who, sent, frame in frames if not sent and frame[12:16] == bytes.fromhex("8100a000")]
        assert {0, 1} <= set(passed)
    assert rig.nic.drops(0).get("vlan-spoof", 0) == spoofs


def test_a_guest_sees_the_priorities_of_its_own_vlan(rig: LinuxRig):
    with interfaces(rig, 5) as net:
        with rig.listen(1, "vlan 5 and icmp") as seen:
            assert rig.reaches(0, address(1, net))
        assert seen
        assert all("vlan 5, p 5" in line for line in seen), seen
        frame = BROADCAST + STRANGER + bytes.fromhex("8100c005") + FAMILY + bytes(46)
        with rig.listen(1, "ether src 02:00:00:00:00:ee") as seen:
            rig.inject(*[frame] * 5)
        assert len(seen) == 5, seen
        assert all("vlan 5, p 6" in line for line in seen), seen


def test_the_guests_vlans_work_again_after_the_hosts(rig: LinuxRig):
    with interfaces(rig, 5) as net:
        assert rig.reaches(0, address(1, net))
        try:
            for n in (0, 1):
                rig.driver.set_vlan(n, 100)
            assert rig.reaches(0, address(1))
        finally:
            for n in (0, 1):
                rig.driver.set_vlan(n, 0)
        assert rig.reaches(0, address(1))
        assert rig.reaches(0, address(1, net))


def test_vlans_that_a_guest_was_refused_it_asks_for_after_the_hosts(rig: LinuxRig):
    """igbvf counts a VLAN that it was refused as joined: it has to be made to ask again."""
    try:
        for n in (0, 1):
            rig.driver.set_vlan(n, 100)
        with interfaces(rig, 9) as net:
            assert rig.ping(0, address(1, net), "-c 2 -i 0.2 -W 1")[1] == 0
            for n in (0, 1):
                rig.driver.set_vlan(n, 0)
            rig.until(lambda: rig.ping(0, address(1, net), "-c 2 -i 0.2 -W 1")[1] > 0, "the VLAN works", timeout_s=60)
    finally:
        for n in (0, 1):
            rig.driver.set_vlan(n, 0)
    rig.until(lambda: rig.carrier(0) and rig.carrier(1), "both have a link again")
    assert rig.reaches(0, address(1))
