"""The interrupt remapping table as the driver keeps it, against the unit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from virtfn.devices.iommu import IommuUnit
from virtfn.drivers import vtdirq
from virtfn.drivers.vtd import VtdDriver
from virtfn.drivers.vtdirq import ENTRIES, InterruptTable
from virtfn.hw.types import Rid
from virtfn.hw.vtd.tables import FaultReason
from virtfn.machine.clock import VirtualClock
from virtfn.machine.memory import CHUNK, HostMemory
from virtfn.machine.ports import VirtfnError

A, B = Rid(0x100), Rid(0x280)


class Rig:
    def __init__(self) -> None:
        self.memory, clock = HostMemory(4 * CHUNK), VirtualClock()
        self.raised: list[tuple[int, int]] = []
        self.unit = IommuUnit(self.memory, deliver=lambda *where: self.raised.append(where), clock=clock)
        self.driver = VtdDriver(self.unit, self.memory, clock)
        self.driver.start()
        self.table = InterruptTable(self.memory, self.driver)
        self.driver.start_interrupts(self.table.address, ENTRIES)

    def send(self, rid: Rid, made: tuple[int, int]) -> bool:
        return self.unit.interrupts.send(rid, *made)

    def reasons(self) -> list[FaultReason]:
        return [fault.reason for fault in self.unit.faults()]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.memory.close()


def test_a_message_raises_its_vector_from_its_requester_alone(rig: Rig) -> None:
    made = rig.table.remap(A, 3, 0x41)
    assert rig.send(A, made)
    assert rig.raised == [(3, 0x41)]
    assert not rig.send(B, made)
    assert rig.raised == [(3, 0x41)]
    assert rig.reasons() == [FaultReason.INTERRUPT_SOURCE]


def test_a_freed_entry_raises_nothing_and_is_given_again(rig: Rig) -> None:
    made = rig.table.remap(A, 3, 0x41)
    assert rig.send(A, made)
    rig.table.free(made[0])
    assert not rig.send(A, made)
    assert rig.reasons() == [FaultReason.INTERRUPT_ENTRY_NOT_PRESENT], "the cached entry is forgotten"
    with pytest.raises(VirtfnError, match="no interrupt has the message") as caught:
        rig.table.free(made[0])
    assert caught.value.errno_name == "ENOENT"
    assert rig.table.remap(B, 4, 0x42) == made
    assert rig.send(B, made)
    assert not rig.send(A, made)


def test_posted_vectors_wait_and_one_notification_tells_of_all(rig: Rig) -> None:
    descriptor = rig.table.descriptor(7, 0xF2)
    messages = {vector: rig.table.post(A, vector, descriptor) for vector in (0, 0x21, 0x63, 0x64, 0xFF)}
    for made in messages.values():
        assert rig.send(A, made)
    assert rig.raised == [(7, 0xF2)]
    assert descriptor.take() == [0xFF, 0x64, 0x63, 0x21, 0], "as a local APIC: the highest first"
    assert descriptor.take() == []
    assert rig.send(A, messages[0x63])
    assert rig.raised == [(7, 0xF2)] * 2
    assert descriptor.take() == [0x63]
    stats = rig.unit.stats()
    assert (stats["delivered"], stats["posted"], stats["blocked"]) == (2, 4, 0)


def test_descriptors_run_out_and_come_back_clean(rig: Rig) -> None:
    first = rig.table.descriptor(1, 0x30)
    rest = [rig.table.descriptor(1, 0x30) for _ in range(CHUNK // 2 // 64 - 1)]
    assert len({d.address for d in (first, *rest)}) == len(rest) + 1
    assert all(d.address % 64 == 0 for d in rest)
    with pytest.raises(VirtfnError, match="no posted interrupt descriptor"):
        rig.table.descriptor(1, 0x30)
    assert rig.send(A, rig.table.post(A, 5, first))
    rig.table.free_descriptor(first)
    again = rig.table.descriptor(2, 0x31)
    assert again.address == first.address
    assert again.take() == []


def test_a_full_table_is_a_clear_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtdirq, "ENTRIES", 5)
    made = [rig.table.remap(A, 1, 0x30 + n) for n in range(5)]
    with pytest.raises(VirtfnError, match="no entry left for") as caught:
        rig.table.remap(A, 1, 0x40)
    assert caught.value.errno_name == "ENOSPC"
    assert [index for index, _, _ in rig.table.entries()] == [0, 1, 2, 3, 4]
    rig.table.free(made[2][0])
    assert rig.table.remap(B, 1, 0x40) == made[2]


def test_the_last_entry_has_a_message_too(rig: Rig) -> None:
    rig.table._owners = dict.fromkeys(range(ENTRIES - 1), A)
    made = rig.table.remap(A, 1, 0x55)
    assert rig.send(A, made)
    assert rig.raised == [(1, 0x55)]
