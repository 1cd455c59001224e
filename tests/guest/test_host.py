"""A Linux that is a host itself: stock igb makes VFs of the card, igbvf drives them, and `ip` sets policies.

One machine for all tests, which go on from each other; the VFs' interfaces are in network namespaces a, b.
"""

from __future__ import annotations

import re

import pytest

from guest.hostrig import CARD, Host
from guest.rig import CARD_MAC, LinuxRig
from unit.rig import lab_text
from virtfn.api.lab import parse_lab
from virtfn.api.session import Session, ShowLinks
from virtfn.cli.render.link import render_links
from virtfn.hw.types import format_mac

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def host(qemu, image, logs):
    with LinuxRig(qemu, image, logs, guests=1, host=True, vfs=8, reboot=True, memory_mib=384) as rig:
        rig.nic.port.set_wire(True, 0)
        rig.run(0, "ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0")
        yield Host(rig)
        assert not rig.host.iommu.faults()


@pytest.fixture(autouse=True)
def no_complaint(host: Host):
    yield
    assert host.complaints() == []


def test_lspci_and_sysfs_show_the_capability_as_on_silicon(host: Host):
    said = host.run("lspci -vvv -s 01:00.0")
    for words in (
        "Capabilities: [140 v1] Device Serial Number 00-1b-21-ff-ff-2b-46-e0",
        "Capabilities: [150 v1] Alternative Routing-ID Interpretation (ARI)",
        "Capabilities: [160 v1] Single Root I/O Virtualization (SR-IOV)",
        "IOVCap:\tMigration- 10BitTagReq- Interrupt Message Number: 000",
        "IOVCtl:\tEnable- Migration- Interrupt- MSE- ARIHierarchy+",
        "Initial VFs: 8, Total VFs: 8, Number of VFs: 0, Function Dependency Link: 00",
        "VF offset: 128, stride: 2, Device ID: 10ca",
        "Supported Page Size: 00000553, System Page Size: 00000001",
        "VF Migration: offset: 00000000, BIR: 0",
    ):
        assert words in said, said
    assert len(re.findall(r"Region [03]: Memory at [0-9a-f]{16} \(64-bit, non-prefetchable\)", said)) == 2
    assert "!!!" not in said
    names = ("totalvfs", "numvfs", "offset", "stride", "vf_device", "drivers_autoprobe")
    values = host.run("; ".join(f"cat {CARD}/sriov_{name}" for name in names)).split()
    assert values == ["7", "0", "128", "2", "10ca", "1"], "igb offers one VF less than the card has"
    assert host.vfs_seen() == []
    assert host.open_bars() == 0


def test_vfs_come_work_and_go(host: Host):
    host.number(4)
    assert host.vfs_seen() == ["10.0", "10.2", "10.4", "10.6"]
    assert host.rig.nic.vfs == 4
    refused = host.rig.attempt(0, f"echo 5 > {CARD}/sriov_numvfs")
    assert refused.status
    assert "Device or resource busy" in refused.output
    assert host.open_bars() == 8
    links = host.run(f"readlink {CARD}/virtfn3; readlink /sys/bus/pci/devices/0000:01:10.6/physfn").split()
    assert links == ["../0000:01:10.6", "../0000:01:00.0"]
    said = host.run("lspci -vv -s 01:10.2")
    assert "Kernel driver in use: igbvf" in said
    assert re.search(r"Region 0: Memory at [0-9a-f]+ \(64-bit, non-prefetchable\) \[size=16K\]", said)
    assert "MSI-X: Enable+ Count=3 Masked-" in said
    host.two()
    assert host.reaches("10.0.0.3")
    assert host.reaches("10.0.0.1"), "the PF's own interface"
    assert host.rig.nic.moved(host.rig.nic.vf_rid(0)).tx_frames > 10


def test_the_card_is_unplugged_with_vfs_on_and_plugged_in_again(host: Host):
    host.run("for n in a b; do ip netns del $n; done; true")
    host.number(0)
    host.number(2)
    rig, vm = host.rig, host.rig.vms[0]
    rig.iovm.take_back_whole(rig.nic.pf_rid)
    assert not vm.guest.plugged, host.run("dmesg | tail -n 60")
    assert not rig.host.remapping.domains
    assert "82576" not in host.run("lspci")
    rig.iovm.assign_host(rig.pcim.functions[rig.nic.pf_rid], rig.nic, vm)
    rig.nic.port.set_wire(True, 0)
    find = f"grep -l {format_mac(CARD_MAC)} /sys/class/net/*/address"
    rig.until(lambda: rig.attempt(0, find).status == 0, "igb's interface", timeout_s=60)
    host.run("ip link set eth0 up; ip addr replace 10.0.0.1/24 dev eth0")
    host.number(4)
    host.two()
    assert host.reaches()
    assert host.reaches("10.0.0.1")


