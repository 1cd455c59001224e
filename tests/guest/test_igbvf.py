"""Linux's own igbvf on two VFs of one 82576: each feature of the driver, judged by the guest's own programs."""

from __future__ import annotations

import re

import pytest

from guest.rig import LinuxRig, address, guest_mac
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import SRRCTL
from virtfn.hw.types import Mac, format_mac

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
FAMILY = b"\x88\xb5"  # an experimental EtherType
STRANGER = bytes.fromhex("0200000000ee")


def octets(mac: Mac) -> bytes:
    return bytes.fromhex(format_mac(mac).replace(":", ""))


# What the guest finds.


def test_lspci_finds_an_ordinary_function(pair: LinuxRig):
    said = pair.run(0, f"lspci -vvv -s {PCI}")
    assert "82576 Virtual Function (rev 01)" in said
    assert re.search(r"Region 0: Memory at \w+ \(64-bit, .*\[size=16K\]", said)
    assert re.search(r"Region 3: Memory at \w+ \(64-bit, .*\[size=16K\]", said)
    assert "MSI-X: Enable+ Count=3 Masked-" in said
    assert "Express (v2) Endpoint" in said
    assert "FLReset+" in said
    assert "Kernel driver in use: igbvf" in said
    for wrong in ("!!!", "<unassigned>", "<ignored>", "[disabled]", "Unknown", "rev ff", "TAbort+", "UnsupReq+"):
        assert wrong not in said, said
    assert "[8086:10ca]" in pair.run(0, f"lspci -nn -s {PCI}")
    assert pair.run(0, f"cat /sys/bus/pci/devices/{PCI}/reset_method").split()[0] == "flr"


def test_igbvf_probes_with_the_address_offered(pair: LinuxRig):
    for n in (0, 1):
        assert f"Address: {format_mac(guest_mac(n))}" in pair.run(n, "dmesg | grep igbvf")
        assert pair.mac(n) == format_mac(guest_mac(n))


def test_the_link_is_up_at_1000_full_duplex(rig: LinuxRig):
    said = rig.run(0, "ethtool eth0")
    assert "Speed: 1000Mb/s" in said
    assert "Duplex: Full" in said
    assert "Link detected: yes" in said
    assert "Link is Up 1000 Mbps Full Duplex" in rig.run(0, "dmesg | grep igbvf")


def test_the_link_goes_and_comes_back(rig: LinuxRig):
    rig.nic.port.phy.set_link(False, 1000)
    rig.until(lambda: not rig.carrier(0) and not rig.carrier(1), "the end of the link")
    rig.nic.port.phy.set_link(True, 1000)
    rig.until(lambda: rig.carrier(0) and rig.carrier(1), "the link")
    assert rig.reaches(0, address(1))


def test_the_link_test_passes(rig: LinuxRig):
    assert "The test result is PASS" in rig.run(0, "ethtool -t eth0")


def test_registers_are_dumped(rig: LinuxRig):
    lines = rig.run(0, "ethtool -d eth0 | grep 0x0").splitlines()
    dumped = bytes.fromhex("".join(line.split(":")[1] for line in lines))
    words = [int.from_bytes(dumped[at : at + 4], "little") for at in range(0, len(dumped), 4)]
    status, rx_length, rx_tail, tx_length = words[1], words[2], words[4], words[5]
    assert status & 0xFF == 0x83  # full duplex, link up, 1000 Mb/s
    assert rx_length == tx_length == 1024 * 16
    assert rx_tail < 1024


# Frames.


def test_pings_are_all_answered(rig: LinuxRig):
    assert rig.ping(0, address(1), "-c 100 -i 0.01") == (100, 100)
    assert rig.ping(1, "ff02::1%eth0", "-6 -c 5 -i 0.1")[1] >= 5


def test_statistics_tell_what_was_sent(rig: LinuxRig):
    rig.ping(0, address(1), "-c 1")
    before, counted = rig.statistics(0), rig.counters(0)
    assert rig.ping(0, address(1), "-c 50 -i 0.01 -s 1000") == (50, 50)
    after, then = rig.statistics(0), rig.counters(0)
    grown = {name: after[name] - before[name] for name in after}
    # The neighbours' own chatter (ARP, IPv6) may come in between: a few frames, not more.
    for name in ("rx_packets", "tx_packets", "lbrx_packets"):
        assert 50 <= grown[name] <= 60, grown
    for name in ("rx_bytes", "tx_bytes", "lbrx_bytes"):
        assert 0 <= grown[name] - 50 * (1042 + 4) <= 10 * 110, grown
    for name in ("rx_packets", "tx_packets"):
        assert abs(then[name] - counted[name] - grown[name]) <= 1
    assert after["rx_csum_offload_errors"] == after["alloc_rx_buff_failed"] == 0
    assert all(value < 1 << 32 for value in after.values()), "no wrap where there was none"


def test_iperf_runs_both_ways_and_every_checksum_is_right(rig: LinuxRig):
    for options in ("", "-R"):
        report = rig.iperf(0, 1, options)
        assert report["end"]["sum_received"]["bits_per_second"] > 20e6
    for n in (0, 1):
        assert checksum_errors(rig, n) == 0


