"""A cable between two cards: what leaves one arrives at the other, in order, and what has no room waits."""

from __future__ import annotations

import select
from collections.abc import Iterator

import numpy as np
import pytest

from virtfn.kernels.ranges import address_of
from virtfn.vmm.uplink import CableEnd, make_cable


@pytest.fixture
def ends() -> Iterator[tuple[CableEnd, CableEnd]]:
    made = make_cable()
    yield made
    for end in made:
        end.close()


def departures(*frames: bytes) -> np.ndarray:
    made = np.frombuffer(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames), np.uint8)
    address_of(made)  # as a card's are
    return made


def arrived(end: CableEnd) -> list[bytes]:
    frames = []
    while len(burst := end.receive()):
        frames += [
            bytes(burst.bytes[at : at + length])
            for at, length in zip(burst.offsets.tolist(), burst.lengths.tolist(), strict=True)
        ]
    return frames


def rings(end: CableEnd) -> bool:
    return bool(select.select([end.fileno()], [], [], 0)[0])


def test_frames_arrive_both_ways_in_order_and_ring(ends):
    a, b = ends
    assert a.attend()
    assert not rings(b)
    frames = [bytes([n]) * (60 + n) for n in range(200)]
    sent = departures(*frames)
    assert a.send(sent) == sent.size
    assert rings(b)
    assert not rings(a)
    b.send(departures(b"back" * 15))
    assert arrived(b) == frames
    assert arrived(a) == [b"back" * 15]
    assert not rings(b)


def test_a_burst_stays_as_it_is_while_more_comes(ends):
    a, b = ends
    a.send(departures(b"first" * 20))
    burst = b.receive()
    a.send(departures(b"second" * 20))
    assert bytes(burst.bytes[burst.offsets[0] :][: burst.lengths[0]]) == b"first" * 20
    assert arrived(b) == [b"second" * 20]


def test_what_has_no_room_waits_at_the_card(ends):
    a, b = ends
    frames = [bytes([n % 256]) * 1514 for n in range(300)]
    sent = departures(*frames)
    taken = a.send(sent)
    assert 0 < taken < sent.size
    assert taken % 1518 == 0
    assert a.send(sent[taken:]) == 0
    assert arrived(b) == frames[: taken // 1518]
    assert a.send(sent[taken:]) == sent.size - taken
    assert arrived(b) == frames[taken // 1518 :]


def test_one_end_pulled_out_is_the_end_for_both(ends):
    a, b = ends
    b.close()
    assert not a.attend()
    assert a.send(departures(bytes(60))) == 0
    assert b.fileno() == -1
    b.close()
