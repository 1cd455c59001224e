"""What people use judges the card of a host: udev, networkd, NetworkManager, libvirt and DPDK, of Debian's packages.

One machine with systemd and an IOMMU of its own, which takes a minute or more to boot, for all tests, which go
on from each other. What was set is read in the card's registers, and felt by traffic.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.hostrig import CARD, Host
from guest.rig import LinuxRig
from virtfn.hw.i82576.regs import Regs
from virtfn.hw.i82576.rxtx import DTXSWC, VMVIR
from virtfn.hw.types import format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu, cache_folder
from virtfn.vmm.qemu.image import Image, build_image

pytestmark = [pytest.mark.guest, pytest.mark.long]

FILES = Path(__file__).with_name("userland")
PYTHON = (
    "libpython3.11-minimal", "libpython3.11-stdlib", "python3", "python3-minimal", "python3.11", "python3.11-minimal",
)  # fmt: skip
PACKAGES = (
    *("systemd", "udev", "dbus", "dbus-bin", "dbus-daemon", "dbus-system-bus-common", "libgcc-s1"),
    "network-manager",
    *("libvirt0", "libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu"),
    *("dpdk", "dpdk-dev", "librte-bus-pci23", "librte-mempool-ring23", "librte-net-e1000-23", *PYTHON),
)
MODULES = ("autofs4", "macvlan", "vfio_iommu_type1", "vfio_pci")
IOMMU = ("-device", "intel-iommu,intremap=on,caching-mode=on,aw-bits=48")
MEMORY_MIB = 1280
LINE = (
    "intel_iommu=on iommu=pt hugepages=96 systemd.unit=userland.target systemd.condition-needs-update=no "
    "systemd.log_color=no systemd.mask=systemd-binfmt.service"
)
VFS = ("0000:01:10.0", "0000:01:10.2", "0000:01:10.4")
VIRSH = "LC_ALL=C virsh -q"
TOKEN = "14d63f20-8445-11ea-8900-1f9ce7d5650d"
TESTPMD = "dpdk-testpmd --lcores 0@0,1@0 --no-telemetry -m 128"


class Userland(Host):
    """The machine, and what its card has been told."""

    def vlan(self, n: int) -> tuple[int, int]:
        """Return VLAN and priority that the card gives to frames of VF `n`."""
        tag = VMVIR(self.rig.nic.port.registers.peek(Regs.VMVIR, n)).PORT_VLAN
        return tag & 0xFFF, tag >> 13

    def spoof_check(self, n: int) -> bool:
        """Tell whether the card checks the source addresses of VF `n`."""
        return bool(DTXSWC(self.rig.nic.port.registers.peek(Regs.DTXSWC)).MACAS >> n & 1)

    def addresses(self, n: int) -> list[str]:
        """Return the addresses that the card takes in for VF `n`."""
        entries = (self.rig.nic.port.l2switch.address(entry) for entry in range(24))
        return [format_mac(mac) for mac, rah in entries if rah.AV and rah.POOLSEL >> n & 1]

    def probe_again(self, *vfs: str) -> None:
        """Bind igbvf to VFs anew: it asks the PF for its address when it is bound."""
        at = "/sys/bus/pci/drivers/igbvf"
        self.run("".join(f"echo {vf} > {at}/unbind; echo {vf} > {at}/bind; " for vf in vfs) + "udevadm settle", 200)

    def spoofed(self) -> int:
        """Let VF 2, in namespace c, send with an address that is not its own; count what the card dropped for that."""
        self.run(
            "ip -n c link add link v0 name spoof address 02:00:00:00:00:77 type macvlan mode private;"
            "ip -n c link set dev spoof up; ip -n c addr add 10.0.0.4/24 dev spoof"
        )
        before = self.rig.nic.drops(2).get("mac-spoof", 0)
        self.rig.attempt(0, "ip netns exec c ping -q -c 3 -i .2 -W 1 -I spoof 10.0.0.3")
        self.run("ip -n c link del spoof")
        return self.rig.nic.drops(2).get("mac-spoof", 0) - before

    def settled(self, condition: str, timeout_s: float = 60.0) -> None:
        """Wait until a command succeeds in the guest."""
        what = f"what makes '{condition}' true"
        self.rig.until(lambda: self.rig.attempt(0, condition).status == 0, what, timeout_s=timeout_s)

    def no_spaces(self) -> None:
        """Give all VFs back to the machine."""
        self.run("for n in $(ip netns list | cut -d' ' -f1); do ip netns del $n; done; sleep 1; udevadm settle")


@pytest.fixture(scope="module")
def systemd_image() -> Image:
    files = {file.relative_to(FILES).as_posix(): file for file in FILES.rglob("*") if file.is_file()}
    try:
        return build_image(cache=cache_folder(), extra_packages=PACKAGES, extra_files=files, extra_modules=MODULES)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture(scope="module")
def userland(qemu: Qemu, systemd_image: Image, logs: Path) -> Iterator[Userland]:
    with LinuxRig(
        qemu, systemd_image, logs, guests=1, host=True, vfs=8, memory_mib=MEMORY_MIB, cpus=2, extra=IOMMU, append=LINE,
        boot_s=900,
    ) as rig:  # fmt: skip
        rig.nic.port.set_wire(True, 0)
        host = Userland(rig, "pf0")
        yield host
        assert not rig.host.iommu.faults()


@pytest.fixture(autouse=True)
def no_complaint(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "userland" in request.fixturenames:
        assert request.getfixturevalue("userland").complaints() == []


def test_udev_makes_vfs_and_gives_them_policies(userland: Userland) -> None:
    """A .link file: SR-IOVVirtualFunctions= and [SR-IOV]; nobody has written to sysfs."""
    userland.settled("[ -e /sys/class/net/pf0 ] && udevadm settle")
    assert userland.rig.nic.vfs == 3
    assert userland.vfs_seen() == ["10.0", "10.2", "10.4"]
    assert [userland.vlan(n) for n in range(3)] == [(7, 3), (0, 0), (0, 0)]
    assert userland.vf(1)["trust"]
    assert not userland.vf(2)["spoofchk"]
    userland.run("ip link set pf0 up; ip addr add 10.0.0.1/24 dev pf0")
    userland.probe_again(*VFS)
    assert userland.addresses(0) == ["02:00:00:00:00:70"]
    userland.two()
    userland.run("give c 10.4 10.0.0.5; linked c")
    assert userland.answered("10.0.0.3") == 0, "VF 0 is alone in its VLAN"
    assert [userland.vlan(n) for n in range(3)] == [(7, 3), (0, 0), (0, 0)], "it is so when all are up, too"
    assert [userland.spoof_check(n) for n in range(3)] == [True] * 3, (
        "igb checks all when the PF comes up, but says off"
    )
    assert userland.spoofed() > 0


def test_networkd_gives_them_others(userland: Userland) -> None:
    """A .network file with [SR-IOV] sections."""
    userland.run("systemctl start systemd-networkd")
    userland.settled("networkctl status pf0 | grep -q 'State:.*(configured)'")
    assert [userland.vlan(n) for n in range(3)] == [(7, 3), (7, 0), (0, 0)]
    assert [userland.spoof_check(n) for n in range(3)] == [True, True, False]
    assert not userland.vf(1)["trust"]
    assert userland.spoofed() == 0
    userland.run("ip netns del b; udevadm settle")
    userland.probe_again(VFS[1])
    assert userland.addresses(1) == ["02:00:00:00:00:71"]
    userland.run("give b 10.2 10.0.0.3; linked b")
    assert userland.reaches(), "now both are in VLAN 7"
    userland.no_spaces()
    userland.run("systemctl stop systemd-networkd systemd-networkd.socket; ip addr flush dev pf0")


def test_networkmanager_makes_vfs_and_gives_them_policies(userland: Userland) -> None:
    """A connection with sriov.total-vfs and sriov.vfs."""
    userland.run("systemctl start NetworkManager && nm-online -s -q -t 200", 240)
    vfs = (
        "0 mac=02:00:00:00:00:a0 vlans=9 spoof-check=true trust=true max-tx-rate=10",
        "1 vlans=9.2 spoof-check=false",
    )
    userland.run(
        "nmcli connection add type ethernet con-name card ifname pf0 autoconnect no ipv4.method disabled "
        f"ipv6.method disabled sriov.total-vfs 2 sriov.vfs '{', '.join(vfs)}' && nmcli -w 200 connection up card",
        240,
    )
    userland.settled("udevadm settle")
    assert userland.rig.nic.vfs == 2
    assert [userland.vlan(n) for n in range(2)] == [(9, 0), (9, 2)]
    assert [userland.spoof_check(n) for n in range(2)] == [True, False]
    assert userland.vf(0)["trust"]
    assert not userland.vf(1)["trust"]
    userland.probe_again(VFS[0])
    assert "02:00:00:00:00:a0" in userland.addresses(0)
    userland.two()
    assert userland.reaches()
    assert userland.iperf() < 11
    userland.no_spaces()
    userland.run("nmcli -w 200 connection down card", 240)
    assert userland.rig.nic.vfs == 0
    userland.run("nmcli connection delete card; systemctl stop NetworkManager")


def test_libvirt_finds_the_functions_and_makes_a_pool_of_them(userland: Userland) -> None:
    """Devices of nodes, a network of kind hostdev, and a VF that goes to vfio-pci and back."""
    userland.number(3)
    userland.run("ip link set pf0 up; udevadm settle; libvirtd -d", 120)
    userland.settled(f"{VIRSH} -c nodedev:///system nodedev-list >/dev/null", 120)

    def devices(capability: str) -> list[str]:
        return userland.run(f"{VIRSH} -c nodedev:///system nodedev-list --cap {capability}").split()

    def dumped(words: str) -> ET.Element:
        return ET.fromstring(userland.run(f"{VIRSH} -c {words}"))

    def addresses(parent: ET.Element | None) -> list[str]:
        assert parent is not None
        parts = [[int(at.attrib[key], 16) for key in ("bus", "slot", "function")] for at in parent.iter("address")]
        return ["0000:{:02x}:{:02x}.{:x}".format(*part) for part in parts]

    names = [f"pci_{address.replace(':', '_').replace('.', '_')}" for address in VFS]
    assert {"pci_0000_01_00_0", *names} <= set(devices("pci"))
    assert devices("vports") == [], "those are of Fibre Channel"
    card = dumped("nodedev:///system nodedev-dumpxml pci_0000_01_00_0")
    has = card.find(".//capability[@type='virt_functions']")
    assert has is not None
    assert has.attrib["maxCount"] == "7"
    assert addresses(has) == list(VFS)
    assert card.findtext("driver/name") == "igb"
    groups = set()
    for address, name in zip(VFS, names, strict=True):
        vf = dumped(f"nodedev:///system nodedev-dumpxml {name}")
        assert addresses(vf.find(".//capability[@type='phys_function']")) == ["0000:01:00.0"]
        assert vf.findtext("driver/name") == "igbvf"
        group = vf.find(".//iommuGroup")
        assert group is not None
        assert addresses(group) == [address], "each VF is in a group of its own"
        groups.add(group.attrib["number"])
    assert len(groups) == len(VFS)

    networks = f"{VIRSH} -c network:///system"
    pool = "<network><name>vfs</name><forward mode='hostdev' managed='yes'><pf dev='pf0'/></forward></network>"
    userland.run(f'echo "{pool}" >/tmp/pool.xml; {networks} net-define /tmp/pool.xml && {networks} net-start vfs')
    assert addresses(dumped("network:///system net-dumpxml vfs").find("forward")) == list(VFS)
    userland.run(f"{networks} net-destroy vfs; {networks} net-undefine vfs")

    driver = f"basename $(readlink /sys/bus/pci/devices/{VFS[1]}/driver)"
    for command, then in (("detach", "vfio-pci"), ("reset", "vfio-pci"), ("reattach", "igbvf")):
        userland.run(f"{VIRSH} -c qemu:///system nodedev-{command} {names[1]}", 120)
        assert userland.run(driver).strip() == then
    userland.run("kill $(pidof libvirtd)")


class Testpmd:
    """DPDK's testpmd over some functions of the card, at its prompt."""

    __test__ = False

    def __init__(self, host: Userland, functions: tuple[str, ...], options: str = "") -> None:
        self.host = host
        named = " ".join(f"-a {function}" for function in functions)
        host.run("rm -f /tmp/ask; mkfifo /tmp/ask")
        host.rig.start(0, "sleep 9999 >/tmp/ask")
        more = "--total-num-mbufs=4096 --no-mlockall"
        host.rig.start(0, f"{TESTPMD} {named} {options} -- -i {more} </tmp/ask >/tmp/said 2>&1; echo over >>/tmp/said")
        host.settled("grep -q -e 'testpmd>' -e '^over$' /tmp/said", 200)
        self.said = host.run("cat /tmp/said")
        assert "over" not in self.said.splitlines(), self.said

    def say(self, *commands: str) -> str:
        """Give commands at the prompt, and return what came of them."""
        size = int(self.host.run("wc -c </tmp/said"))
        lines = "".join(f"{command}\\n" for command in (*commands, "show port summary 99"))
        self.host.run(f"printf '{lines}' >/tmp/ask")
        self.host.settled(f"tail -c +{size + 1} /tmp/said | grep -q 'Invalid port 99'")
        return self.host.run(f"tail -c +{size + 1} /tmp/said")

    def addresses(self) -> list[str]:
        """Return the addresses of its ports."""
        return [mac.lower() for mac in re.findall(r"^Port \d+: (\S+)", self.said, re.MULTILINE)]

    def circle(self, first: int, second: int, seconds: int = 3) -> tuple[int, int]:
        """Let frames go around between two ports that are VFs 0 and 1; count what the card took in from each."""
        macs = self.addresses()
        nic = self.host.rig.nic
        self.say(
            f"set portlist {first},{second}", "set fwd mac",
            f"set eth-peer {first} {macs[second]}", f"set eth-peer {second} {macs[first]}",
        )  # fmt: skip
        before = [nic.moved(nic.vf_rid(n)).tx_frames for n in range(2)]
        self.say("start tx_first")
        self.host.rig.pause(1000 * seconds)
        self.say("stop")
        after = [nic.moved(nic.vf_rid(n)).tx_frames for n in range(2)]
        return after[0] - before[0], after[1] - before[1]

    def quit(self) -> None:
        """End it."""
        self.host.run("echo quit >/tmp/ask")
        self.host.settled("grep -q '^over$' /tmp/said")
        self.host.run("pkill -x sleep; true")


