"""Chains, good and senseless, one by one: what a back end makes of each, and that a ring without sense stops alone."""

from __future__ import annotations

import struct

import pytest

from reference.virtio import EVENT, INDIRECT, MRG, Header
from unit.virtiorig import INDIRECT as TABLE
from unit.virtiorig import NEXT, WRITE, FrontEnd, ether, mac
from virtfn.devices.virtio import OFFERED, Bridge
from virtfn.machine.ports import VirtfnError

FRAME = ether(mac(1), mac(0), bytes(range(200)))
RAW = Header().pack() + FRAME


class Pair:
    """Two front ends; what the first sends is for the second."""

    def __init__(self, features: int = OFFERED, size: int = 64) -> None:
        self.bridge = Bridge()
        self.a = FrontEnd(self.bridge, size=size, features=features)
        self.b = FrontEnd(self.bridge, size=size, features=features)
        self.bridge.pin(self.b.port, mac(1))
        self.b.fill(16)

    def run(self) -> list[tuple[Header, bytes]]:
        self.a.kick()
        self.bridge.serve()
        assert self.a.memory.sound()
        assert self.b.memory.sound()
        return self.b.received()

    def place(self, raw: bytes = RAW) -> int:
        at = self.a.room(len(raw))
        self.a.memory.write(at, raw)
        return at


def rows(*descriptors: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<QIHH", a & (1 << 64) - 1, n, f, k) for a, n, f, k in descriptors)


def test_a_frame_in_one_descriptor_arrives_and_is_given_back() -> None:
    p = Pair()
    head = p.a.send(FRAME)
    assert p.run() == [(Header(), FRAME)]
    assert p.a.tx.reap() == [(head, 0)]
    assert p.a.back.errors() == {}
    assert p.b.back.costs()["copies"] == 1
    assert p.b.back.costs()["copy_bytes"] == len(FRAME)
    assert p.a.back.costs()["copies"] == 0


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 26, 27, 28, 29, len(RAW) - 1])
def test_header_and_frame_may_be_cut_anywhere(cut: int) -> None:
    p = Pair()
    at = p.place()
    p.a.tx.offer(p.a.tx.chain([(at, cut), (at + cut, 0), (at + cut, len(RAW) - cut)]))
    assert p.run() == [(Header(), FRAME)]


def test_a_header_of_twelve_descriptors_is_one() -> None:
    p = Pair()
    at = p.place()
    p.a.tx.offer(p.a.tx.chain([*((at + i, 1) for i in range(12)), (at + 12, len(FRAME))]))
    assert p.run() == [(Header(), FRAME)]


@pytest.mark.parametrize("direct", [0, 1, 2])
def test_a_table_may_come_behind_direct_descriptors(direct: int) -> None:
    p = Pair()
    at = p.place()
    inner = p.a.room(64)
    begun = 5 * direct
    p.a.memory.write(inner + 1, rows((at + begun, 20, NEXT, 1), (at + begun + 20, len(RAW) - begun - 20, 0, 0)))
    for i in range(direct):
        p.a.tx.descriptor(i, at + 5 * i, 5, NEXT, i + 1)
    p.a.tx.descriptor(direct, inner + 1, 32, TABLE | WRITE, 0)
    p.a.tx.offer(0)
    assert p.run() == [(Header(), FRAME)]


def test_a_buffer_across_adjoining_regions_is_whole_and_across_a_hole_is_not() -> None:
    p = Pair()
    at = 0x20000 - 100
    p.a.memory.write(at, RAW)
    p.a.tx.offer(p.a.tx.chain([(at, len(RAW))]))
    assert p.run() == [(Header(), FRAME)]
    p.a.tx.offer(p.a.tx.chain([(0x40000 - 100, len(RAW))]))
    p.a.send(FRAME)
    assert p.run() == [(Header(), FRAME)]
    assert p.a.back.errors() == {"unmapped": 1}


