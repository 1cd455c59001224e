"""Workloads: every frame arrives, or is found to be missing, altered, late or twice there."""

from __future__ import annotations

import numpy as np
import pytest

from unit.rig import Rig, frame
from virtfn.drivers.policy import VfPolicy
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.plan import deal
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels.breath import breathe
from virtfn.machine.captures import Frames
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError


@pytest.fixture
def rig():
    with Rig([("pf0", n) for n in range(3)]) as made:
        yield made


def verdicts(engine):
    return [(f.missing, f.corrupt, f.repeated, f.reordered) for f in engine.workload.findings()]


def received(engine):
    return [int(driver.netdev["rx_frames"]) for driver in engine._drivers()]


def capture(*bodies: bytes) -> Frames:
    lengths = np.array([len(b) for b in bodies], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    stored = np.frombuffer(b"".join(bodies), np.uint8).copy()
    return Frames(stored, offsets, lengths, np.zeros(len(bodies), np.int64), 0)


def deliver_only(rig, engine, rounds=6):
    """Let frames move while nobody takes them: receivers hear of nothing."""
    for _ in range(rounds):
        rig.nic.port.settle()
        address = rig.nic.port.block.ctypes.data
        breathe(address, engine.workload.block.ctypes.data, rig.clock.now(), 1, 16)


# Clean runs.


@pytest.mark.parametrize(
    ("kind", "each"),
    [("pairs", [1000, 500, 0]), ("fan-in", [1000, 0, 0]), ("broadcast", [0, 500, 500])],
)
def test_every_frame_arrives(rig, kind, each):
    engine = rig.engine(kind, 500, length=200)
    assert engine.run()
    assert received(engine) == each
    assert verdicts(engine) == [(0, 0, 0, 0)] * 3
    assert engine.workload.unfinished() == []


def test_pings_are_answered_and_timed(rig):
    engine = rig.engine("ping", 50, length=98)
    assert engine.run()
    assert len(engine.ping_ps[0]) == 50
    assert engine.ping_ps[1:] == [[], []]
    assert verdicts(engine) == [(0, 0, 0, 0)] * 3


def test_a_capture_arrives_byte_for_byte(rig):
    bodies = [frame(0x1234, 0x5678, bytes([n]) * 40, length=60 + n) for n in range(50)]
    group = frame(0x1 | 0x77 << 40, 0x5678, b"to all", length=80)
    for n, driver in enumerate(engine_drivers(rig)):
        rig.igb.set_trust(n, True)
        driver.set_promiscuous(False, True)
    engine = rig.engine("pcap", None, capture=capture(*bodies, group))
    assert engine.run()
    assert verdicts(engine) == [(0, 0, 0, 0)] * 3
    assert sum(received(engine)) == 52


def engine_drivers(rig):
    return [rig.driver(i) for i in range(3)]


def test_a_port_vlan_does_not_change_what_a_capture_is(rig):
    for n in range(3):
        rig.igb.set_vlan(n, 12, 4)
    bodies = [frame(0x1234, 0x5678, bytes([n]) * 40, length=100 + n) for n in range(30)]
    engine = rig.engine("pcap", None, capture=capture(*bodies))
    assert engine.run()
    assert verdicts(engine) == [(0, 0, 0, 0)] * 3


def test_a_short_capture_is_sent_round_after_round(rig):
    bodies = [frame(0x1234, 0x5678), frame(0x1234, 0x5678, b"two"), frame(0x5678, 0x1234)]
    engine = rig.engine("pcap", 10, capture=capture(*bodies))
    assert engine.run()
    assert engine.workload.total_frames == 20
    assert received(engine) == [10, 10, 0]
    assert verdicts(engine) == [(0, 0, 0, 0)] * 3


def test_frames_too_short_or_long_for_the_wire_are_refused_and_counted(rig):
    engine = rig.engine("pcap", None, capture=capture(b"short", frame(0x12, 0x54), frame(0x12, 0x56, length=9000)))
    assert engine.run()
    assert engine.workload.refused == [{"undersize": 1}, {"oversize": 1}, {}]
    assert verdicts(engine) == [(0, 0, 0, 0)] * 3


A, B, C = (mac.to_bytes(6, "little") for mac in (0x0A02, 0x0B02, 0x0C02))
GROUP, ZERO = b"\x01\0\x5e\0\0\1", bytes(6)


@pytest.mark.parametrize(
    ("sources", "dealt"),
    [
        ([A, B, A, A, B], [0, 1, 0, 0, 1]),  # in the order of appearance
        ([A, B, C, A], [0, 1, 0, 0]),  # more than guests
        ([B, bytes([2, 0x77, 0, 0, 0, 0]), A], [0, 1, 0]),  # the second guest's own, and two strangers
        ([ZERO, A, GROUP, b"abc", A], [0, 0, 1, 0, 0]),  # without an address: one by one
    ],
)
def test_frames_are_dealt_by_source_address(sources, dealt):
    macs = [0x99 << 40 | 2, 0x7702]
    assert deal(sources, macs)[0] == dealt


def test_a_conversation_keeps_its_directions(rig):
    client, server = 0x1234 << 8, 0x5678 << 8
    bodies = [frame(server, client, bytes([n])) for n in range(5)] + [frame(client, server, b"answer")] * 2
    engine = rig.engine("pcap", None, capture=capture(*bodies))
    assert engine.run()
    assert received(engine) == [2, 5, 0]
    assert [(f.sender, f.receiver, f.sent, f.heard) for f in engine.workload.flows(engine.workload.findings())] == [
        (0, 1, 5, 5),
        (1, 0, 2, 2),
    ]


def test_a_guest_sends_what_is_its_own_of_a_capture_and_is_not_blamed_for_spoofing(rig):
    mac = [int(driver.mac) for driver in engine_drivers(rig)]
    bodies = [frame(mac[0], mac[1]), frame(mac[1], mac[0]), frame(mac[2], mac[1]), frame(mac[0], mac[1])]
    engine = rig.engine("pcap", None, capture=capture(*bodies), rewrite=False)
    assert engine.run()
    assert received(engine) == [2, 1, 1]
    assert [rig.drops(n) for n in range(3)] == [{}, {}, {}]


# What is done to frames is found.


def rx_buffers(driver):
    d = driver.netdev
    return view_bytes(int(d["rx_buffers"]), int(d["rx_size"]) * int(d["buffer_bytes"])).reshape(int(d["rx_size"]), -1)


@pytest.mark.parametrize("at", [0, 5, 6, 11, 15, 20, 28, 32, 40, 59])
def test_an_altered_byte_is_found_wherever_it_is(rig, at):
    engine = rig.engine("fan-in", 100, length=60)
    deliver_only(rig, engine)
    rx_buffers(rig.driver(0))[3, at] ^= 0x10
    assert engine.run()
    assert verdicts(engine)[0] == (0, 1, 0, 0)


def test_an_altered_frame_of_a_capture_is_corrupt_and_not_missing(rig):
    bodies = [frame(0x1234, 0x5678, bytes([n]) * 40) for n in range(30)]
    engine = rig.engine("pcap", None, capture=capture(*bodies))
    deliver_only(rig, engine)
    rx_buffers(rig.driver(1))[0, 33] ^= 1
    assert engine.run()
    assert verdicts(engine) == [(0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)]


@pytest.mark.parametrize("kind", ["fan-in", "pcap"])
def test_a_frame_that_comes_twice_is_found(rig, kind):
    bodies = [frame(0x1234, 0x5678 + (n % 3 << 40), bytes([n]) * 40) for n in range(90)]
    engine = rig.engine(kind, 100 if kind == "fan-in" else None, length=60, capture=capture(*bodies))
    deliver_only(rig, engine)
    buffers = rx_buffers(rig.driver(0))
    buffers[4] = buffers[3]
    assert engine.run()
    missing, corrupt, repeated, _ = verdicts(engine)[0]
    assert (missing, corrupt, repeated) == (1, 0, 1)


@pytest.mark.parametrize("kind", ["fan-in", "pcap"])
def test_frames_that_change_places_are_found(rig, kind):
    bodies = [frame(0x1234, 0x5678 + (n % 3 << 40), bytes([n]) * 40) for n in range(90)]
    engine = rig.engine(kind, 100 if kind == "fan-in" else None, length=60, capture=capture(*bodies))
    deliver_only(rig, engine)
    buffers = rx_buffers(rig.driver(0))
    buffers[[3, 4]] = buffers[[4, 3]]
    assert engine.run()
    assert verdicts(engine)[0] == (0, 0, 0, 1)


def test_an_altered_ping_is_corrupt_and_stays_unanswered(rig):
    engine = rig.engine("ping", 5, length=98)
    while int(engine.workload.row["tasks"][0]["answered"]) < 2:
        engine.step()
    driver = rig.driver(1)
    driver.netdev["up"] = 0  # the third request waits in its ring
    for _ in range(20):
        engine.step()
    rx_buffers(driver)[int(driver.netdev["rx_next"]), 60] ^= 0xFF
    driver.netdev["up"] = driver.netdev["polling"] = 1
    assert not engine.run()
    assert verdicts(engine) == [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)]
    assert engine.workload.unfinished() == [0]


