"""Registers that kernels read and write: as Python does, side effects and all, and the rest is left to it."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from unit.slotrig import SILICON_MAC
from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.i82576 import BAR0_BYTES, VF_BAR0_BYTES, Regs
from virtfn.hw.i82576.fields import STATUS
from virtfn.kernels.i82576.doorbells import read, write
from virtfn.kernels.i82576.state import POOLS
from virtfn.machine.clock import VirtualClock
from virtfn.machine.memory import CHUNK
from virtfn.vmm.host import Host

PYTHONS = {"EICR", "EIMS", "EIAC", "EIAM", "ICR", "RTTBCNRC", "FRTIMER"}  # and the same of VFs


class Rig:
    """A card with two VFs in a certain state."""

    def __init__(self, seed: int = 1) -> None:
        self.host = Host(VirtualClock(), CHUNK, slots=1)
        self.nic = Nic82576(self.host, self.host.iommu.iommu, Card(SILICON_MAC))
        self.nic._vfs_changed(2)
        random = Random(seed)
        for decl in Regs.DECLS:
            for i in range(decl.count):
                self.nic.port.registers.poke(decl, i, random.getrandbits(32))
        nic = self.nic.port.nic
        for rows in (nic["counters"], *nic["pools"]):
            for name in rows.dtype.names[-9:]:
                rows[name] += random.getrandbits(40)
        for row in nic["rx"]:
            row["drops"] += random.getrandbits(33)

    def by_kernel(self, function: int, offset: int) -> int:
        return read(self.nic.port.address, function, offset, 1)

    def by_python(self, function: int, offset: int) -> int:
        if function < POOLS:
            return self.nic._vf_read(function, offset, 4)
        return self.nic.port.registers.read(offset, 4)

    def close(self) -> None:
        self.nic.close()
        self.host.close()


@pytest.fixture
def rigs():
    made = Rig(), Rig()
    yield made
    for rig in made:
        rig.close()


@pytest.mark.parametrize("function", [POOLS, 0, 1])
def test_a_kernel_reads_what_python_reads_or_leaves_it(rigs, function):
    kernels, python = rigs
    left = set()
    for round_ in range(3):
        for offset in range(0, VF_BAR0_BYTES if function < POOLS else BAR0_BYTES, 4):
            found = kernels.by_kernel(function, offset)
            expected = python.by_python(function, offset)
            if found >= 0:
                assert found == expected, (hex(offset), round_)
            elif expected:
                left.add(offset)
                kernels.by_python(function, offset)
    assert np.array_equal(kernels.nic.port.registers.region.bytes, python.nic.port.registers.region.bytes)
    if function == POOLS:
        assert {Regs.INDEX[offset][0].name.removeprefix("VT") for offset in left} <= PYTHONS


@pytest.mark.parametrize("function", [POOLS, 0, 1])
def test_a_kernel_writes_what_python_writes_or_leaves_it(rigs, function):
    kernels, python = rigs
    random, done = Random(2), 0
    for offset in range(0, VF_BAR0_BYTES if function < POOLS else BAR0_BYTES, 4):
        value = random.getrandbits(32)
        if write(kernels.nic.port.address, function, offset, value, 0):
            done += 1
            assert write(kernels.nic.port.address, function, offset, value, 1)
            if function < POOLS:
                python.nic._vf_write(function, offset, 4, value)
            else:
                python.nic.port.registers.write(offset, 4, value)
    assert done > 40
    assert np.array_equal(kernels.nic.port.registers.region.bytes, python.nic.port.registers.region.bytes)


def test_what_has_an_effect_is_not_written(rigs):
    address = rigs[0].nic.port.address
    effects = Regs.CTRL, Regs.MDIC, Regs.EIMS, Regs.V2PMAILBOX, Regs.P2VMAILBOX, Regs.RCTL, Regs.VFTA, Regs.PBACL
    for decl in (*effects, Regs.GPRC):
        assert write(address, POOLS, decl.offset, 1, 1) == 0, decl.name
    assert write(address, 1, 0x0, 1 << 26, 1) == 0, "VTCTRL"
    with pytest.raises(TypeError, match="LEDCTL"):
        rigs[0].nic.port.registers.on(Regs.LEDCTL, write=lambda *_: None)


def test_counters_clear_as_they_are_read(rigs):
    rig, _ = rigs
    rig.nic.port.nic["counters"]["ssvpc"] = 5
    assert [rig.by_kernel(POOLS, Regs.SSVPC.offset) for _ in range(2)] == [5, 0]
    rig.nic.port.nic["counters"]["gorc"] += 0x7_0000_0003
    rig.nic.port.statistics.reset()
    rig.nic.port.nic["counters"]["gorc"] += 0x7_0000_0003
    halves = [rig.by_kernel(POOLS, decl.offset) for decl in (Regs.GORCL, Regs.GORCL, Regs.GORCH, Regs.GORCL)]
    assert halves == [3, 3, 7, 0]
    rig.nic.port.nic["counters"]["gprc"] += 1 << 40
    assert rig.by_kernel(POOLS, Regs.GPRC.offset) == 0xFFFFFFFF
    was = rig.by_kernel(1, 0xF10)
    rig.nic.port.nic["pools"][1]["gprc"] += 7
    assert [rig.by_kernel(1, 0xF10) for _ in range(2)] == [was + 7 & 0xFFFFFFFF] * 2


def test_looking_takes_nothing(rigs):
    rig, _ = rigs
    rig.nic.port.registers.poke(Regs.SWSM, 0, 0)
    address = rig.nic.port.address
    assert [read(address, POOLS, Regs.SWSM.offset, take) for take in (0, 0, 1, 0)] == [0, 0, 0, 1]
    rig.nic.port.nic["counters"]["ssvpc"] = 5
    assert [read(address, POOLS, Regs.SSVPC.offset, take) for take in (0, 1, 1)] == [5, 5, 0]


@pytest.mark.parametrize("offset", [-4, 1, 2, VF_BAR0_BYTES, BAR0_BYTES, 1 << 62, -(1 << 63)])
def test_what_is_no_register_is_left(rigs, offset):
    assert rigs[0].by_kernel(1, offset) == -1
    if offset != VF_BAR0_BYTES:
        assert rigs[0].by_kernel(POOLS, offset) == -1


def test_status_follows_what_it_tells_of():
    host = Host(VirtualClock(), CHUNK, slots=1)
    nic = Nic82576(host, host.iommu.iommu, Card(SILICON_MAC))

    def status() -> STATUS:
        return STATUS(read(nic.port.address, POOLS, Regs.STATUS.offset, 1))

    def write(offset: int, value: int) -> None:
        nic.port.registers.write(offset, 4, value)

    assert (status().LU, status().PHYRA, status().NUM_VFS) == (0, 1, 0)
    write(Regs.CTRL.offset, 1 << 6)
    assert (status().LU, status().SPEED, status().GIO_MASTER_EN) == (1, 2, 1)
    nic.port.set_carrier(False)
    assert status().LU == 0
    nic.port.set_wire(True, 100)
    assert (status().LU, status().SPEED) == (1, 1)
    write(Regs.CTRL.offset, 1 << 6 | 1 << 2)
    assert status().GIO_MASTER_EN == 0
    write(Regs.STATUS.offset, 0)
    assert status().PHYRA == 0
    write(Regs.MDIC.offset, 1 << 26 | 1 << 21 | 0 << 16 | 1 << 11)  # power down
    assert status().LU == 0
    nic._vfs_changed(3)
    assert (status().NUM_VFS, status().IOV_MODE) == (3, 1)
    write(Regs.CTRL.offset, 1 << 26)
    assert (status().LU, status().NUM_VFS, status().GIO_MASTER_EN) == (0, 3, 1)
    nic.close()
    host.close()
