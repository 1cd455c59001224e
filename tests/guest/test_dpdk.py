"""DPDK's own drivers, which poll from user space: testpmd answers pings, over a VF and over the whole PF."""

from __future__ import annotations

import dpkt
import pytest

from guest.rig import CARD_MAC, LinuxRig, guest_mac
from virtfn.hw.types import format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import cache_folder
from virtfn.vmm.qemu.image import Image, build_image

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
STRANGER = bytes.fromhex("0200000000ee")
PACKAGES = ("dpdk-dev", "librte-net-e1000-23", "librte-mempool-ring23", "librte-bus-pci23")
# Debian's kernel has no VFIO without an IOMMU.
BIND = f"""mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages &&
cd /sys/bus/pci/devices/{PCI} && echo {PCI} >driver/unbind && echo uio_pci_generic >driver_override &&
echo {PCI} >/sys/bus/pci/drivers_probe && test -e /dev/uio0"""
TESTPMD = (
    f"dpdk-testpmd --lcores 0@0,1@0 -a {PCI} --no-telemetry -m 128 -- "
    "--forward-mode=icmpecho --auto-start --stats-period 1 --total-num-mbufs=4096 --no-mlockall"
)


@pytest.fixture(scope="module")
def image_with_dpdk() -> Image:
    try:
        return build_image(cache=cache_folder(), extra_modules=("uio_pci_generic",), extra_packages=PACKAGES)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")


def start_testpmd(rig: LinuxRig, n: int) -> str:
    """Start testpmd in guest `n`; return what it said until it forwards."""
    rig.run(n, BIND)
    rig.start(n, f"{TESTPMD} >/tmp/testpmd.log 2>&1")
    started = "grep -q 'Port statistics' /tmp/testpmd.log"
    rig.until(lambda: rig.attempt(n, started).status == 0, "testpmd", timeout_s=60)
    return rig.run(n, "cat /tmp/testpmd.log")


def test_testpmd_echoes_over_a_vf(qemu, image, image_with_dpdk, logs):
    with LinuxRig(qemu, image_with_dpdk, logs, memory_mib=512, append="hugepages=100") as rig:
        rig.up(0)
        said = start_testpmd(rig, 1)
        assert "Probe PCI driver: net_e1000_igb_vf (8086:10ca)" in said
        assert f"Port 0: {format_mac(guest_mac(1))}" in said
        assert rig.ping(0, "10.0.0.77", "-c 10 -i 0.2 -W 5") == (10, 10)
        assert format_mac(guest_mac(1)) in rig.run(0, "ip neigh show 10.0.0.77")
        assert not rig.host.iommu.faults()


@pytest.mark.long
def test_testpmd_echoes_over_the_whole_card(qemu, image_with_dpdk, logs):
    with LinuxRig(qemu, image_with_dpdk, logs, guests=1, whole=True, memory_mib=512, append="hugepages=100") as rig:
        rig.nic.port.set_wire(True, 0)
        said = start_testpmd(rig, 0)
        assert "Probe PCI driver: net_e1000_igb (8086:10c9)" in said
        assert f"Port 0: {format_mac(CARD_MAC)}".lower() in said.lower()
        asked = [ping_frame(n) for n in range(50)]
        with rig.capture() as frames:
            rig.inject(*asked)
            rig.pause(2000)
        assert answers(frames) == [(STRANGER, n, bytes([n]) * 200) for n in range(50)]
        assert not rig.host.iommu.faults()


def ping_frame(n: int) -> bytes:
    """Make a ping from the wire, the n-th."""
    echo = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=7, seq=n, data=bytes([n]) * 200))
    packet = dpkt.ip.IP(src=bytes([10, 0, 0, 9]), dst=bytes([10, 0, 0, 77]), p=1, ttl=64, data=echo)
    return bytes(dpkt.ethernet.Ethernet(dst=CARD_MAC.to_bytes(6, "little"), src=STRANGER, data=packet))


def answers(frames: list[tuple[int | None, bool, bytes]]) -> list[tuple[bytes, int, bytes]]:
    """Find the answers that left: (to whom, number, data)."""
    out = [dpkt.ethernet.Ethernet(frame) for who, sent, frame in frames if who is None and sent]
    icmp = [(e.dst, e.data.data) for e in out if isinstance(e.data, dpkt.ip.IP) and e.data.p == 1]
    return [(to, i.data.seq, i.data.data) for to, i in icmp if i.type == 0]