def checksum_errors(rig: LinuxRig, n: int) -> int:
    """What Linux's own look at TCP checksums found wrong, in guest `n`."""
    names, values = rig.run(n, "grep ^Tcp: /proc/net/snmp").splitlines()
    return int(dict(zip(names.split(), values.split(), strict=True))["InCsumErrors"])


@pytest.mark.parametrize("mtu", [9000, 1400, 1500])
def test_frames_of_any_mtu_pass_whole(rig: LinuxRig, mtu: int):
    for n in (0, 1):
        rig.run(n, f"ip link set eth0 mtu {mtu}")
    for n in (0, 1):
        rig.up(n)
    largest = mtu - 28
    assert rig.ping(0, address(1), f"-c 5 -i 0.05 -M do -s {largest}") == (5, 5)
    assert "message too long" in rig.attempt(0, f"ping -c 1 -M do -s {largest + 1} {address(1)}").output
    report = rig.iperf(0, 1, "", seconds=1)
    assert report["end"]["sum_received"]["bits_per_second"] > 10e6
    split = SRRCTL(rig.nic.port.registers.peek(Regs.SRRCTL, 1)).DESCTYPE == 5
    assert split == (mtu != 1500), "igbvf lets headers be split unless the MTU is 1500"


# Settings.


@pytest.mark.parametrize("size", [80, 4096, 1024])
def test_rings_of_any_size(rig: LinuxRig, size: int):
    rig.run(0, f"ethtool -G eth0 rx {size} tx {size}")
    said = rig.run(0, "ethtool -g eth0").partition("Current")[2]
    assert re.findall(r"^(RX|TX):\s+(\d+)", said, re.MULTILINE) == [("RX", str(size)), ("TX", str(size))]
    rig.up(0)
    assert rig.reaches(0, address(1))
    report = rig.iperf(1, 0, "", seconds=1)
    assert report["end"]["sum_received"]["bytes"] > 1e6


def test_offloads_off_and_on(rig: LinuxRig):
    try:
        for n in (0, 1):
            rig.run(n, "ethtool -K eth0 tx off rx off tso off gro off gso off sg off")
        assert "tcp-segmentation-offload: off" in rig.run(0, "ethtool -k eth0")
        assert rig.iperf(0, 1, "", seconds=2)["end"]["sum_received"]["bytes"] > 1e6
    finally:
        for n in (0, 1):
            rig.run(n, "ethtool -K eth0 tx on rx on sg on tso on gso on gro on")
    assert "tcp-segmentation-offload: on" in rig.run(0, "ethtool -k eth0")
    assert rig.iperf(0, 1, "", seconds=2)["end"]["sum_received"]["bytes"] > 1e6
    assert [checksum_errors(rig, n) for n in (0, 1)] == [0, 0]


def test_a_receiver_that_checks_for_itself_finds_checksums_that_were_offloaded_right(rig: LinuxRig):
    try:
        rig.run(1, "ethtool -K eth0 rx off gro off")
        for options in ("", "-u -b 20M"):
            assert rig.iperf(0, 1, options, seconds=2)["end"]
        assert checksum_errors(rig, 1) == 0
        assert re.search(r"^Udp: (\S+ ){6}0", rig.run(1, "grep ^Udp: /proc/net/snmp | tail -1"))
    finally:
        rig.run(1, "ethtool -K eth0 rx on gro on")


# Down, up, reset, gone and back.


def test_ten_times_down_and_up(rig: LinuxRig):
    for _ in range(10):
        rig.run(0, "ip link set eth0 down && ip link set eth0 up")
    rig.up(0)
    assert rig.reaches(0, address(1))


def test_an_flr_of_an_interface_that_is_down(rig: LinuxRig):
    """igbvf does not hear of it; told no when it looks for the PF, it resets the VF after ten seconds, and goes on."""
    rig.run(0, f"ip link set eth0 down && echo 1 >/sys/bus/pci/devices/{PCI}/reset")
    rig.up(0)
    assert rig.reaches(0, address(1))


def test_an_flr_of_an_interface_that_is_up(rig: LinuxRig):
    rig.run(0, f"echo 1 >/sys/bus/pci/devices/{PCI}/reset")
    rig.run(0, "ip link set eth0 down && ip link set eth0 up")
    rig.up(0)
    assert rig.reaches(0, address(1))


def test_a_reset_of_the_port_is_survived(rig: LinuxRig):
    rig.pause(10_000)  # igbvf recovers when its last reset is longer ago
    rig.driver.reset()
    rig.until(lambda: rig.reaches(0, address(1)), "an answer", timeout_s=60)


def test_unbind_and_bind(rig: LinuxRig):
    rig.run(0, f"cd /sys/bus/pci/drivers/igbvf && echo {PCI} >unbind && ! ip link show eth0 && echo {PCI} >bind")
    assert rig.mac(0) == format_mac(guest_mac(0))
    rig.up(0)
    assert rig.reaches(0, address(1))


def test_the_module_goes_and_comes_back(rig: LinuxRig):
    rig.run(0, "rmmod igbvf && ! ip link show eth0 && modprobe igbvf")
    assert rig.mac(0) == format_mac(guest_mac(0))
    rig.up(0)
    assert rig.reaches(0, address(1))
