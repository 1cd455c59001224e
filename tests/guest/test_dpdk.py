"""DPDK's own driver of the VF, which polls from user space: another guest's pings are answered by testpmd."""

from __future__ import annotations

import pytest

from guest.bed import LinuxBed, guest_mac
from virtfn.hw.types import format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import cache_folder
from virtfn.vmm.qemu.image import Image, build_image

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
PACKAGES = ("dpdk-dev", "librte-net-e1000-23", "librte-mempool-ring23", "librte-bus-pci23")
# Debian's kernel has no VFIO without an IOMMU. DPDK loads no drivers from a folder that everybody may write to.
BIND = f"""chmod 755 / && mkdir -p /dev/hugepages /var/run && mount -t hugetlbfs none /dev/hugepages &&
cd /sys/bus/pci/devices/{PCI} && echo {PCI} >driver/unbind && echo uio_pci_generic >driver_override &&
echo {PCI} >/sys/bus/pci/drivers_probe && test -e /dev/uio0"""
TESTPMD = (
    f"dpdk-testpmd --lcores 0@0,1@0 -a {PCI} --no-telemetry -m 128 -- "
    "--forward-mode=icmpecho --auto-start --stats-period 1 --total-num-mbufs=4096 --no-mlockall"
)


@pytest.fixture(scope="module")
def image_with_dpdk() -> Image:
    try:
        return build_image(cache=cache_folder(), extra_modules=("macvlan", "uio_pci_generic"), extra_packages=PACKAGES)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")


def test_testpmd_echoes_over_a_vf(qemu, image, image_with_dpdk, logs):
    with LinuxBed(qemu, image_with_dpdk, logs, memory_mib=512, append="hugepages=100") as bed:
        bed.up(0)
        bed.run(1, BIND)
        bed.start(1, f"{TESTPMD} >/tmp/testpmd.log 2>&1")
        started = "grep -q 'Port statistics' /tmp/testpmd.log"
        bed.until(lambda: bed.attempt(1, started).status == 0, "testpmd", timeout_s=60)
        said = bed.run(1, "cat /tmp/testpmd.log")
        assert "Probe PCI driver: net_e1000_igb_vf (8086:10ca)" in said
        assert f"Port 0: {format_mac(guest_mac(1))}" in said
        assert bed.ping(0, "10.0.0.77", "-c 10 -i 0.2 -W 5") == (10, 10)
        assert format_mac(guest_mac(1)) in bed.run(0, "ip neigh show 10.0.0.77")
        assert not bed.host.iommu.faults()
