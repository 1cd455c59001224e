"""The switch between VFs, and the host's policy, as guests with Linux's own igbvf feel them."""

from __future__ import annotations

import pytest

from guest.rig import LinuxRig, address, guest_mac
from virtfn.hw.types import Mac, format_mac, parse_mac

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
FAMILY = b"\x88\xb5"  # an experimental EtherType
STRANGER = bytes.fromhex("0200000000ee")


def octets(mac: Mac) -> bytes:
    return bytes.fromhex(format_mac(mac).replace(":", ""))


# VLANs, groups, and what is not for everybody.


def test_vlans_of_the_guests_own(rig: LinuxRig):
    for n in (0, 1):
        rig.run(n, "ip link add link eth0 name eth0.5 type vlan id 5 && ip link set eth0.5 up")
        rig.run(n, f"ip addr add {address(n, '10.0.5')}/24 dev eth0.5")
    try:
        with rig.capture() as frames:
            assert rig.reaches(0, address(1, "10.0.5"))
        tagged = [frame for _, sent, frame in frames if sent and frame[12:16] == b"\x81\x00\x00\x05"]
        assert len(tagged) >= 20, "10 requests and 10 answers"
    finally:
        for n in (0, 1):
            rig.run(n, "ip link del eth0.5")


def test_a_guest_is_deaf_in_vlans_that_it_did_not_join(rig: LinuxRig):
    mine, other = (octets(guest_mac(0)) + STRANGER + b"\x81\0\0" + bytes([vid]) + FAMILY for vid in (6, 7))
    rig.run(0, "ip link add link eth0 name eth0.6 type vlan id 6 && ip link set eth0.6 up")
    try:
        before = rig.nic.drops(None).get("vlan-filter", 0)
        with rig.listen(0, "ether src 02:00:00:00:00:ee") as seen:
            rig.inject(*[mine + bytes(46), other + bytes(46)] * 5)
        assert len(seen) == 5, seen
        assert all("vlan 6" in line for line in seen)
        assert rig.nic.drops(None)["vlan-filter"] - before == 5
    finally:
        rig.run(0, "ip link del eth0.6")


def test_groups_are_heard_by_those_who_joined(rig: LinuxRig):
    joined, other = "01:00:5e:01:02:03", "01:00:5e:01:42:83"
    frames = [bytes.fromhex(group.replace(":", "")) + STRANGER + FAMILY + bytes(46) for group in (joined, other)]
    rig.run(0, f"ip maddr add {joined} dev eth0")
    try:
        assert joined in rig.run(0, "ip maddr show dev eth0")
        with rig.listen(0, "ether proto 0x88b5") as seen:
            rig.inject(*frames * 5)
        assert len(seen) == 5, seen
        assert all(joined in line for line in seen)
    finally:
        rig.run(0, f"ip maddr del {joined} dev eth0")
    with rig.listen(0, "ether proto 0x88b5") as seen:
        rig.inject(*frames * 5)
    assert seen == []


def test_broadcasts_go_to_everybody_but_their_sender(rig: LinuxRig):
    frame = b"\xff" * 6 + STRANGER + FAMILY + bytes(46)
    with rig.listen(0, "ether proto 0x88b5") as first, rig.listen(1, "ether proto 0x88b5") as second:
        rig.inject(*[frame] * 5)
    assert len(first) == len(second) == 5


def test_promiscuous_or_not_a_guest_hears_only_what_is_its_own(rig: LinuxRig):
    """igbvf asks for nothing when it is made promiscuous: the switch decides, and gives it nothing."""
    frame = octets(guest_mac(1)) + STRANGER + FAMILY + bytes(46)
    with rig.listen(0, "ether proto 0x88b5", promiscuous=True) as spied, rig.listen(1, "ether proto 0x88b5") as seen:
        assert "PROMISC" in rig.run(0, "ip -d link show eth0 | grep -o 'promiscuity 1' && echo PROMISC")
        rig.inject(*[frame] * 5)
    assert (len(spied), len(seen)) == (0, 5)


# Addresses.


def test_an_offered_address_is_changed_by_trust_only(rig: LinuxRig):
    mine, other, free = format_mac(guest_mac(0)), format_mac(guest_mac(1)), "02:00:00:00:00:99"
    refused = rig.attempt(0, f"ip link set eth0 address {free}")
    assert refused.status != 0
    assert "Cannot assign requested address" in refused.output
    assert rig.mac(0) == mine
    assert rig.reaches(0, address(1))
    try:
        rig.driver.set_trust(0, True)
        assert rig.attempt(0, f"ip link set eth0 address {other}").status != 0, "its neighbour's"
        rig.run(0, f"ip link set eth0 address {free}")
        assert rig.mac(0) == free
        assert rig.reaches(0, address(1))
    finally:
        rig.run(0, f"ip link set eth0 address {mine}")
        rig.driver.set_trust(0, False)
    assert rig.reaches(0, address(1))


