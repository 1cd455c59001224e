"""Transmit queues share the port by work, and what is scarce by bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import pytest

from unit.nicrig import EOP, IFCS, IXSM, RS, SCTP, TCP, TSE, TXSM, Rig, Words, context, data, ether, mac
from unit.saturation import jain
from virtfn.kernels.stray import CHECKED
from virtfn.machine.clock import US_PS

SLOW = 4
ELSEWHERE = 0x020000000099
GIGABIT = 8000  # ps a byte


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def b(rig: Rig) -> Rig:
    rig.reset()
    return rig


def tcp(dst: int, src: int, size: int) -> bytes:
    """Make a frame whose headers a large send can use."""
    network = bytes.fromhex("4500000000004000400600000a0000010a000002")
    return ether(dst, src, 0x0800, network + bytes(12) + b"\x50\x18" + bytes(6), size)


class Saturating:
    """A queue whose ring is full of the same chain, always."""

    def __init__(self, b: Rig, q: int, chain: list[Words], size: int = 64) -> None:
        self.b, self.q, self.size = b, q, size
        b.open_tx(q, size)
        for slot in range(size):
            b.put(1, q, slot, *chain[slot % len(chain)])
        assert size % len(chain) == 0

    def go_on(self) -> None:
        self.b.regs[1, self.q, 6] = (self.b.head(1, self.q) - 1) % self.size


def plain(b: Rig, q: int, dst: int, size: int) -> Saturating:
    return Saturating(b, q, [data(b.store(q % 8, ether(dst, mac(q % 8), size=size)), size)])


def large_send(b: Rig, q: int, dst: int, size: int = 20_000, mss: int = 1460) -> Saturating:
    at = b.store(q, tcp(dst, mac(q), size))
    return Saturating(b, q, [context(mss=mss, l4t=TCP), data(at, size, EOP | RS | IFCS | TSE | TXSM | IXSM, size - 54)])


MIXES: dict[str, tuple[Callable[[Rig, int, int], Saturating], ...]] = {
    "large": tuple(lambda b, q, dst: plain(b, q, dst, 1514) for _ in range(3)),
    "sizes": tuple(lambda b, q, dst, n=n: plain(b, q, dst, n) for n in (60, 1514, 600)),
    "segments": (large_send, lambda b, q, dst: plain(b, q, dst, 60), lambda b, q, dst: plain(b, q, dst, 1514)),
}


@pytest.mark.parametrize("mix", MIXES)
def test_equal_pools_get_equal_shares_of_a_paced_wire(b: Rig, mix: str) -> None:
    b.set(wire_up=1, wire_ps_per_byte=GIGABIT)
    senders = [make(b, q, ELSEWHERE) for q, make in enumerate(MIXES[mix])]
    now = 10_000_000 * US_PS
    for turn in range(2_000):
        for sender in senders:
            sender.go_on()
        b.serve(now=now)
        now += (40 + turn * 7 % 100) * US_PS
    shares = [b.stat(sender.q, "gotc") for sender in senders]
    assert jain(shares) > 0.99, shares
    frames = sum(b.stat(sender.q, "gptc") for sender in senders)
    assert sum(shares) + 24 * frames == pytest.approx(2_000 * 90 * 125, rel=0.05), "and the wire is full"


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("drop", [True, False], ids=["drops", "holds-up"])
@pytest.mark.parametrize("every", [1, 3, 4])
def test_equal_pools_get_equal_shares_of_a_slow_receiver(b: Rig, mix: str, drop: bool, every: int) -> None:
    b.open_rx(SLOW, 64, drop=drop, fill=5)
    senders = [make(b, q, mac(SLOW)) for q, make in enumerate(MIXES[mix])]
    had = dict.fromkeys((sender.q for sender in senders), 0)
    for turn in range(400 * every):
        for sender in senders:
            sender.go_on()
        b.serve()
        if turn % every == 0:
            got = b.done(SLOW)
            for one in got:
                had[one.data[11] - 0x10] += len(one.data) + 4
            b.refill(SLOW, min(len(got), 5 + turn % 3))
    assert sum(had.values()) > 100_000
    assert jain(list(had.values())) > 0.99, had


def test_a_pool_with_two_queues_has_one_share(b: Rig) -> None:
    b.set(wire_up=1, wire_ps_per_byte=GIGABIT)
    senders = [plain(b, q, ELSEWHERE, 1514) for q in (0, 8, 1)]
    now = 10_000_000 * US_PS
    for _ in range(1_000):
        for sender in senders:
            sender.go_on()
        b.serve(now=now)
        now += 100 * US_PS
    assert jain([b.stat(0, "gotc"), b.stat(1, "gotc")]) > 0.99


@pytest.mark.parametrize("junk", [0, 63], ids=["little", "little-among-junk"])
def test_who_asks_for_little_holds_up_nobody(b: Rig, junk: int) -> None:
    """A pool that sends a small frame in every call, and is never kept waiting, has no claim on the others' share."""
    b.set(wire_up=1, wire_ps_per_byte=GIGABIT)
    greedy = [plain(b, q, ELSEWHERE, 1514) for q in (0, 1)]
    b.open_tx(2)
    small = data(b.store(2, ether(ELSEWHERE, mac(2), size=60)), 60)
    nowhere = data(b.store(2, ether(mac(2), mac(2), size=60)), 60)
    now = 10_000_000 * US_PS
    for _ in range(1_000):
        for sender in greedy:
            sender.go_on()
        if b.head(1, 2) == b.tails[1, 2]:
            b.post(2, small, *[nowhere] * min(junk, 60))
        b.serve(now=now)
        now += 100 * US_PS
    assert b.stat(2, "gptc") > 400, "it gets what it asks for"
    shares = [b.stat(q, "gotc") for q in (0, 1)]
    assert jain(shares) > 0.99
    assert sum(shares) > 0.9 * 1_000 * 100 * 125