def test_policies_of_ip_are_enforced_by_the_card(host: Host):
    host.run("ip link set eth0 vf 0 vlan 7")
    assert host.vf(0)["vlan_list"][0]["vlan"] == 7
    assert host.answered("10.0.0.3") == 0
    host.run("ip link set eth0 vf 1 vlan 7")
    assert host.reaches()
    host.run("ip link set eth0 vf 0 vlan 0; ip link set eth0 vf 1 vlan 0")
    assert host.reaches()
    host.run("ip link set eth0 vf 0 max_tx_rate 10")
    assert host.iperf() < 11
    host.run("ip link set eth0 vf 0 max_tx_rate 0; ip link set eth0 vf 2 trust on")
    assert host.vf(2)["trust"]
    host.run("ip link set eth0 vf 2 trust off; ip link set eth0 vf 2 mac 02:00:00:00:00:12")
    assert host.vf(2)["mac" if "mac" in host.vf(2) else "address"] == "02:00:00:00:00:12"
    rebind = "cd /sys/bus/pci/drivers/igbvf; echo 0000:01:10.4 > unbind; echo 0000:01:10.4 > bind"
    host.run(f"{rebind}; give c 10.4 10.0.0.5; linked c", 200)
    assert host.run("ip netns exec c cat /sys/class/net/v0/address").strip() == "02:00:00:00:00:12"
    assert host.reaches("10.0.0.5")
    # An address that is not its own: igb lets no VF add one whose own address it has fixed.
    host.run("ip -n c link add link v0 name spoof address 02:00:00:00:00:77 type macvlan mode private")
    host.run("ip -n c link set dev spoof up; ip -n c addr add 10.0.0.4/24 dev spoof")
    for check, caught in (("on", True), ("off", False)):
        host.run(f"ip link set eth0 vf 2 spoofchk {check}")
        assert host.vf(2)["spoofchk"] is caught
        before = host.rig.nic.drops(2).get("mac-spoof", 0)
        host.rig.attempt(0, "ip netns exec c ping -q -c 3 -i .2 -W 1 -I spoof 10.0.0.3")
        assert (host.rig.nic.drops(2).get("mac-spoof", 0) > before) is caught
    host.run("ip link set eth0 vf 2 spoofchk on; ip -n c link del spoof")
    for refused in ("min_tx_rate 5", "state disable"):
        assert host.rig.attempt(0, f"ip link set eth0 vf 0 {refused}").status, "igb has neither"


# What no card has, but Linux's network devices.
OF_LINUX = {
    "txqlen", "allmulti", "inet6_addr_gen_mode", "num_tx_queues", "num_rx_queues", "gso_max_size", "gso_max_segs",
    "tso_max_size", "tso_max_segs", "gro_max_size", "gso_ipv4_max_size", "gro_ipv4_max_size",
}  # fmt: skip


def without_counts(line: str) -> str:
    """Take the numbers, and their places, out of a line of counters, which go on between two questions."""
    return "counters" if re.fullmatch(r"[ 0-9]+", line) else line


def test_virtfn_link_shows_what_ip_shows(host: Host):
    """The same settings, once in Linux with stock igb, and once in a lab with the driver of virtfn's own."""
    host.run("ip link set eth0 vf 0 vlan 7 qos 3 max_tx_rate 100; ip link set eth0 vf 1 spoofchk off")
    host.run(
        "ip link set eth0 vf 2 trust on vlan 20 mac 02:00:00:00:00:12; ip link set eth0 vf 3 mac 02:00:00:00:00:13"
    )
    (theirs,) = host.rig.json(0, "ip -j -d -s link show eth0")
    brief = host.run("ip link show eth0").splitlines()
    full = host.run("ip -d -s link show eth0").splitlines()
    host.run("ip link set eth0 vf 0 vlan 0 max_tx_rate 0; ip link set eth0 vf 1 spoofchk on")
    host.run("ip link set eth0 vf 2 trust off vlan 0")
    macs = [vf["address"] for vf in theirs["vfinfo_list"]]
    settings = ("vlan-id: 7, qos: 3, max-tx-rate: 100", "spoof-check: false", "trust: true, vlan-id: 20", "qos: 0")
    vfs = ", ".join(
        f'{{id: {n}, mac-address: "{mac}", {words}}}' for n, (mac, words) in enumerate(zip(macs, settings, strict=True))
    )
    with Session(parse_lab(lab_text(policies=f"[{vfs}]", link_mbps=1000))) as session:
        session.start()
        (ours,) = session.ask(ShowLinks())
    for name in ("ifindex", "ifname", "qdisc", "address", "max_mtu"):
        ours[name] = theirs[name]
    for vf in ours["vfinfo_list"]:
        assert vf.pop("query_rss_en") is False, "igb says nothing of it"
    assert ours["vfinfo_list"] == theirs["vfinfo_list"]
    assert set(theirs) - set(ours) <= OF_LINUX
    assert {way: set(counts) for way, counts in ours["stats64"].items()} == {
        way: set(counts) for way, counts in theirs["stats64"].items()
    }
    assert {name: ours[name] for name in ours if name not in ("stats64", "vfinfo_list")} == {
        name: theirs.get(name) for name in ours if name not in ("stats64", "vfinfo_list")
    }
    # And as text.
    for vf in ours["vfinfo_list"]:
        vf["query_rss_en"] = False
    ours["stats64"] = theirs["stats64"]
    shown = render_links([ours], details=False, statistics=False).replace(", query_rss off", "").splitlines()
    assert shown == [line.replace(f" qlen {theirs['txqlen']}", "").rstrip() for line in brief]
    shown = render_links([ours], details=True, statistics=True).replace(", query_rss off", "").splitlines()
    assert [without_counts(line) for line in shown[2:]] == [without_counts(line) for line in full[2:]]
    details = iter(full[1].split())
    assert all(word in details for word in shown[1].split()), "in the same order, with what is Linux's between"


