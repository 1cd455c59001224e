"""What `test_host.py` asks of the card, on the kernel of Debian's backports: the newest that there is for this Debian.

One machine for all tests, which go on from each other.
"""

from __future__ import annotations

import pytest

from guest import test_host
from guest.hostrig import Host
from guest.rig import LinuxRig
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu, cache_folder
from virtfn.vmm.qemu.debian import own_suite
from virtfn.vmm.qemu.image import Image, build_image

pytestmark = [pytest.mark.guest, pytest.mark.long]


@pytest.fixture(scope="module")
def newer(image: Image) -> Image:
    try:
        made = build_image(cache=cache_folder(), kernel=f"linux-image-amd64/{own_suite()}-backports")
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")
    assert made.version != image.version
    return made


@pytest.fixture(scope="module")
def host(qemu: Qemu, newer: Image, logs):
    with LinuxRig(qemu, newer, logs, guests=1, host=True, vfs=8, reboot=True, memory_mib=512) as rig:
        rig.nic.port.set_wire(True, 0)
        rig.run(0, "ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0")
        yield Host(rig)
        assert not rig.host.iommu.faults()


no_complaint = test_host.no_complaint


def test_it_is_newer(host: Host, newer: Image):
    assert host.run("uname -r").strip() == newer.version


test_vfs = test_host.test_vfs_come_work_and_go
test_unplug = test_host.test_the_card_is_unplugged_with_vfs_on_and_plugged_in_again
test_policies = test_host.test_policies_of_ip_are_enforced_by_the_card
test_resets = test_host.test_resets_of_a_vf_and_of_the_pf
test_numbers = test_host.test_numbers_of_vfs_up_and_down_and_drivers_away_and_back
test_seven = test_host.test_all_seven_vfs_hear_each_other_and_again
test_ends = test_host.test_a_reboot_and_a_power_cut_with_vfs_on