def test_who_is_always_refused_holds_up_nobody(b: Rig) -> None:
    """A ring kept empty, and a sender that is refused at it in every call: others' frames behind one to it go on."""
    b.open_rx(SLOW, 8, fill=0)
    b.open_rx(5, 64, fill=63)
    refused = plain(b, 1, mac(SLOW), 60)
    b.open_tx(0)
    body = b.store(0, ether(mac(5), mac(0), size=100))
    other = b.store(0, ether(mac(SLOW), mac(0), size=1514))
    for turn in range(300):
        refused.go_on()
        if turn in (20, 21, 22):
            b.refill(SLOW, 1)
        b.post(0, *([data(other, 1514)] if turn % 10 == 0 or 20 <= turn < 23 else []), *[data(body, 100)] * 4)
        b.serve()
        assert b.head(1, 0) == b.tails[1, 0], f"nothing waits at the head of the queue after call {turn}"
        b.refill(5, len(b.done(5)))
    assert b.stat(5, "gprc") == 1200


def test_a_pool_that_comes_back_starts_where_the_others_are(b: Rig) -> None:
    b.set(wire_up=1, wire_ps_per_byte=GIGABIT)
    now = 10_000_000 * US_PS

    def go(calls: int, *senders: Saturating) -> list[int]:
        nonlocal now
        before = [b.stat(q, "gotc") for q in (0, 1)]
        for _ in range(calls):
            for sender in senders:
                sender.go_on()
            b.serve(now=now)
            now += 100 * US_PS
        return [b.stat(q, "gotc") - was for q, was in zip((0, 1), before, strict=True)]

    first, second = plain(b, 0, ELSEWHERE, 1514), plain(b, 1, ELSEWHERE, 1514)
    go(2_000, first)
    go(100)
    go(100, second)
    assert jain(go(200, first, second)) > 0.99


def test_a_pool_that_took_little_has_saved_nothing_up(b: Rig) -> None:
    b.set(wire_up=1, wire_ps_per_byte=GIGABIT)
    greedy = plain(b, 0, ELSEWHERE, 1514)
    b.open_tx(1)
    small = data(b.store(1, ether(ELSEWHERE, mac(1), size=60)), 60)
    now = 10_000_000 * US_PS
    for turn in range(2_000):
        greedy.go_on()
        if turn < 1_000 and b.head(1, 1) == b.tails[1, 1]:
            b.post(1, small)
        if turn == 1_000:
            late = plain(b, 1, ELSEWHERE, 1514)
            before = [b.stat(q, "gotc") for q in (0, 1)]
        if turn >= 1_000:
            late.go_on()
        b.serve(now=now)
        now += 100 * US_PS
        if turn == 1_100:
            assert jain([b.stat(q, "gotc") - was for q, was in zip((0, 1), before, strict=True)]) > 0.97


def test_a_pool_that_is_alone_is_not_held_up(b: Rig) -> None:
    b.open_rx(SLOW, 64, fill=63)
    sender = large_send(b, 0, mac(SLOW))
    sender.go_on()
    b.serve()
    assert b.counter("tsctc") >= 1, "twenty thousand bytes go in one call"


# What a driver can ask for, beside an honest pair: pool 0 sends to pool 1 and back.