def test_dpdk_forwards_between_two_vfs(userland: Userland) -> None:
    """dpdk-devbind gives two VFs to vfio-pci; testpmd lets frames go around; the PF is igb's, and its policies hold."""
    userland.run("ip link set pf0 vf 0 mac 02:00:00:00:00:d0; ip link set pf0 vf 1 mac 02:00:00:00:00:d1")
    userland.run(f"modprobe vfio-pci; dpdk-devbind.py -b vfio-pci {VFS[0]} {VFS[1]}", 200)
    status = userland.run("dpdk-devbind.py --status-dev net", 120)
    assert len(re.findall(r"0000:01:10\.[02] '82576 Virtual Function 10ca' drv=vfio-pci", status)) == 2, status
    testpmd = Testpmd(userland, VFS[:2])
    assert "Probe PCI driver: net_e1000_igb_vf (8086:10ca) device: 0000:01:10.2" in testpmd.said
    assert testpmd.addresses() == ["02:00:00:00:00:d0", "02:00:00:00:00:d1"]
    there, back = testpmd.circle(0, 1)
    assert min(there, back) > 1000
    userland.run("ip link set pf0 vf 0 vlan 7")
    there, back = testpmd.circle(0, 1)
    assert max(there, back) < 1000, "they are in different VLANs: what is sent first comes to nobody"
    userland.run("ip link set pf0 vf 0 vlan 0")
    assert min(testpmd.circle(0, 1)) > 1000
    testpmd.quit()
    userland.run(f"dpdk-devbind.py -b igbvf {VFS[0]} {VFS[1]}", 200)


