"""Cables under the pump: its kernel carries frames from card to card, as Python does in a turn."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.eth import MIN_FRAME
from virtfn.hw.types import Mac
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.vmm.host import Host
from virtfn.vmm.pump import Pump
from virtfn.vmm.uplink import Wire, make_cable

FIRST = Mac(0x001B21000000)


class Two:
    """Two cards with a cable between them, and a pump."""

    def __init__(self, mbps: int = 0) -> None:
        self.host = Host(WallClock(), 2 << 20, slots=2)
        self.nics = [Nic82576(self.host, self.host.iommu.iommu, Card(Mac(FIRST + n))) for n in (0, 1)]
        for slot, nic in enumerate(self.nics):
            self.host.root.attach(nic, slot)
        self.ends = make_cable()
        self.wires = [Wire(nic, end, mbps) for nic, end in zip(self.nics, self.ends, strict=True)]
        self.pump = Pump(self.host, self.nics, [], self.wires)
        self.pump.turn()
        for nic in self.nics:
            nic.start_capture()

    def leave(self, n: int, *frames: bytes) -> None:
        """Let frames have left card `n`, and nobody have looked yet."""
        nic = self.nics[n].port.nic
        for frame in frames:
            at = int(nic["port"]["departed_tail"])
            said = np.frombuffer(len(frame).to_bytes(4, "big") + frame, np.uint8)
            nic["departed"][at : at + said.size] = said
            nic["port"]["departed_tail"] = at + said.size

    def arrived(self, n: int) -> list[bytes]:
        """Take what has come to card `n` by the wire."""
        return [frame.tobytes() for who, out, _, frame in self.nics[n].take_capture() if who is None and not out]

    def close(self) -> None:
        for wire in self.wires:
            wire.close()
        for nic in self.nics:
            nic.close()
        self.host.close()


@pytest.fixture
def two() -> Iterator[Two]:
    made = Two()
    yield made
    made.close()


def some_frames(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.choice((14, 20, 59, 60, 61, 600, 1514))) for _ in range(count)]


def filled(frames: list[bytes]) -> list[bytes]:
    return [frame.ljust(MIN_FRAME, b"\0") for frame in frames]


@pytest.mark.parametrize("by_kernel", [True, False])
def test_frames_arrive_both_ways_in_order(two, monkeypatch, by_kernel):
    sent = some_frames(1, 40), some_frames(2, 40)
    two.leave(0, *sent[0])
    two.leave(1, *sent[1])
    if by_kernel:
        monkeypatch.setattr(Wire, "serve", lambda wire, budget: (0, 0))
        two.pump.rest(MS_PS)
    else:
        monkeypatch.setattr("virtfn.vmm.pump.run_pump", None)
        two.pump.turn()
        two.pump.turn()
    assert two.arrived(1) == filled(sent[0])
    assert two.arrived(0) == filled(sent[1])
    assert [nic.departures().size for nic in two.nics] == [0, 0]


def test_many_frames_cross_in_bounded_steps(two):
    sent = some_frames(7, 20) * 10, [bytes([n % 256]) * 60 for n in range(600)]
    two.leave(0, *sent[0])
    got: list[bytes] = []
    two.leave(1, *sent[1])
    for _ in range(10):
        two.pump()
        got += two.arrived(0)
    assert got == sent[1]
    assert two.arrived(1) == filled(sent[0])


def test_turns_and_rests_keep_the_order(two):
    old, new = some_frames(3, 300), some_frames(4, 5)
    two.leave(0, *old[:200])
    two.wires[0].serve()
    two.leave(0, *old[200:], *new)
    for _ in range(20):
        two.pump()
    assert two.arrived(1) == filled([*old, *new])


def test_nothing_crosses_a_cable_that_is_pulled_out(two):
    two.ends[1].close()
    two.pump.turn()
    two.leave(0, *some_frames(5, 3))
    two.pump.rest(MS_PS)
    two.pump.turn()
    assert two.arrived(1) == []
    assert two.nics[0].departures().size == 0
    assert two.nics[0].drops(None)["no-uplink"] == 3


def test_what_leaves_while_the_other_end_is_in_no_card_is_lost_and_counted():
    host = Host(WallClock(), 2 << 20, slots=1)
    nic = Nic82576(host, host.iommu.iommu, Card(FIRST))
    wire = Wire(nic, make_cable()[0])
    said = np.frombuffer(b"\0\0\0\x3c" + bytes(60), np.uint8)
    nic.port.nic["departed"][: said.size] = said
    nic.port.nic["port"]["departed_tail"] = said.size
    assert wire.serve() == (1, 0)
    assert nic.departures().size == 0
    assert nic.drops(None)["no-uplink"] == 1
    wire.close()
    nic.close()
    host.close()


def test_the_pace_of_the_other_end_holds():
    two = Two(mbps=10)
    frames = [bytes(1514)] * 40  # 1.2 ms each
    two.leave(0, *frames)
    began = two.host.now()
    two.pump.rest(MS_PS)
    got = len(two.arrived(1))
    assert 0 < got < 30
    while got < len(frames):
        assert two.host.now() - began < 2 * S_PS
        two.pump()
        got += len(two.arrived(1))
    assert two.host.now() - began > 25 * MS_PS
    two.close()


def test_whose_capture_is_full_gets_the_rest_when_there_is_room(two):
    got: list[bytes] = []
    sent = some_frames(6, 150)
    for _ in range(20):
        two.leave(0, *sent)
        two.pump()
        got += two.arrived(1)
    for _ in range(20):
        two.pump()
        got += two.arrived(1)
    assert got == filled(sent) * 20
