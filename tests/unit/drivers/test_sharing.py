"""What VFs share, and what none of them takes from another: the wire, a receiver, the card's time, the line.

Fair is an equal share of what is scarce, for those who want more than it. Of the wire, and of a receiver that does not
keep up, that is bytes with the frame check sequence; where nothing is scarce but the card's time, it is that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
from unit.saturation import Saturating, Sink, jain
from virtfn.drivers.igbvf import RX_VECTOR
from virtfn.drivers.policy import LinkState, StormLimits, SwitchPolicy
from virtfn.hw.i82576 import VfRegs
from virtfn.hw.types import parse_mac
from virtfn.machine.clock import MS_PS, US_PS

VFS = 7
ELSEWHERE = parse_mac("02:00:00:00:00:77")
MIXES = {
    "small": [60] * VFS,
    "large": [1514] * VFS,
    "one small": [60, *[1514] * (VFS - 1)],
    "one large": [1514, *[60] * (VFS - 1)],
    "sizes": [60, 1514, 60, 1514, 124, 508, 1020],
}


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    with Rig([("pf0", n) for n in range(VFS)], ring=128, total_vfs=VFS) as rig:
        yield rig


@pytest.fixture
def rig(made: Rig) -> Iterator[Rig]:
    for sink in sinks(made):
        sink.open()
    yield made
    for n in range(VFS):
        made.igb.set_link_state(n, LinkState.AUTO)
        made.igb.set_rate(n, 0)
    for i in range(VFS):  # rings anew, with nothing in them
        made.driver(i).stop()
        made.driver(i).start()
    made.nic.set_wire(False, 0)


def sinks(rig: Rig) -> list[Sink]:
    return [Sink(rig.driver(i)) for i in range(VFS)]


def sent(rig: Rig) -> np.ndarray:
    """Bytes that each VF has sent, with check sequences."""
    return rig.nic.port.nic["pools"]["gotc"][:VFS].copy()


# Shares.


@pytest.mark.parametrize("mix", MIXES)
def test_all_vfs_get_equal_shares_of_the_wire(rig: Rig, mix: str) -> None:
    rig.nic.set_wire(True, 1000)
    senders = [
        Saturating(rig.driver(i), frame(ELSEWHERE, rig.driver(i).mac, length=size)) for i, size in enumerate(MIXES[mix])
    ]
    before, began = sent(rig), rig.clock.now()
    frames = rig.nic.counters()["gptc"]
    for turn in range(1500):  # an eighth of a second
        for sender in senders:
            sender.go_on()
        rig.nic.serve()
        rig.clock.sleep((50 + turn * 7 % 60) * US_PS)
    shares = sent(rig) - before
    assert jain(shares.tolist()) > 0.99, shares
    gaps = 20 * (rig.nic.counters()["gptc"] - frames)
    link = (int(shares.sum()) + gaps) * 8000 / (rig.clock.now() - began)
    assert link == pytest.approx(1, rel=0.03), "and the wire is full"


@pytest.mark.parametrize("mix", MIXES)
def test_all_vfs_get_equal_shares_of_a_vf_that_does_not_keep_up(rig: Rig, mix: str) -> None:
    slow = VFS - 1
    to = rig.driver(slow).mac
    senders = [
        Saturating(rig.driver(i), frame(to, rig.driver(i).mac, length=size)) for i, size in enumerate(MIXES[mix][:slow])
    ]
    sink = Sink(rig.driver(slow))
    owners = {frame(to, rig.driver(i).mac)[6:12]: i for i in range(slow)}
    shares = [0] * slow
    for turn in range(1700):
        for sender in senders:
            sender.go_on()
        rig.nic.serve()
        for body in sink.take(4 + turn % 3):
            if turn >= 200:  # at first there is room for all
                shares[owners[body[6:12]]] += len(body) + 4
    assert jain(shares) > 0.99, shares


@pytest.mark.parametrize("sizes", [(60, 1514), (60, 60), (1514, 1514), (60, 508)])
def test_vfs_that_send_to_each_other_get_equal_shares_of_the_cards_time(rig: Rig, sizes: tuple[int, int]) -> None:
    """Nothing else is scarce between them: a pair of large frames gets more bytes, one of small frames more frames."""
    everyone = sinks(rig)
    senders = [
        Saturating(rig.driver(i), frame(rig.driver(i ^ 1).mac, rig.driver(i).mac, length=sizes[i // 2]))
        for i in range(4)
    ]

    def serve(*which: int) -> np.ndarray:
        before = rig.nic.port.nic["pools"]["gptc"][:4].copy()
        for _ in range(300):
            for i in which:
                senders[i].go_on()
            for sink in everyone:
                sink.open()
            rig.nic.serve()
            rig.clock.sleep(US_PS)
        return rig.nic.port.nic["pools"]["gptc"][:4] - before

    cost = []
    for i in range(4):
        work = int(rig.nic.port.nic["turn"]["work"])
        frames = serve(i)
        cost.append((int(rig.nic.port.nic["turn"]["work"]) - work) / int(frames[i]))
    shares = [float(count) * each for count, each in zip(serve(0, 1, 2, 3), cost, strict=True)]
    assert jain(shares) > 0.99, shares


def test_a_storm_that_is_dropped_takes_no_time_on_the_wire(rig: Rig) -> None:
    rig.nic.set_wire(True, 1000)
    rig.igb.set_switch(SwitchPolicy(storm=StormLimits(broadcast=1)))
    senders = [
        Saturating(rig.driver(i), frame(to, rig.driver(i).mac, length=1514))
        for i, to in enumerate((BROADCAST, ELSEWHERE))
    ]
    before, drops = rig.nic.tally()[1].ways.tx_wire_bytes, rig.drops(0).get("storm", 0)
    for _ in range(1000):
        for sender in senders:
            sender.go_on()
        rig.nic.serve()
        rig.clock.sleep(100 * US_PS)
    rig.igb.set_switch(SwitchPolicy())
    assert rig.drops(0)["storm"] - drops > 1000
    assert rig.nic.tally()[1].ways.tx_wire_bytes - before > 0.95 * 1514 / 1538 * 0.1 * 125e6


def test_who_asks_for_less_than_its_share_gets_it(rig: Rig) -> None:
    """Six VFs want all of the wire, one a twentieth: it gets that, and they share the rest."""
    rig.nic.set_wire(True, 1000)
    senders = [Saturating(rig.driver(i), frame(ELSEWHERE, rig.driver(i).mac, length=1514)) for i in range(1, VFS)]
    modest = rig.driver(0)
    before = sent(rig)
    for turn in range(2000):
        for sender in senders:
            sender.go_on()
        if turn % 3 == 0:
            send(modest, frame(ELSEWHERE, modest.mac, length=1514))
        rig.nic.serve()
        rig.clock.sleep(82 * US_PS)
    shares = sent(rig) - before
    assert shares[0] >= 0.98 * 2000 / 3 * 1518
    assert jain(shares[1:].tolist()) > 0.99, shares


# The line.

Stop = Callable[[Rig, int], None]
STOPS: dict[str, Stop] = {
    "gives no buffers": lambda rig, n: None,
    "gives one at a time": lambda rig, n: None,
    "has no link": lambda rig, n: rig.igb.set_link_state(n, LinkState.DISABLE),
    "is in quarantine": lambda rig, n: rig.igb.stop_vf(n),
    "is not up": lambda rig, n: rig.driver(n).stop(),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_receiver_that_stops_delays_nobody(rig: Rig, stop: str) -> None:
    """What is for others arrives in the turn in which it was sent, from VFs and from the wire, and to the wire."""
    rig.nic.set_wire(True, 0)
    a, b, c = (rig.driver(i) for i in range(3))
    stopped, other = Sink(b), Sink(c)
    STOPS[stop](rig, 1)
    for turn in range(200):
        wire = rig.nic.tally()[0].ways.tx_wire_frames
        send(
            a,
            *[frame(b.mac, a.mac, length=size) for size in (60, 1514)],
            frame(c.mac, a.mac, b"local %d" % turn),
            frame(b.mac, a.mac),
            frame(ELSEWHERE, a.mac),
        )
        arrives(rig, *[frame(to, ELSEWHERE, b"wire %d" % turn) for to in (b.mac, c.mac, b.mac, c.mac)])
        rig.nic.serve()
        if stop == "gives one at a time":
            stopped.take(1)
        heard = [body[14:].rstrip(b"\0") for body in other.take(64)]
        assert sorted(heard) == sorted([b"local %d" % turn, *[b"wire %d" % turn] * 2])
        assert rig.nic.tally()[0].ways.tx_wire_frames == wire + 1
    rig.igb.start_vf(1)
    rig.igb.set_link_state(1, LinkState.AUTO)
    assert sum(rig.drops(1).values()) + sum(rig.drops(0).values()) > 200, "and what it does not take is counted"


def test_a_wire_that_is_slow_delays_only_what_is_for_it(rig: Rig) -> None:
    rig.nic.set_wire(True, 10)
    wanting = Saturating(rig.driver(0), frame(ELSEWHERE, rig.driver(0).mac, length=1514))
    a, b, sink = rig.driver(1), rig.driver(2), Sink(rig.driver(2))
    before = rig.nic.tally()[0].ways.tx_wire_frames
    for turn in range(200):
        wanting.go_on()
        send(a, frame(b.mac, a.mac, b"%d" % turn))
        rig.nic.serve()
        assert len(sink.take(64)) == 1
        rig.clock.sleep(100 * US_PS)
    assert 0 < rig.nic.tally()[0].ways.tx_wire_frames - before < 40, "it is slow"


def test_a_vf_with_a_limit_delays_only_itself(rig: Rig) -> None:
    rig.igb.set_rate(0, 10)
    a, b, sink = rig.driver(1), rig.driver(2), Sink(rig.driver(2))
    limited = Saturating(rig.driver(0), frame(b.mac, rig.driver(0).mac, length=1514))
    before = sent(rig)[0]
    for turn in range(200):
        limited.go_on()
        send(a, frame(b.mac, a.mac, b"%d" % turn))
        rig.nic.serve()
        heard = [body[6:12] for body in sink.take(64)]
        assert heard.count(frame(b.mac, a.mac)[6:12]) == 1
        rig.clock.sleep(100 * US_PS)
    assert (sent(rig)[0] - before) * 8 == pytest.approx(10e6 * 0.022, rel=0.1), "20 ms, and a credit of 2"


# Interrupts.


def test_each_vf_has_a_throttle_of_its_own(rig: Rig) -> None:
    """Frames for an interrupt are the interval (EITR) over the time between frames, whatever the neighbours have."""
    intervals, paced_us, total = (0, 49, 100, 245, 1000), 10, 1000
    a = rig.driver(0)
    receivers = [rig.driver(1 + i) for i in range(len(intervals))]
    for i, us in enumerate(intervals):
        rig.registers(1 + i).set(VfRegs.VTEITR, us << 2, RX_VECTOR)
    before = [rig.guest(1 + i).interrupts for i in range(len(intervals))]
    for _ in range(total):
        send(a, *[frame(b.mac, a.mac) for b in receivers])
        rig.serve(1)
        for b in receivers:
            if b.netdev["polling"]:
                take(b)
                b.idle()
        rig.clock.sleep(paced_us * US_PS)
    rig.clock.sleep(MS_PS)
    rig.serve(1)
    for i, us in enumerate(intervals):
        frames = max(-(-us // paced_us), 1)
        assert rig.guest(1 + i).interrupts - before[i] == pytest.approx(total / frames, abs=2), us


def arrives(rig: Rig, *frames: bytes) -> None:
    """Let frames come in by the wire."""
    store = np.frombuffer(b"".join(frames) + bytes(64), np.uint8).copy()
    lengths = np.array([len(one) for one in frames], np.int64)
    done = 0
    while done < len(frames):
        done += rig.nic.arrive(store, np.cumsum(lengths) - lengths, lengths, done, len(frames) - done)[0]