def test_a_guest_that_the_host_takes_an_address_from_goes_on_with_its_own(rig: LinuxRig):
    mine, wanted = format_mac(guest_mac(0)), "02:00:00:00:00:98"
    try:
        rig.driver.set_trust(0, True)
        rig.run(0, f"ip link set eth0 address {wanted}")
        rig.driver.set_mac(1, parse_mac(wanted))
        rig.run(1, "ip link set eth0 down && ip link set eth0 up")
        rig.run(0, "ip link set eth0 down && ip link set eth0 up")
        assert (rig.mac(0), rig.mac(1)) == (mine, wanted)
        rig.up(0)
        rig.up(1)
        assert rig.reaches(0, address(1))
    finally:
        rig.driver.set_mac(1, Mac(0))
        rig.driver.set_trust(0, False)
        for n in (0, 1):
            rig.run(n, "ip link set eth0 down && ip link set eth0 up")
            rig.up(n)
    assert rig.mac(1) == format_mac(guest_mac(1))
    assert rig.reaches(0, address(1))


def test_an_address_of_the_administrators_is_changed_by_trust_only(rig: LinuxRig):
    mine, given = format_mac(guest_mac(0)), "02:00:00:00:00:55"
    try:
        rig.driver.set_mac(0, parse_mac(given))
        rig.run(0, "ip link set eth0 down && ip link set eth0 up")
        assert rig.mac(0) == given, "learnt at its reset"
        refused = rig.attempt(0, "ip link set eth0 address 02:00:00:00:00:77")
        assert refused.status != 0
        assert "Cannot assign requested address" in refused.output
        assert rig.mac(0) == given
        rig.driver.set_trust(0, True)
        rig.run(0, "ip link set eth0 address 02:00:00:00:00:77")
        rig.up(0)
        assert rig.reaches(0, address(1))
    finally:
        rig.driver.set_mac(0, Mac(0))
        rig.run(0, f"ip link set eth0 address {mine}")
        rig.driver.set_trust(0, False)
    rig.up(0)
    assert rig.reaches(0, address(1))


def test_further_addresses_are_for_trusted_guests(rig: LinuxRig):
    """A macvlan asks the driver for a unicast filter; where that is refused, its frames are spoofed ones."""
    rig.run(1, f"ip addr add {address(1, '10.0.7')}/24 dev eth0")
    try:
        for trusted in (False, True):
            rig.driver.set_trust(0, trusted)
            before = rig.nic.drops(0).get("mac-spoof", 0)
            rig.run(0, "ip link add mv0 link eth0 address 02:00:00:00:aa:01 type macvlan mode bridge")
            rig.run(0, f"ip addr add {address(0, '10.0.7')}/24 dev mv0 && ip link set mv0 up")
            sent, received = rig.ping(0, address(1, "10.0.7"), "-c 3 -i 0.2 -W 1")
            rig.run(0, "ip link del mv0")
            dropped = rig.nic.drops(0).get("mac-spoof", 0) - before
            assert (sent, received) == (3, 3 if trusted else 0)
            assert (dropped > 0) != trusted
        assert rig.driver.misbehaved[0] > 0, "the PF's driver was told"
    finally:
        rig.driver.set_trust(0, False)
        rig.run(1, f"ip addr del {address(1, '10.0.7')}/24 dev eth0")
    assert rig.reaches(0, address(1))


# Policy of the host.


def test_a_port_vlan_is_the_hosts_and_the_guests_do_not_see_it(rig: LinuxRig):
    try:
        rig.driver.set_vlan(0, 100)
        assert rig.ping(0, address(1), "-c 2 -i 0.2 -W 1")[1] == 0
        rig.driver.set_vlan(1, 100)
        with rig.capture() as frames, rig.listen(1, "arp or icmp") as seen:
            rig.run(0, "ip neigh flush dev eth0")
            assert rig.reaches(0, address(1))
        assert seen
        assert not [line for line in seen if "vlan" in line]
        out = [frame for who, sent, frame in frames if who is None and sent]
        assert out, "ARP requests leave by the wire, too"
        assert all(frame[12:16] == b"\x81\x00\x00\x64" for frame in out)
        # A guest that tags by itself gets nowhere.
        for n in (0, 1):
            rig.attempt(n, "ip link add link eth0 name eth0.8 type vlan id 8 && ip link set eth0.8 up")
            rig.attempt(n, f"ip addr add {address(n, '10.0.8')}/24 dev eth0.8")
        assert rig.ping(0, address(1, "10.0.8"), "-c 2 -i 0.2 -W 1")[1] == 0
    finally:
        for n in (0, 1):
            rig.attempt(n, "ip link del eth0.8")
            rig.driver.set_vlan(n, 0)
    assert rig.reaches(0, address(1))


@pytest.mark.alone
@pytest.mark.parametrize("mbps", [20, 60])
def test_a_rate_limit_is_what_iperf_measures(rig: LinuxRig, mbps: int):
    rig.driver.set_rate(0, mbps)
    try:
        goodput = rig.iperf(0, 1, "", seconds=4)["end"]["sum_received"]["bits_per_second"]
        on_the_wire = goodput * (1514 + 24) / 1448  # headers, check sequence, preamble and gap
        assert mbps * 0.9e6 <= on_the_wire <= mbps * 1.1e6
        back = rig.iperf(0, 1, "-R", seconds=1)["end"]["sum_received"]["bits_per_second"]
        assert back > mbps * 1e6 or back > 20e6, "the other way is not limited"
    finally:
        rig.driver.set_rate(0, 0)