BAD_CHAINS = {
    "writable": ([(0x9000, 100, WRITE, 0)], "direction"),
    "writable tail": ([(0x9000, 100, NEXT, 1), (0x9100, 9, WRITE, 0)], "direction"),
    "nobody's": ([(0x7000_0000, 100, 0, 0)], "unmapped"),
    "wraps around": ([((1 << 64) - 8, 100, 0, 0)], "unmapped"),
    "sign bit": ([(1 << 63, 100, 0, 0)], "unmapped"),
    "longest length": ([(0x9000, 0xFFFFFFFF, 0, 0)], "too-long"),
    "header alone": ([(0x9000, 12, 0, 0)], "short"),
    "nothing": ([(0x9000, 0, 0, 0)], "short"),
    "no Ethernet header": ([(0x9000, 25, 0, 0)], "short"),
    "too long": ([(0x1_0000_0000, 0x10100, 0, 0)], "too-long"),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_bad_chain_goes_back_empty_and_the_next_is_taken(name: str) -> None:
    p = Pair()
    chain, error = BAD_CHAINS[name]
    for i, row in enumerate(chain):
        p.a.tx.descriptor(i, *row)
    p.a.tx.next = 8
    p.a.tx.offer(0)
    good = p.a.send(FRAME)
    assert p.run() == [(Header(), FRAME)]
    assert p.a.tx.reap() == [(0, 0), (good, 0)]
    assert p.a.back.errors() == {error: 1}
    assert not p.a.back.needs_reset


BREAKING = {
    "next outside": ([(0x9000, 20, NEXT, 64)], "next"),
    "points to itself": ([(0x9000, 0, NEXT, 0)], "loop"),
    "a circle": ([(0x9000, 0, NEXT, 1), (0x9000, 0, NEXT, 0)], "loop"),
    "table and next": ([(0x9000, 32, TABLE | NEXT, 1)], "indirect"),
    "empty table": ([(0x9000, 0, TABLE, 0)], "indirect"),
    "odd table": ([(0x9000, 33, TABLE, 0)], "indirect"),
    "long table": ([(0x9000, 16 * 65, TABLE, 0)], "indirect"),
    "nobody's table": ([(0x7000_0000, 32, TABLE, 0)], "indirect"),
    "table over the end": ([(0x40000 - 8, 32, TABLE, 0)], "indirect"),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_ring_without_sense_stops_and_says_so_and_comes_back_when_set_up_anew(name: str) -> None:
    p = Pair()
    chain, error = BREAKING[name]
    for i, row in enumerate(chain):
        p.a.tx.descriptor(i, *row)
    p.a.tx.next = 8
    p.a.tx.offer(0)
    p.a.send(FRAME)
    assert p.run() == []
    assert p.a.tx.reap() == []
    assert p.a.back.errors() == {error: 1}
    assert p.a.back.needs_reset
    assert int(p.a.back.channels[4 + 1]["sent"]) == 1
    p.b.send(ether(mac(0), mac(1), b"still here"))
    p.a.fill(2)
    p.bridge.serve()
    assert len(p.a.received()) == 1, "the other queue goes on"
    p.a.back.reset()
    assert p.a.back.accept(OFFERED)
    p.a.memory.write(p.a.tx.desc, bytes(p.a.tx.end - p.a.tx.desc))
    p.a.tx.index = p.a.tx.seen = p.a.tx.next = 0
    p.a.start()
    p.a.send(FRAME)
    assert p.run() == [(Header(), FRAME)]


@pytest.mark.parametrize("inner", [(0x9000, 32, TABLE, 0), (0x9000, 20, NEXT, 2), (0x9000, 0, NEXT, 0)])
def test_what_breaks_a_ring_breaks_it_in_a_table_too(inner: tuple[int, int, int, int]) -> None:
    p = Pair()
    p.a.memory.write(0x9000, rows(inner, (0x9100, 40, 0, 0)))
    p.a.tx.descriptor(0, 0x9000, 32, TABLE)
    p.a.tx.offer(0)
    assert p.run() == []
    assert p.a.back.needs_reset


def test_a_table_that_was_not_agreed_on_breaks_the_ring() -> None:
    p = Pair(OFFERED & ~(1 << INDIRECT))
    p.a.tx.descriptor(0, 0x9000, 32, TABLE)
    p.a.tx.offer(0)
    assert p.run() == []
    assert p.a.back.errors() == {"indirect": 1}


@pytest.mark.parametrize("jump", [65, 66, 1000, 32768, 65535])
def test_an_index_that_jumps_breaks_the_ring(jump: int) -> None:
    p = Pair()
    p.a.memory.write(p.a.tx.avail + 2, struct.pack("<H", jump))
    assert p.run() == []
    assert p.a.back.errors() == {"avail-index": 1}


@pytest.mark.parametrize("head", [64, 255, 65535])
def test_a_head_outside_the_table_breaks_the_ring(head: int) -> None:
    p = Pair()
    p.a.tx.offer(head)
    assert p.run() == []
    assert p.a.back.errors() == {"head": 1}


def test_a_full_ring_of_one_chain_is_taken_as_often_as_it_says() -> None:
    p = Pair()
    at = p.place()
    p.a.tx.descriptor(3, at, len(RAW), 0)
    for _ in range(64):
        p.a.tx.offer(3)
    p.b.fill(48)
    assert len(p.run()) == 64


def test_indices_run_over_the_end_of_16_bits() -> None:
    p = Pair(size=4)
    p.b.received()
    for i in range(70_000 // 4):
        for _ in range(4):
            p.a.tx.offer(p.a.tx.chain([(0x9000, len(RAW))]))
        if i == 0:
            p.a.memory.write(0x9000, RAW)
        p.a.kick()
        p.bridge.serve()
    assert p.a.back.errors() == {}
    assert int(p.a.back.row["tx"]["frames"]) == 70_000 // 4 * 4


# Receiving.


@pytest.mark.parametrize("merge", [True, False])
def test_a_frame_spreads_over_the_pieces_of_a_buffer(merge: bool) -> None:
    features = OFFERED if merge else OFFERED & ~(1 << MRG)
    bridge = Bridge()
    a, b = FrontEnd(bridge, features=features), FrontEnd(bridge, features=features)
    b.receive_into([(0x9000, 3), (0x1FFFF, 20), (0x9100, 0), (0x1_0000_0000, 400)])
    a.send(FRAME)
    bridge.serve()
    assert b.received() == [(Header(), FRAME)]
    assert b.memory.sound()


def test_merged_buffers_are_full_but_the_last() -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge)
    for size in (12, 50, 13, 100, 500, 64):
        b.receive_into([(b.room(size), size)])
    a.send(FRAME)
    bridge.serve()
    lengths = [length for _, length in b.rx.reap()]
    assert lengths == [12, 50, 13, 100, len(RAW) - 175]


def test_a_frame_without_room_is_dropped_and_the_buffers_stay() -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge)
    b.fill(2, 100)
    a.send(FRAME)
    bridge.serve()
    assert b.rx.reap() == []
    assert bridge.drops(b.port) == {"no-buffer": 1}
    b.fill(1, 100)
    a.send(FRAME)
    bridge.serve()
    assert len(b.received()) == 1


def test_without_merging_a_buffer_that_is_too_small_stays() -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge, features=OFFERED & ~(1 << MRG))
    b.fill(1, 100)
    a.send(FRAME)
    a.send(FRAME[:60])
    bridge.serve()
    assert [frame for _, frame in b.received()] == [FRAME[:60]]
    assert bridge.drops(b.port) == {"too-small": 1}