def open_chain(b: Rig, q: int) -> None:
    b.open_tx(q, 4096 // 16)
    for slot in range(250):
        b.put(1, q, slot, *data(0x100000, 0, 0, 0))
    b.regs[1, q, 6] = 250


def sctp(b: Rig, q: int) -> Saturating:
    """Chains of a quarter of a megabyte, too long to be sent, with the dearest checksum there is."""
    total = 7 * 0x8FFF
    first = data(0x100000, 0x8FFF, TXSM | IFCS, total)
    last = data(0x100000, 0x8FFF, EOP | IFCS, total)
    return Saturating(b, q, [context(l4t=SCTP), first, *[data(0x100000, 0x8FFF, 0, 0)] * 5, last])


FLOODS: dict[str, Callable[[Rig, int], object]] = {
    "segments": lambda b, q: large_send(b, q, mac(SLOW), 60_000, 1),
    "open-chain": open_chain,
    "checksums": sctp,
    "faults": lambda b, q: Saturating(b, q, [data(0x4000_0000, 60)]),
    "no-descriptor": lambda b, q: plain(b, q, mac(SLOW), 60),
    "broadcast": lambda b, q: plain(b, q, (1 << 48) - 1, 1514),
    "nonsense": lambda b, q: Saturating(b, q, [data(0x100000, 60, payload=61)]),
}


def rate(b: Rig, others: list[Saturating], calls: int = 300) -> float:
    """Measure frames a second of processor time of pools 0 and 1, which receive as they go."""
    pair = [plain(b, 0, mac(1), 60), plain(b, 1, mac(0), 60)]
    before = b.stat(0, "gptc") + b.stat(1, "gptc")
    began = time.process_time()
    for _ in range(calls):
        for sender in pair:
            sender.go_on()
            b.regs[0, sender.q, 6] = (b.head(0, sender.q) - 1) % 64
        for sender in others:
            sender.go_on()
        b.serve()
        unit = b.iommu.unit[0]
        unit["fault_head"] = unit["fault_tail"]
        b.set(misbehaved=0, pending=0)
        b.nic["card"]["fired"] = 0
    return (b.stat(0, "gptc") + b.stat(1, "gptc") - before) / (time.process_time() - began)


@pytest.mark.skipif(CHECKED, reason="not run: the checked build's rates mean nothing")
@pytest.mark.parametrize("flood", FLOODS)
def test_a_neighbour_keeps_its_share(b: Rig, flood: str) -> None:
    for q in (0, 1):
        b.open_rx(q, 64, fill=63)
    quiet, beside = [], []
    for _ in range(5):
        b.regs[1, 2, 10] = 0
        quiet.append(rate(b, []))
        made = FLOODS[flood](b, 2)
        beside.append(rate(b, [made] if isinstance(made, Saturating) else []))
    assert median(beside) > 0.4 * median(quiet), f"{median(beside):.0f} of {median(quiet):.0f} frames a second"


def test_what_was_walked_is_not_walked_again(b: Rig) -> None:
    open_chain(b, 2)
    b.serve()
    before = int(b.nic["turn"]["work"])
    for _ in range(10):
        b.serve()
    assert int(b.nic["turn"]["work"]) == before
    b.open_rx(SLOW, 64)
    frame = ether(mac(SLOW), mac(2), size=100)
    b.put(1, 2, 250, *data(b.store(2, frame), 100, EOP | IFCS, 100))
    b.regs[1, 2, 6] = 251
    b.serve()
    assert b.head(1, 2) == 251, "and it ends as any other chain"


def test_a_withdrawn_frame_is_dropped_and_counted(b: Rig) -> None:
    """A frame that holds up the line was counted as sent: whatever its sender does, it ends in a count as well."""
    b.open_rx(SLOW, 8, drop=False, fill=0)
    for what in ("readdressed", "taken back"):
        b.open_tx(0)
        b.send(0, ether(mac(SLOW), mac(0), size=100))
        at = b.fresh[0] - 100
        b.serve()
        assert b.port["stalled"] == 1
        if what == "readdressed":
            b.write(0, at, (0x02FFFFFFFFFF).to_bytes(6, "little"))
        else:
            b.regs[1, 0, 10] = 0
        b.serve()
        assert b.port["stalled"] == 0
    assert sum(b.drops().values()) == 2, b.drops()
    assert np.count_nonzero([count for (pool, _), count in b.drops().items() if pool == 0]) == len(b.drops())


def test_what_storm_control_drops_takes_no_time_on_the_wire(b: Rig) -> None:
    b.open_tx(0)
    b.set(wire_up=1, wire_ps_per_byte=8000, storm=8, storm_ps=10**11, storm_most_broadcasts=64)
    now = 10**12
    b.send(0, *[ether((1 << 48) - 1, mac(0), size=1000)] * 40)
    b.serve(now=now)
    assert b.drops() == {(0, "storm"): 40}
    assert b.port["wire_next_ps"] <= now
