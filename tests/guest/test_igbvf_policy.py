"""The switch between VFs, and the host's policy, as guests with Linux's own igbvf feel them."""

from __future__ import annotations

import pytest

from guest.bed import LinuxBed, address, guest_mac
from virtfn.hw.types import Mac, format_mac, parse_mac

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
FAMILY = b"\x88\xb5"  # an experimental EtherType
STRANGER = bytes.fromhex("0200000000ee")


def octets(mac: Mac) -> bytes:
    return bytes.fromhex(format_mac(mac).replace(":", ""))


# VLANs, groups, and what is not for everybody.


def test_vlans_of_the_guests_own(bed: LinuxBed):
    for n in (0, 1):
        bed.run(n, "ip link add link eth0 name eth0.5 type vlan id 5 && ip link set eth0.5 up")
        bed.run(n, f"ip addr add {address(n, '10.0.5')}/24 dev eth0.5")
    try:
        with bed.capture() as frames:
            assert bed.reaches(0, address(1, "10.0.5"))
        tagged = [frame for _, sent, frame in frames if sent and frame[12:16] == b"\x81\x00\x00\x05"]
        assert len(tagged) >= 20, "10 requests and 10 answers"
    finally:
        for n in (0, 1):
            bed.run(n, "ip link del eth0.5")


def test_a_guest_is_deaf_in_vlans_that_it_did_not_join(bed: LinuxBed):
    mine, other = (octets(guest_mac(0)) + STRANGER + b"\x81\0\0" + bytes([vid]) + FAMILY for vid in (6, 7))
    bed.run(0, "ip link add link eth0 name eth0.6 type vlan id 6 && ip link set eth0.6 up")
    try:
        before = bed.nic.drops(None).get("vlan-filter", 0)
        with bed.listen(0, "ether src 02:00:00:00:00:ee") as seen:
            bed.inject(*[mine + bytes(46), other + bytes(46)] * 5)
        assert len(seen) == 5, seen
        assert all("vlan 6" in line for line in seen)
        assert bed.nic.drops(None)["vlan-filter"] - before == 5
    finally:
        bed.run(0, "ip link del eth0.6")


def test_groups_are_heard_by_those_who_joined(bed: LinuxBed):
    joined, other = "01:00:5e:01:02:03", "01:00:5e:01:42:83"
    frames = [bytes.fromhex(group.replace(":", "")) + STRANGER + FAMILY + bytes(46) for group in (joined, other)]
    bed.run(0, f"ip maddr add {joined} dev eth0")
    try:
        assert joined in bed.run(0, "ip maddr show dev eth0")
        with bed.listen(0, "ether proto 0x88b5") as seen:
            bed.inject(*frames * 5)
        assert len(seen) == 5, seen
        assert all(joined in line for line in seen)
    finally:
        bed.run(0, f"ip maddr del {joined} dev eth0")
    with bed.listen(0, "ether proto 0x88b5") as seen:
        bed.inject(*frames * 5)
    assert seen == []


def test_broadcasts_go_to_everybody_but_their_sender(bed: LinuxBed):
    frame = b"\xff" * 6 + STRANGER + FAMILY + bytes(46)
    with bed.listen(0, "ether proto 0x88b5") as first, bed.listen(1, "ether proto 0x88b5") as second:
        bed.inject(*[frame] * 5)
    assert len(first) == len(second) == 5


def test_promiscuous_or_not_a_guest_hears_only_what_is_its_own(bed: LinuxBed):
    """igbvf asks for nothing when it is made promiscuous: the switch decides, and gives it nothing."""
    frame = octets(guest_mac(1)) + STRANGER + FAMILY + bytes(46)
    with bed.listen(0, "ether proto 0x88b5", promiscuous=True) as spied, bed.listen(1, "ether proto 0x88b5") as seen:
        assert "PROMISC" in bed.run(0, "ip -d link show eth0 | grep -o 'promiscuity 1' && echo PROMISC")
        bed.inject(*[frame] * 5)
    assert (len(spied), len(seen)) == (0, 5)


# Addresses.


def test_an_offered_address_is_changed_by_trust_only(bed: LinuxBed):
    mine, other, free = format_mac(guest_mac(0)), format_mac(guest_mac(1)), "02:00:00:00:00:99"
    refused = bed.attempt(0, f"ip link set eth0 address {free}")
    assert refused.status != 0
    assert "Cannot assign requested address" in refused.output
    assert bed.mac(0) == mine
    assert bed.reaches(0, address(1))
    try:
        bed.driver.set_trust(0, True)
        assert bed.attempt(0, f"ip link set eth0 address {other}").status != 0, "its neighbour's"
        bed.run(0, f"ip link set eth0 address {free}")
        assert bed.mac(0) == free
        assert bed.reaches(0, address(1))
    finally:
        bed.run(0, f"ip link set eth0 address {mine}")
        bed.driver.set_trust(0, False)
    assert bed.reaches(0, address(1))