def test_resets_of_a_vf_and_of_the_pf(host: Host):
    # Since 6.6 igbvf takes its interface down for a reset and up again, and waits for ever if it is down already.
    down = "" if host.linux() >= (6, 6) else "ip -n b link set dev v0 down; "
    host.run(f"{down}echo 1 > /sys/bus/pci/devices/0000:01:10.2/reset")
    host.run("ip -n b link set dev v0 up; sleep 3")
    host.run("linked b")
    assert host.reaches()
    host.run(f"ip link set eth0 down; echo flr > {CARD}/reset_method; echo 1 > {CARD}/reset; ip link set eth0 up")
    assert "Enable+" in host.run("lspci -vvv -s 01:00.0 | grep IOVCtl")
    assert host.rig.nic.vfs == 4, "Linux has restored SR-IOV"
    # VFs are new after it, and Linux tells their drivers nothing: as on silicon they have to be bound anew.
    host.run(
        "cd /sys/bus/pci/drivers/igbvf; for v in 0 2; do echo 0000:01:10.$v > unbind; echo 0000:01:10.$v > bind; done"
    )
    host.run("for i in $(seq 200); do [ $(cat /sys/class/net/eth0/carrier) = 1 ] && exit; sleep .1; done; exit 1")
    host.two()
    assert host.reaches()
    assert host.open_bars() == 8


def test_numbers_of_vfs_up_and_down_and_drivers_away_and_back(host: Host):
    host.run("ip link set eth0 down; for n in a b c; do ip netns del $n; done; true")
    host.number(0)
    assert host.vfs_seen() == []
    host.rig.until(lambda: host.open_bars() == 0, "closed BARs")
    for count in (1, 7, 2):
        host.number(count)
        assert len(host.vfs_seen()) == host.rig.nic.vfs == count
        host.number(0)
    host.run("rmmod igbvf; rmmod igb && modprobe igb max_vfs=3 && modprobe igbvf", 200)
    assert host.vfs_seen() == ["10.0", "10.2", "10.4"]
    host.run("ip link set eth0 up; ip addr replace 10.0.0.1/24 dev eth0")
    host.two("10.2", "10.4")
    assert host.reaches()
    host.run("rmmod igbvf; rmmod igb; modprobe igb; modprobe igbvf", 200)
    placement = host.rig.vms[0].placements[host.rig.nic.pf_rid]
    assert placement.counts["by dma"] > 10
    assert not placement.counts["failed"], placement.why


@pytest.mark.long
def test_all_seven_vfs_hear_each_other_and_again(host: Host):
    host.run("ip link set eth0 up; ip addr replace 10.0.0.1/24 dev eth0")
    for _ in range(2):
        assert host.all_seven() == []
        assert host.rig.nic.vfs == 7
        host.number(0)
        host.rig.until(lambda: host.open_bars() == 0, "closed BARs")


def test_a_reboot_and_a_power_cut_with_vfs_on(host: Host):
    rig = host.rig
    host.reboot()
    assert rig.nic.vfs == 0
    assert host.vfs_seen() == []
    host.run("ip link set eth0 up; ip addr replace 10.0.0.1/24 dev eth0")
    host.number(3)
    host.two()
    assert host.reaches()
    rig.start(0, "poweroff -f")
    assert rig.vms[0].guest.wait_end(timeout_s=120, tick=rig.pump) == 0
    rig.until(lambda: rig.nic.vfs == 0, "a card as new")
