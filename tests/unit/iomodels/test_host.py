"""A whole card for a host: what is left of it when its QEMU is killed with VFs on."""

from __future__ import annotations

import pytest

from unit.vmm.qemu.test_vm import CONFIG, PlayedQemu
from unit.vmm.vfio_user.peer import settle
from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import VMVIR
from virtfn.hw.types import Mac
from virtfn.machine.clock import VirtualClock
from virtfn.machine.netports import InForce
from virtfn.vmm.qemu.vm import QemuVm

HOST = """
name: host
pfs: [{name: pf0}]
guests: [{name: a, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: host}}]
workload: {kind: none}
"""


@pytest.mark.parametrize("noticed", [True, False])
def test_a_host_that_is_killed_with_vfs_on_leaves_a_card_for_the_next(tmp_path, noticed):
    with Machine(parse_lab(HOST), VirtualClock()) as machine:
        (pf,), (guest,) = machine.pfs, machine.lab.guests
        model, nic = machine.model(pf, "host"), pf.nic
        for _ in range(2):
            qemu = PlayedQemu(lambda: vm, tmp_path)  # noqa: B023  # it asks in this round
            vm = QemuVm(machine.host, qemu, lambda: None)
            plug = model.plug(vm, machine.wish(pf, guest))
            *_, driver = qemu.peers.values()
            for at, value in ((0x170, 4), (0x168, 0x19)):
                driver.write(CONFIG, at, value.to_bytes(2, "little"))
            nic.bar_write(nic.pf_rid, 0, Regs.VMVIR.at(1), 4, VMVIR.of(PORT_VLAN=7, VLANA=1).value)
            assert (nic.vfs, nic.in_force(1).vlan) == (4, 7)
            assert len(machine.host.remapping.domains) == 9
            qemu.running = False
            for peer in qemu.peers.values():
                peer.sock.close()
            for served in vm.functions.values() if noticed else ():
                settle(served.server)
            vm.close()
            model.unplug([plug])
            assert (nic.vfs, nic.in_force(1)) == (0, InForce(Mac(0)))
            assert not machine.host.remapping.domains
            assert not list(tmp_path.iterdir()), "no socket is left"
