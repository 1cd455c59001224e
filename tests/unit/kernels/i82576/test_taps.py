"""Taps: what they see at each point, and that nobody waits for them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from unit.nicrig import EOP, IFCS, IXSM, RS, TSE, Rig, context, data, ether, mac, tagged
from virtfn.kernels.i82576.state import DROP_NAMES, GATHER_AREA, GATHER_BYTES
from virtfn.kernels.tapring import HEADER_BYTES, TAIL_AT

BROADCAST = (1 << 48) - 1


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def rig(made: Rig) -> Rig:
    made.reset()
    made.open_tx(0)
    for pool in (1, 2):
        made.open_rx(pool)
    return made


def reason(name: str) -> int:
    return DROP_NAMES.index(name)


def test_a_frame_between_pools_is_seen_at_each_point(rig: Rig) -> None:
    rig.tap()
    frame = ether(mac(1), mac(0), size=100)
    rig.send(0, frame)
    rig.serve()
    assert rig.seen() == [
        ("tx", 0, True, 0, 100, frame),
        ("switch", 0, True, 1 << 1, 100, frame),
        ("rx", 1, False, 0, 100, frame),
    ]


def test_a_frame_of_a_storm_is_seen_as_sent_and_as_dropped(rig: Rig) -> None:
    rig.set(bam_pools=2, storm=8, storm_ps=10**12, storm_end=1, storm_most_broadcasts=100)  # SCCRL.BDICW
    frames = [ether(BROADCAST, mac(0), size=size) for size in (90, 80)]
    rig.tap(points=9)
    rig.send(0, *frames)
    rig.serve()
    assert rig.seen() == [
        ("tx", 0, True, 0, 90, frames[0]),
        ("tx", 0, True, 0, 80, frames[1]),
        ("drop", 0, True, reason("storm"), 80, frames[1]),
    ]
    rig.tap(points=9)
    rig.wire(frames[1])
    assert rig.seen() == [
        ("tx", 8, False, 0, 80, frames[1]),
        ("drop", 8, False, reason("storm"), 80, frames[1]),
    ]


def test_a_tag_that_is_stripped_is_seen_by_the_sender_alone(rig: Rig) -> None:
    for n in (1, 2):
        rig.pool(n, strip=1)
    rig.set(strip_replicated=1)
    rig.tap(points=5)
    frame = ether(mac(1), mac(0), size=100)
    group = ether(BROADCAST, mac(0), size=80)
    rig.send(0, tagged(frame, 5), tagged(group, 6))
    rig.set(bam_pools=7)
    rig.serve()
    assert rig.seen() == [
        ("tx", 0, True, 0, 104, tagged(frame, 5)),
        ("rx", 1, False, 0, 100, frame),
        ("tx", 0, True, 0, 84, tagged(group, 6)),
        ("rx", 1, False, 0, 80, group),
        ("rx", 2, False, 0, 80, group),
    ]


def test_drops_are_seen_with_their_reason(rig: Rig) -> None:
    rig.set(mac_spoof_pools=1)
    rig.tap(points=8)
    spoofed = ether(mac(1), mac(7), size=64)
    strange = ether(mac(15), mac(0), size=64)
    off = ether(mac(3), mac(0), size=64)
    long = ether(mac(1), mac(0), size=3000)
    rig.send(0, spoofed, strange, off, long)
    rig.post(0, data(0x7000_0000, 70, EOP | RS | IFCS))
    rig.serve()
    assert rig.seen() == [
        ("drop", 0, True, reason("mac-spoof"), 64, spoofed),
        ("drop", 0, True, reason("no-match"), 64, strange),
        ("drop", 3, False, reason("queue-disabled"), 64, off),
        ("drop", 1, False, reason("oversize"), 3000, long),
        ("drop", 0, True, reason("dma-fault"), 0, b""),
    ]
    assert rig.nic["dropped_bytes"][[0, 1, 3]].tolist() == [68 + 68, 3004, 68]


def test_the_wire_is_an_interface(rig: Rig) -> None:
    rig.set(wire_up=1)
    rig.tap()
    out, into = ether(mac(15), mac(0), size=90), ether(mac(2), mac(15), size=70)
    rig.send(0, out)
    rig.serve()
    rig.wire(into)
    assert rig.seen() == [
        ("tx", 0, True, 0, 90, out),
        ("switch", 0, True, 1 << 8, 90, out),
        ("rx", 8, True, 0, 90, out),
        ("tx", 8, False, 0, 70, into),
        ("switch", 8, False, 1 << 2, 70, into),
        ("rx", 2, False, 0, 70, into),
    ]
    assert rig.nic["to_wire"][0].tolist() == [1, 94]


def test_a_tap_sees_what_it_wants_and_as_much_of_it(rig: Rig) -> None:
    rig.tap(points=4, interfaces=1 << 2, snap=20)
    frames = [ether(mac(n), mac(0), size=100) for n in (1, 2)]
    rig.send(0, *frames)
    rig.serve()
    assert rig.seen() == [("rx", 2, False, 0, 100, frames[1][:20])]


def test_a_reader_that_does_not_read_stops_nobody_and_what_it_misses_is_counted(rig: Rig) -> None:
    reader = rig.tap(points=5, size=4096)
    sent = kept = 0
    for turn in range(40):
        rig.send(0, *(ether(mac(1), mac(0), size=1000) for _ in range(5)))
        rig.serve()
        sent += 5
        assert len(rig.frames(1)) == 5
        rig.refill(1, 5)
        if turn == 20:
            kept = len(rig.seen())
    kept += len(rig.seen())
    assert 0 < kept < 20
    assert kept + reader.lost(0) + reader.lost(1) == 2 * sent
    assert rig.drops() == {}


@pytest.mark.parametrize("general", [0, 1])
def test_frames_come_out_of_the_ring_as_they_went_in_wherever_it_wraps(rig: Rig, general: int) -> None:
    rig.set(mirror=general)
    reader = rig.tap(points=4, size=1 << 14)
    rng = random.Random(general)
    for _ in range(60):
        frames = [ether(mac(1), mac(0), size=rng.randint(60, 1400)) for _ in range(rng.randint(1, 4))]
        rig.send(0, *frames)
        rig.serve()
        assert [seen[-1] for seen in rig.seen()] == frames
        rig.frames(1)
        rig.refill(1, len(frames))
    assert reader.lost(1) == 0


def test_what_a_reader_writes_into_the_ring_harms_itself_alone(rig: Rig) -> None:
    size = 1 << 12
    rig.tap(size=size)
    memory = rig.nic["taps"][0]["ring"]
    assert memory
    rng = random.Random(4)
    ring = rig._reader._memory
    for _ in range(200):
        tail = rng.choice([0, -1, 1, 1 << 62, -(1 << 63), rng.getrandbits(63), rng.getrandbits(14)])
        ring[TAIL_AT : TAIL_AT + 8] = tail.to_bytes(8, "little", signed=True)
        ring[HEADER_BYTES : HEADER_BYTES + 64] = rng.randbytes(64)
        frame = ether(mac(1), mac(0), size=200)
        rig.send(0, frame)
        rig.serve()
        assert [had.data for had in rig.frames(1)] == [frame]
        rig.refill(1, 1)
    assert 0 <= int(rig.nic["taps"][0]["head"]) < 200 * 4 * 256


@pytest.mark.parametrize("tapped", [False, True])
def test_a_frame_whose_offload_makes_no_sense_touches_no_other_queues_chain(rig: Rig, tapped: bool) -> None:
    """The gathered bytes of a large send before it are not taken for its own, and leave the area of no other alone."""
    rig.open_tx(3)
    rig.open_rx(4)
    rig.pool(1, strip=1)
    theirs = ether(mac(4), mac(0), size=1000)
    at = rig.store(0, theirs)
    rig.post(0, data(at, 500, IFCS, 1000))
    rig.serve()
    head = tagged(ether(mac(2), mac(3), 0x0800, bytes([0x45, 0]) + bytes(38)), 5)
    large = head + b"\xaa" * 50000
    start = rig.store(3, large)
    cuts = [(o, min(15000, len(large) - o)) for o in range(0, len(large), 15000)]
    pieces = [data(start + o, n, (EOP | RS) * (o + n == len(large)) | IFCS | TSE, len(large) - 58) for o, n in cuts]
    rig.post(3, context(maclen=18, iplen=20, l4len=20, mss=1000), *pieces)
    for n in range(20):
        rig.serve(now=n * 10**9)
    if tapped:
        rig.tap()
    rig.set(mdp=1)
    short = tagged(ether(mac(1), mac(3), 0x0800, bytes([0x45, 0, 0, 20])), 5)
    area = rig.nic["scratch"][GATHER_AREA : GATHER_AREA + GATHER_BYTES]
    before = area.copy()
    rig.post(3, context(maclen=18, iplen=20), data(rig.store(3, short), len(short), EOP | RS | IFCS | IXSM))
    rig.serve(now=10**12)
    assert np.array_equal(area, before)
    assert rig.drops()[3, "malformed"] == 1
    assert rig.port["blocked"] == 1 << 3, "such a driver is stopped"
    rig.post(0, data(at + 500, 500, EOP | RS | IFCS, 1000))
    rig.serve(now=2 * 10**12)
    assert [got.data for got in rig.frames(4)] == [theirs]


@pytest.mark.parametrize("way", ["out", "in"])
def test_what_a_reader_misses_of_the_wire_is_counted_and_takes_the_short_path(rig: Rig, way: str) -> None:
    rig.set(wire_up=1)
    reader = rig.tap(size=4096)
    kept = 0
    for turn in range(40):
        if way == "out":
            rig.send(0, *[ether(mac(15), mac(0), size=1000)] * 5)
            rig.serve()
        else:
            rig.wire(*[ether(mac(1), mac(15), size=1000)] * 5)
            assert len(rig.frames(1)) == 5
            rig.refill(1, 5)
        if turn == 20:
            kept = len(rig.seen())
    kept += len(rig.seen())
    assert 0 < kept < 40
    assert kept + sum(reader.lost(n) for n in range(9)) == 3 * 200
    assert rig.drops() == {}
    assert rig.stat(0, "gptc") == (200 if way == "out" else 0)
