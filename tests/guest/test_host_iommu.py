"""A host whose own IOMMU translates: VFs are placed past it, and vfio-pci may have one.

One machine for all tests, which go on from each other.
"""

from __future__ import annotations

import os
import signal

import pytest

from guest.hostrig import Host
from guest.rig import LinuxRig

pytestmark = [pytest.mark.guest, pytest.mark.long]

DEVICES = "/sys/bus/pci/devices/0000:01:"
GROUP = f"basename $(readlink {DEVICES}{{}}/iommu_group)"


@pytest.fixture(scope="module")
def host(qemu, image, logs):
    words = "intel_iommu=on iommu=nopt"
    with LinuxRig(
        qemu, image, logs, guests=1, host=True, vfs=8, memory_mib=384, reboot=True, iommu=True, append=words
    ) as rig:
        rig.nic.port.set_wire(True, 0)
        rig.run(0, "ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0")
        yield Host(rig)


@pytest.fixture(autouse=True)
def no_complaint(host: Host):
    yield
    assert host.complaints() == []


def test_vfs_behind_it_have_groups_of_their_own_and_talk(host: Host) -> None:
    host.number(2)
    groups = host.run("; ".join(GROUP.format(at) for at in ("00.0", "10.0", "10.2"))).split()
    assert len(set(groups)) == 3
    for group in groups:
        assert host.run(f"ls /sys/kernel/iommu_groups/{group}/devices | wc -l").strip() == "1"
        assert host.run(f"cat /sys/kernel/iommu_groups/{group}/type").startswith("DMA")
    placement = host.rig.vms[0].placements[host.rig.nic.pf_rid]
    assert placement.counts["by ports"]
    assert not placement.counts["failed"], placement.why
    assert host.open_bars() == 4
    host.two()
    assert host.reaches("10.0.0.3")
    assert host.reaches("10.0.0.1")
    assert "dma_unmap" not in host.rig.vms[0].guest.errors


def test_vfio_pci_takes_a_vf_and_gives_it_back(host: Host) -> None:
    rebind = f"cd {DEVICES}10.2; echo 0000:01:10.2 >driver/unbind; echo {{}} >driver_override; "
    rebind += "echo 0000:01:10.2 >/sys/bus/pci/drivers_probe; basename $(readlink driver)"
    host.run("ip netns del b")
    assert host.run(rebind.format("vfio-pci")).split() == ["vfio-pci"]
    assert host.run(f"test -c /dev/vfio/$({GROUP.format('10.2')}); echo $?").split() == ["0"]
    assert host.run(rebind.format("")).split() == ["igbvf"]
    host.two()
    assert host.reaches()


def test_all_seven_vfs_hear_each_other(host: Host) -> None:
    assert host.all_seven() == []
    host.number(0)


def test_a_reboot_with_vfs_on(host: Host) -> None:
    host.number(3)
    host.two()
    host.reboot()
    assert host.rig.nic.vfs == 0
    assert host.vfs_seen() == []
    host.run("ip link set eth0 up; ip addr replace 10.0.0.1/24 dev eth0")
    host.number(2)
    host.two()
    assert host.reaches()
    assert host.reaches("10.0.0.1")


def test_a_killed_machine_leaves_the_card_to_the_next(host: Host) -> None:
    """QEMU is killed while VFs send; another machine gets the card."""
    rig, vm = host.rig, host.rig.vms[0]
    rig.start(0, "ip netns exec b iperf3 -s -1 >/dev/null & sleep 1; ip netns exec a iperf3 -t 60 -c 10.0.0.3")
    moved = rig.nic.moved(rig.nic.vf_rid(0)).tx_frames
    rig.until(lambda: rig.nic.moved(rig.nic.vf_rid(0)).tx_frames > moved + 500, "frames")
    os.kill(vm.guest.pid, signal.SIGKILL)
    rig.until(lambda: not vm.guest.running and rig.nic.vfs == 0, "a card as new")
    rig.drop_guest(vm)
    rig.iovm.take_back_whole(rig.nic.pf_rid)
    assert not rig.host.remapping.domains
    assert not rig.host.iommu.faults()
    next_one = rig.add_guest("vm1")
    rig.iovm.assign_host(rig.pcim.functions[rig.nic.pf_rid], rig.nic, next_one)
    rig.boot(next_one)
    rig.nic.port.set_wire(True, 0)
    host.run("ip link set eth0 up; ip addr replace 10.0.0.1/24 dev eth0")
    assert host.vfs_seen() == []
    host.number(2)
    host.two()
    assert host.reaches()
    assert host.reaches("10.0.0.1")
