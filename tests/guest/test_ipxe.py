"""iPXE's own driver of the VF, in the firmware's world before any kernel: an address by DHCP, and answers to pings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from guest.bed import LinuxBed, guest_mac
from virtfn.hw.types import format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import cache_folder, debian

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
    with LinuxBed(qemu, image, logs, guests=1, vfs=2) as bed:
        bed.up(0)
        bed.run(0, f"printf '{SERVER}' >/tmp/udhcpd.conf && touch /tmp/leases && udhcpd /tmp/udhcpd.conf")
        made = bed.add_guest(
            "ipxe",
            lambda m: replace(
                m, kernel=ipxe, initrd=None, append=COMMANDS, extra=(*m.extra, "-machine", "graphics=off")
            ),
        )
        bed.iovm.assign(bed.vfs[1], made, mac=guest_mac(1))
        made.run()
        made.guest.console.wait_for(rf"leased {LEASED}", timeout_s=90, tick=bed.pump)
        said = made.guest.console.text()
        driver = re.search(rf"net0: {format_mac(guest_mac(1))} using (\w+) on", said)
        assert driver is not None, said
        assert driver[1] in ("igbvf", "intelvf"), "whichever of its drivers this version has for the VF"
        assert "Link:up" in said
        assert bed.ping(0, LEASED, "-c 5 -i 0.2") == (5, 5)
        assert not bed.host.iommu.faults()
