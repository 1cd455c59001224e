"""iPXE's own drivers, before any kernel: an address by DHCP, over a VF and over the whole PF."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from guest.rig import CARD_MAC, LinuxRig, guest_mac
from unit.vmm.uplink.outside import ADDRESS, run_passt
from virtfn.hw.types import Mac, format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import cache_folder, debian
from virtfn.vmm.qemu.vm import QemuVm
from virtfn.vmm.uplink import StreamUplink, Wire

pytestmark = pytest.mark.guest

LEASED = "10.0.0.50"
SERVER = f"""start {LEASED}
end {LEASED}
interface eth0
option subnet 255.255.255.0
lease_file /tmp/leases
"""
# iPXE takes a kernel's command line for commands of its own; the first, which is meant for Linux, is none.
COMMANDS = "|| dhcp net0 && ifstat net0 && echo leased ${net0/ip} && sleep 60"
SERIAL_SCREEN = ("-machine", "graphics=off")  # then the firmware's screen is the serial port


def boot_ipxe(rig: LinuxRig, ipxe: Path) -> QemuVm:
    """Start a guest that has no kernel but iPXE, and does not run yet."""
    return rig.add_guest(
        "ipxe", lambda m: replace(m, kernel=ipxe, initrd=None, append=COMMANDS, extra=(*m.extra, *SERIAL_SCREEN))
    )


def lease(rig: LinuxRig, vm: QemuVm, ip: str, mac: Mac) -> str:
    """Let it run until it has that address; return the driver that it has for the card."""
    vm.run()
    vm.guest.console.wait_for(rf"leased {ip}", timeout_s=90, tick=rig.pump)
    said = vm.guest.console.text()
    driver = re.search(rf"net0: {format_mac(mac)} using (\w+) on", said)
    assert driver is not None, said
    assert "Link:up" in said
    return driver[1]


@pytest.fixture(scope="module")
def ipxe(tmp_path_factory) -> Path:
    """Debian's iPXE with all its drivers, as a kernel."""
    root = tmp_path_factory.mktemp("ipxe")
    try:
        debian.unpack(debian.fetch(["ipxe"], depends=False, cache=cache_folder()), root)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")
    return root / "boot" / "ipxe.lkrn"


def test_ipxe_gets_an_address_over_a_vf(qemu, image, logs, ipxe):
    with LinuxRig(qemu, image, logs, guests=1, vfs=2) as rig:
        rig.up(0)
        rig.run(0, f"printf '{SERVER}' >/tmp/udhcpd.conf && touch /tmp/leases && udhcpd /tmp/udhcpd.conf")
        vm = boot_ipxe(rig, ipxe)
        rig.iovm.assign(rig.vfs[1], vm, mac=guest_mac(1))
        # Whichever of its drivers this version has for the VF.
        assert lease(rig, vm, LEASED, guest_mac(1)) in ("igbvf", "intelvf")
        assert rig.ping(0, LEASED, "-c 5 -i 0.2") == (5, 5)
        assert not rig.host.iommu.faults()


def test_ipxe_gets_an_address_over_the_whole_card(qemu, image, logs, ipxe):
    with run_passt() as path, LinuxRig(qemu, image, logs, guests=0, whole=True) as rig:
        rig.wires.append(Wire(rig.nic, StreamUplink(path, rig.host.clock)))
        vm = boot_ipxe(rig, ipxe)
        rig.iovm.assign_whole(rig.pcim.functions[rig.nic.pf_rid], rig.nic, vm)
        assert lease(rig, vm, ADDRESS, CARD_MAC) in ("igb", "intel", "82576")
        assert not rig.host.iommu.faults()