def test_a_guest_that_the_host_takes_an_address_from_goes_on_with_its_own(bed: LinuxBed):
    mine, wanted = format_mac(guest_mac(0)), "02:00:00:00:00:98"
    try:
        bed.driver.set_trust(0, True)
        bed.run(0, f"ip link set eth0 address {wanted}")
        bed.driver.set_mac(1, parse_mac(wanted))
        bed.run(1, "ip link set eth0 down && ip link set eth0 up")
        bed.run(0, "ip link set eth0 down && ip link set eth0 up")
        assert (bed.mac(0), bed.mac(1)) == (mine, wanted)
        bed.up(0)
        bed.up(1)
        assert bed.reaches(0, address(1))
    finally:
        bed.driver.set_mac(1, Mac(0))
        bed.driver.set_trust(0, False)
        for n in (0, 1):
            bed.run(n, "ip link set eth0 down && ip link set eth0 up")
            bed.up(n)
    assert bed.mac(1) == format_mac(guest_mac(1))
    assert bed.reaches(0, address(1))


def test_an_address_of_the_administrators_is_changed_by_trust_only(bed: LinuxBed):
    mine, given = format_mac(guest_mac(0)), "02:00:00:00:00:55"
    try:
        bed.driver.set_mac(0, parse_mac(given))
        bed.run(0, "ip link set eth0 down && ip link set eth0 up")
        assert bed.mac(0) == given, "learnt at its reset"
        refused = bed.attempt(0, "ip link set eth0 address 02:00:00:00:00:77")
        assert refused.status != 0
        assert "Cannot assign requested address" in refused.output
        assert bed.mac(0) == given
        bed.driver.set_trust(0, True)
        bed.run(0, "ip link set eth0 address 02:00:00:00:00:77")
        bed.up(0)
        assert bed.reaches(0, address(1))
    finally:
        bed.driver.set_mac(0, Mac(0))
        bed.run(0, f"ip link set eth0 address {mine}")
        bed.driver.set_trust(0, False)
    bed.up(0)
    assert bed.reaches(0, address(1))


def test_further_addresses_are_for_trusted_guests(bed: LinuxBed):
    """A macvlan asks the driver for a unicast filter; where that is refused, its frames are spoofed ones."""
    bed.run(1, f"ip addr add {address(1, '10.0.7')}/24 dev eth0")
    try:
        for trusted in (False, True):
            bed.driver.set_trust(0, trusted)
            before = bed.nic.drops(0).get("mac-spoof", 0)
            bed.run(0, "ip link add mv0 link eth0 address 02:00:00:00:aa:01 type macvlan mode bridge")
            bed.run(0, f"ip addr add {address(0, '10.0.7')}/24 dev mv0 && ip link set mv0 up")
            sent, received = bed.ping(0, address(1, "10.0.7"), "-c 3 -i 0.2 -W 1")
            bed.run(0, "ip link del mv0")
            dropped = bed.nic.drops(0).get("mac-spoof", 0) - before
            assert (sent, received) == (3, 3 if trusted else 0)
            assert (dropped > 0) != trusted
        assert bed.driver.misbehaved[0] > 0, "the PF's driver was told"
    finally:
        bed.driver.set_trust(0, False)
        bed.run(1, f"ip addr del {address(1, '10.0.7')}/24 dev eth0")
    assert bed.reaches(0, address(1))


# Policy of the host.


def test_a_port_vlan_is_the_hosts_and_the_guests_do_not_see_it(bed: LinuxBed):
    try:
        bed.driver.set_vlan(0, 100)
        assert bed.ping(0, address(1), "-c 2 -i 0.2 -W 1")[1] == 0
        bed.driver.set_vlan(1, 100)
        with bed.capture() as frames, bed.listen(1, "arp or icmp") as seen:
            bed.run(0, "ip neigh flush dev eth0")
            assert bed.reaches(0, address(1))
        assert seen
        assert not [line for line in seen if "vlan" in line]
        out = [frame for who, sent, frame in frames if who is None and sent]
        assert out, "ARP requests leave by the wire, too"
        assert all(frame[12:16] == b"\x81\x00\x00\x64" for frame in out)
        # A guest that tags by itself gets nowhere.
        for n in (0, 1):
            bed.attempt(n, "ip link add link eth0 name eth0.8 type vlan id 8 && ip link set eth0.8 up")
            bed.attempt(n, f"ip addr add {address(n, '10.0.8')}/24 dev eth0.8")
        assert bed.ping(0, address(1, "10.0.8"), "-c 2 -i 0.2 -W 1")[1] == 0
    finally:
        for n in (0, 1):
            bed.attempt(n, "ip link del eth0.8")
            bed.driver.set_vlan(n, 0)
    assert bed.reaches(0, address(1))


@pytest.mark.parametrize("mbps", [20, 60])
def test_a_rate_limit_is_what_iperf_measures(bed: LinuxBed, mbps: int):
    bed.driver.set_rate(0, mbps)
    try:
        goodput = bed.iperf(0, 1, "", seconds=4)["end"]["sum_received"]["bits_per_second"]
        on_the_wire = goodput * (1514 + 24) / 1448  # headers, check sequence, preamble and gap
        assert mbps * 0.9e6 <= on_the_wire <= mbps * 1.1e6
        back = bed.iperf(0, 1, "-R", seconds=1)["end"]["sum_received"]["bits_per_second"]
        assert back > mbps * 1e6 or back > 20e6, "the other way is not limited"
    finally:
        bed.driver.set_rate(0, 0)
