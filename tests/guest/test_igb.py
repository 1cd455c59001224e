"""Linux's own igb on the whole PF: its self-test of registers, NVM, interrupts and loopback, and its counters."""

from __future__ import annotations

import re

import pytest

from guest.rig import CARD_MAC, LinuxRig
from virtfn.hw.types import format_mac

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
MAC = format_mac(CARD_MAC)
STRANGER = bytes.fromhex("0200000000ee")
FAMILY = b"\x88\xb5"


@pytest.fixture(scope="module")
def whole(qemu, image, logs):
    with LinuxRig(qemu, image, logs, guests=1, whole=True) as rig:
        rig.nic.port.set_wire(True, 0)
        yield rig
        rig.check()


@pytest.fixture
def rig(whole: LinuxRig) -> LinuxRig:
    whole.up(0)
    return whole


def test_lspci_finds_a_card_without_vfs(whole: LinuxRig):
    said = whole.run(0, f"lspci -vvv -s {PCI}")
    assert "82576 Gigabit Network Connection (rev 01)" in said
    assert re.search(r"MSI-X: Enable\+ Count=10 Masked-", said)
    assert "Express (v2) Endpoint" in said
    assert "Kernel driver in use: igb" in said
    for wrong in ("!!!", "SR-IOV", "ARI", "<unassigned>", "<ignored>", "Unknown", "TAbort+"):
        assert wrong not in said, said
    assert re.search(r"DevSta:.*UnsupReq-", said), said
    assert "[8086:10c9]" in whole.run(0, f"lspci -nn -s {PCI}")


def test_igb_probes(rig: LinuxRig):
    said = rig.run(0, "dmesg | grep igb")
    assert "Intel(R) Gigabit Ethernet Network Connection" in said
    assert f"{MAC}" in said
    assert "NIC Link is Up 1000 Mbps Full Duplex" in said
    assert rig.mac(0) == MAC


def test_the_offline_self_test_passes(rig: LinuxRig):
    said = rig.run(0, "ethtool -t eth0 offline", timeout_s=120)
    assert "The test result is PASS" in said, said
    results = dict(re.findall(r"^(\w[\w ]*?) +\(\w+/?\w*\)\s+(\d+)$", said, re.MULTILINE))
    assert results == dict.fromkeys(
        ("Register test", "Eeprom test", "Interrupt test", "Loopback test", "Link test"), "0"
    )
    assert not rig.host.iommu.faults(), "the register test enables queues at addresses made of ones"


def test_what_comes_in_is_counted(rig: LinuxRig):
    rig.run(0, "ip link set eth0 mtu 1500")
    mine, group, everybody = bytes.fromhex(MAC.replace(":", "")), bytes.fromhex("3333ff2b46e0"), b"\xff" * 6
    bodies = [46, 46, 100, 200, 400, 800, 1500]
    frames = [head + STRANGER + FAMILY + bytes(size) for head in (mine, everybody) for size in bodies]
    before = rig.statistics(0)
    rig.inject(*frames)
    rig.pause(500)
    after = rig.statistics(0)
    grown = {name: after[name] - before[name] for name in before}
    assert grown["rx_packets"] == len(frames)
    assert grown["rx_bytes"] == sum(len(frame) + 4 for frame in frames)
    assert grown["rx_broadcast"] == len(bodies)
    assert grown["rx_multicast"] == 0
    rig.inject(*[group + STRANGER + FAMILY + bytes(46)] * 5)  # the group that IPv6 has for this address
    rig.pause(500)
    assert rig.statistics(0)["rx_multicast"] - after["rx_multicast"] == 5
    assert after["rx_queue_0_packets"] - before["rx_queue_0_packets"] == len(frames)
    assert all(after[name] == 0 for name in after if "err" in name or "missed" in name or "drop" in name), after


def test_what_goes_out_is_counted_and_is_what_the_wire_saw(rig: LinuxRig):
    rig.run(0, "ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:ee dev eth0 nud permanent")
    quiet = "echo {} > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"  # it asks for routers when it likes
    rig.run(0, quiet.format(1))
    before = rig.statistics(0)
    with rig.capture() as frames:
        rig.ping(0, "10.0.0.9", "-c 20 -i 0.02 -W 1 -s 500")
        rig.ping(0, "10.0.0.8", "-c 1 -W 1")  # nobody: ARP requests
        after = rig.statistics(0)
    rig.run(0, quiet.format(0))
    out = [frame for who, sent, frame in frames if who is None and sent]
    grown = {name: after[name] - before[name] for name in before}
    assert grown["tx_packets"] == len(out) >= 21
    assert grown["tx_bytes"] == sum(max(len(frame), 60) + 4 for frame in out)
    assert grown["tx_broadcast"] == sum(frame[:6] == b"\xff" * 6 for frame in out) >= 1
    assert sum(frame[:6] == STRANGER for frame in out) == 20
    assert {len(frame) for frame in out if frame[:6] == STRANGER} == {542}


def test_registers_are_dumped(rig: LinuxRig):
    said = rig.run(0, "ethtool -d eth0")
    assert re.search(r"STATUS.*0x[0-9A-Fa-f]{8}", said), said
    assert "link config" in said
    assert re.search(r"Link up:?\s+\S+", said) or "Link" in said


def test_the_eeprom_is_dumped_and_its_checksum_is_right(rig: LinuxRig):
    lines = rig.run(0, "ethtool -e eth0 length 128").splitlines()
    dumped = bytes.fromhex("".join(line.split(":", 1)[1] for line in lines if line.startswith("0x")))
    assert dumped[:6] == bytes.fromhex(MAC.replace(":", ""))
    words = [int.from_bytes(dumped[at : at + 2], "little") for at in range(0, 128, 2)]
    assert sum(words) & 0xFFFF == 0xBABA


def test_the_module_goes_and_comes_back(rig: LinuxRig):
    rig.run(0, "rmmod igb && ! ip link show eth0 && modprobe igb")
    rig.up(0)
    with rig.listen(0, "ether proto 0x88b5") as seen:
        rig.inject(*[bytes.fromhex(MAC.replace(":", "")) + STRANGER + FAMILY + bytes(46)] * 5)
    assert len(seen) == 5