# What is lost has a reason.


def test_frames_without_a_descriptor_are_dropped_and_counted(rig):
    rig.driver(0).netdev["up"] = 0  # this guest hangs
    engine = rig.engine("fan-in", 2000, length=60)
    engine.run()
    rig.driver(0).netdev["up"] = 1
    rig.driver(0).netdev["polling"] = 1
    assert engine.run()
    missing = verdicts(engine)[0][0]
    assert missing == rig.drops(0)["no-descriptor"] == 4000 - 511


def test_spoofed_frames_are_missing_and_counted_at_their_sender(rig):
    rig.igb.set_mac(1, 0x99 << 8 | 2)  # its driver still sends from the old address
    engine = rig.engine("fan-in", 300, length=60)
    assert engine.run()
    assert verdicts(engine)[0][0] == rig.drops(1)["mac-spoof"] == 300


def test_a_slow_guest_does_not_stall_another():
    with Rig([("pf0", n) for n in range(4)]) as rig:
        rig.driver(1).netdev["up"] = 0
        engine = rig.engine("pairs", 3000, length=60)
        engine.run()
        assert received(engine)[2:] == [3000, 3000]


def test_a_rate_limit_only_delays(rig):
    rig.iovm.take_back(rig.vf(1))
    rig.iovm.assign(rig.vf(1), rig.guest(1), VfPolicy(max_tx_rate=10), 0x99 << 40 | 2)
    rig.driver(1).start()
    engine = rig.engine("fan-in", 200, length=1514)
    start = rig.clock.now()
    assert engine.run()
    seconds = (rig.clock.now() - start) / 1e12
    assert verdicts(engine)[0] == (0, 0, 0, 0)
    assert seconds == pytest.approx(200 * 1518 * 8 / 10e6, rel=0.05)


# What cannot be done is refused.


def test_impossible_workloads_are_refused(rig):
    row = np.zeros(1, rig.driver(0).row.dtype)
    row[0]["tx_size"] = 512
    stations = [Station(row, n) for n in range(65)]
    for kind, n, kwargs, message in (
        ("pairs", 65, {}, "at most 64"),
        ("pairs", 1, {}, "needs two guests"),
        ("pcap", 2, {}, "needs a capture"),
        ("pcap", 2, {"capture": capture()}, "no frames"),
        ("dance", 2, {"frames": 1}, "no workload of kind dance"),
        ("pairs", 64, {"frames": 10**9}, "too many to keep track of"),
    ):
        with pytest.raises(VirtfnError, match=message):
            Workload(kind, stations[:n], **kwargs)


def test_an_engine_without_work_ends_at_once(rig):
    engine = rig.engine("fan-in", 0, length=60)
    assert isinstance(engine, Engine)
    assert engine.run()
    assert received(engine) == [0, 0, 0]