def test_dpdk_is_the_driver_of_the_pf_as_well(userland: Userland) -> None:
    """vfio-pci makes the VFs, and DPDK's igb serves their mailboxes. It has no `set vf` commands, and says so."""
    userland.number(0)
    userland.run(
        f"dpdk-devbind.py -b vfio-pci 0000:01:00.0 && echo 1 >/sys/module/vfio_pci/parameters/enable_sriov && "
        f"echo 2 >{CARD}/sriov_numvfs",
        200,
    )
    assert userland.rig.nic.vfs == 2
    testpmd = Testpmd(userland, ("0000:01:00.0", *VFS[:2]), f"--vfio-vf-token={TOKEN}")
    assert "Probe PCI driver: net_e1000_igb (8086:10c9) device: 0000:01:00.0" in testpmd.said
    for n, mac in enumerate(testpmd.addresses()[1:]):
        assert mac in userland.addresses(n), "the PF has given it"
    assert min(testpmd.circle(1, 2)) > 1000
    before = userland.vlan(0), userland.spoof_check(0), userland.addresses(0)
    for command in (
        "set vf vlan insert 0 0 7", "set vf vlan antispoof 0 0 on", "set vf mac antispoof 0 0 on",
        "set vf mac addr 0 0 02:00:00:00:00:99", "set port 0 vf 0 rate 10 queue_mask 0x1",
    ):  # fmt: skip
        answer = testpmd.say(command)
        assert re.search("not implemented|not supported|ENOTSUP|failed", answer, re.IGNORECASE), answer
    assert (userland.vlan(0), userland.spoof_check(0), userland.addresses(0)) == before
    testpmd.quit()
    userland.run(f"echo 0 >{CARD}/sriov_numvfs; dpdk-devbind.py -b igb 0000:01:00.0", 200)