@pytest.mark.parametrize("size", range(12))
def test_a_receive_buffer_without_room_for_a_header_goes_back_empty(size: int) -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge)
    b.receive_into([(b.room(16), size)])
    b.fill(1)
    a.send(FRAME)
    bridge.serve()
    assert b.rx.reap() == [(0, 0), (1, len(RAW))]
    assert b.back.errors() == {"short": 1}


def test_a_bad_buffer_in_the_middle_of_a_frame_takes_nothing_with_it_but_buffers() -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge)
    b.fill(1, 100)
    b.receive_into([(0x7000_0000, 100)])
    b.fill(1, 400)
    a.send(FRAME)
    bridge.serve()
    assert b.rx.reap() == [(0, 0), (1, 0), (2, len(RAW))]
    assert b.back.errors() == {"unmapped": 1}


def test_a_readable_part_in_a_receive_buffer() -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge)
    b.rx.descriptor(0, 0x9000, 400, 0)
    b.rx.offer(0)
    b.rx.descriptor(1, 0x9000, 20, WRITE | NEXT, 2)
    b.rx.descriptor(2, 0x9000, 400, 0)
    b.rx.offer(1)
    a.send(FRAME)
    bridge.serve()
    assert b.back.errors() == {"direction": 1, "order": 1}
    assert b.back.needs_reset
    assert bridge.drops(b.port) == {"down": 1}


