"""A VF that is shut off, and a PF driver that goes away and comes back, as Linux's own igbvf sees them."""

from __future__ import annotations

import pytest

from guest.rig import LinuxRig, address
from virtfn.hw.i82576 import Regs
from virtfn.iovm.iovm import VfState

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
DRIVER = "/sys/bus/pci/drivers/igbvf"


def test_a_quarantined_vf_has_no_link_whatever_its_guest_does(rig: LinuxRig):
    vf = rig.vfs[0]
    rig.iovm.quarantine(vf)
    try:
        rig.until(lambda: not rig.carrier(0), "no link at vm0", timeout_s=60)
        assert rig.ping(1, address(0), "-c 2 -i 0.2 -W 1")[1] == 0
        assert rig.carrier(1)
        rig.run(0, "ip link set eth0 down && ip link set eth0 up")
        rig.pause(5000)
        assert not rig.carrier(0), "its driver's reset"
        rig.run(0, f"ip link set eth0 down && echo 1 > /sys/bus/pci/devices/{PCI}/reset && ip link set eth0 up")
        rig.pause(5000)
        assert not rig.carrier(0), "a function level reset"
        rig.run(0, f"echo {PCI} > {DRIVER}/unbind && echo {PCI} > {DRIVER}/bind", timeout_s=120)
        rig.run(0, f"ip link set eth0 up && ip addr replace {address(0)}/24 dev eth0")
        rig.pause(5000)
        assert not rig.carrier(0), "another driver"
        assert rig.ping(1, address(0), "-c 2 -i 0.2 -W 1")[1] == 0
        assert not rig.nic.port.registers.peek(Regs.VFTE) & 1
    finally:
        rig.iovm.release(vf)
    assert vf.state is VfState.ASSIGNED
    rig.until(lambda: rig.carrier(0), "a link at vm0", timeout_s=120)
    rig.until(lambda: rig.ping(1, address(0), "-c 2 -i 0.2 -W 1")[1] > 0, "vm0 is there again", timeout_s=120)


def test_guests_recover_when_the_pf_s_driver_comes_back(rig: LinuxRig):
    assert rig.reaches(0, address(1))
    rig.driver.stop()
    for n in (0, 1):
        rig.until(lambda n=n: not rig.carrier(n), f"no link at vm{n}", timeout_s=60)
    rig.driver.reset()
    for n in (0, 1):
        rig.until(lambda n=n: rig.carrier(n), f"a link at vm{n}", timeout_s=120)
    rig.until(lambda: rig.ping(0, address(1), "-c 2 -i 0.2 -W 1")[1] > 0, "they reach each other", timeout_s=120)
    assert rig.reaches(1, address(0))