# Kicks and calls.


@pytest.mark.parametrize("events", [True, False])
def test_kicks_are_wanted_when_a_queue_ran_empty_and_not_while_it_is_served(events: bool) -> None:
    p = Pair(OFFERED if events else OFFERED & ~(1 << EVENT))
    p.a.send(FRAME)
    assert len(p.run()) == 1
    assert p.a.back.row["tx"]["armed"]
    assert (p.a.tx.kick_event if events else p.a.tx.kicks_off) == (1 if events else 0)
    p.a.tx.offer(0)
    p.a.back.channels["pending"][:2] = 0
    p.bridge.serve()
    assert p.b.received() == [], "nobody said that there is a frame"
    assert len(p.run()) == 1
    for _ in range(64):
        p.a.tx.offer(0)
    p.a.kick()
    p.bridge.serve(8)
    assert not p.a.back.row["tx"]["armed"]
    assert p.a.tx.kicks_off == (0 if events else 1)


def test_calls_come_when_the_index_that_was_asked_for_is_passed() -> None:
    p = Pair()
    p.a.send(FRAME)
    p.run()
    assert p.b.called == [0], "after the start there is a call in any case"
    for wanted, frames, calls in ((1, 1, 1), (5, 3, 0), (5, 1, 1), (4, 4, 0)):
        p.b.called.clear()
        p.b.rx.set_event(wanted)
        for _ in range(frames):
            p.a.send(FRAME)
        assert len(p.run()) == frames
        assert len(p.b.called) == calls


def test_calls_do_not_come_while_the_flag_is_set() -> None:
    p = Pair(OFFERED & ~(1 << EVENT))
    p.b.rx.set_flags(1)
    p.a.send(FRAME)
    p.run()
    assert p.b.called == []
    assert p.b.back.counters()["rx_calls_suppressed"] == 1
    p.b.rx.set_flags(0)
    p.a.send(FRAME)
    p.run()
    assert p.b.called == [0]


# Set-up.


@pytest.mark.parametrize("size", [0, 3, 65, 8192, 65536, 1 << 32])
def test_sizes_that_cannot_be_are_refused(size: int) -> None:
    p = Pair()
    with pytest.raises(VirtfnError, match="power of two"):
        p.a.back.set_queue(0, size, 0, 0x400, 0x800)


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [(8, 0x400, 0x800), (0, 0x401, 0x800), (0, 0x400, 0x802), (0x3FF00, 0x400, 0x800), (0x7000_0000, 0, 0),
     (0x1FF00, 0x400, 0x800), (0, 0x400, (1 << 64) - 4)],
)  # fmt: skip
def test_parts_that_are_not_aligned_or_not_in_one_region_are_refused(desc: int, avail: int, used: int) -> None:
    p = Pair()
    with pytest.raises(VirtfnError, match="cannot be at"):
        p.a.back.set_queue(0, 64, desc, avail, used)


@pytest.mark.parametrize(
    "memory",
    [[(0, 0, 4096)], [(0, -1, 4096)], [(0, 1 << 63, 4096)], [(1 << 63, 4096, 4096)],
     [(0, 8192, 4096), (4096, 4096, 65536)], [(i << 12, 4096, 4096) for i in range(65)]],
)  # fmt: skip
def test_memory_that_cannot_be_is_refused(memory: list[tuple[int, int, int]]) -> None:
    p = Pair()
    with pytest.raises(VirtfnError):
        p.a.back.set_memory(memory)
    p.a.send(FRAME)
    assert len(p.run()) == 1, "what was there before still counts"


def test_features_without_what_they_need_are_not_accepted() -> None:
    p = Pair()
    for features in (1 << 32 | 1 << 7, 1 << 32 | 1 << 11, 1 << 15, 1 << 32 | 1 << 34, 1 << 32 | 1 << 9 | 1 << 1):
        assert not p.a.back.accept(features)
