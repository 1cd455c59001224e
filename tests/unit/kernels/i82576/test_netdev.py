"""The driver's end of a queue pair, with the device played by the test."""

from __future__ import annotations

import pytest

from unit.guestrig import BUFFER, Driver, Pair, give_back, push, retag, room, take
from unit.nicrig import ether, mac, tagged
from virtfn.kernels.netdev import BATCH


def test_one_descriptor_always_stays_empty() -> None:
    d = Driver(8)
    assert room(d.address) == 7
    d.lengths[:7] = range(60, 67)
    push(d.address, 3)
    assert room(d.address) == 4
    assert int(d.words[0]) == 3
    push(d.address, 4)
    assert room(d.address) == 0
    assert [int(q1) >> 27 & 1 for _, q1 in d.tx[:7]] == [0, 0, 1, 0, 0, 0, 1]  # the last of each burst is reported
    assert [len(frame) for frame in d.sent()] == [*range(60, 67)]
    assert (int(d.row["tx_frames"]), int(d.row["tx_bytes"])) == (7, sum(range(60, 67)))


@pytest.mark.parametrize("head", [0, 3, 7])
def test_room_follows_the_head_that_the_device_writes(head: int) -> None:
    d = Driver(8)
    d.row["tx_tail"] = 2
    d.words[2] = head
    assert room(d.address) == (head - 2 - 1) % 8


def test_received_frames_are_taken_in_order_and_given_back() -> None:
    d = Driver(4)
    assert take(d.address, BATCH) == 0
    for k in range(10):
        d.deliver(bytes(60 + k))
        assert take(d.address, BATCH) == 1
        assert d.taken[0, :2].tolist() == [d.rx_buffers.ctypes.data + k % 4 * BUFFER, 60 + k]
        give_back(d.address, 1)
        assert int(d.rx[k % 4, 0]) == 0x800000 + k % 4 * BUFFER
        assert int(d.rx[k % 4, 1]) == 0
        assert int(d.words[1]) == k % 4  # one behind the next
        assert take(d.address, BATCH) == 0


def test_no_more_are_taken_than_asked_for_and_some_may_be_kept() -> None:
    d = Driver(8)
    for k in range(5):
        d.deliver(bytes(60 + k))
    assert (take(d.address, 3), d.taken[:3, 1].tolist()) == (3, [60, 61, 62])
    give_back(d.address, 2)
    assert (take(d.address, BATCH), d.taken[:3, 1].tolist()) == (3, [62, 63, 64])


def test_a_stripped_tag_is_told_and_put_back() -> None:
    d = Driver(4)
    d.vlans[0] = 1 << 5
    frame = ether(mac(0), mac(1), size=70)
    d.deliver(frame, status=3 | 1 << 3, vlan=0xE005)
    d.deliver(frame, status=3)
    d.deliver(frame, status=3 | 1 << 3, vlan=0x0064)  # of a VLAN that the host put the guest into
    assert (take(d.address, BATCH), d.taken[:3, 2].tolist()) == (3, [0xE005, -1, -1])
    at = retag(d.address, int(d.taken[0, 0]), 70, 0xE005)
    assert at == d.bounce.ctypes.data
    assert d.bounce[:74].tobytes() == tagged(frame, 0xE005)


@pytest.mark.parametrize(
    ("pieces", "errors"),
    [
        ([(2000, 1), (100, 3)], 1),
        ([(2000, 1), (2000, 1), (0, 3)], 1),
        ([(13, 3)], 1),
        ([(0, 3)], 1),
        ([(BUFFER, 3, BUFFER + 1)], 1),
        ([(60, 1), (60, 3), (60, 1), (60, 3)], 2),
    ],
)
def test_what_is_no_frame_is_an_error_once_and_the_next_one_counts(pieces: list[tuple[int, ...]], errors: int) -> None:
    """A frame in pieces is one error; its last piece is not taken for a frame of its own."""
    pair = Pair(200, 10)
    pair.poll(1, 1)
    (good,) = pair.drivers[1].sent()
    driver = pair.drivers[0]
    for size, status, *length in pieces:
        driver.deliver(bytes(size), status, length=length[0] if length else None)
        pair.poll(0)
    driver.deliver(good)
    pair.poll(0)
    assert int(driver.row["rx_errors"]) == errors
    assert (int(driver.row["rx_frames"]), pair.task(0, "corrupt"), pair.task(0, "foreign")) == (1, 0, 0)
    assert int(pair.workload._seen[0, 1, 0]) == 1


def test_a_driver_that_is_down_does_nothing() -> None:
    pair = Pair(200, 10)
    for d in pair.drivers:
        d.row["up"] = 0
    assert pair.poll(1) == (0, 0)
    assert pair.drivers[1].sent() == []


def test_empty_polls_are_counted() -> None:
    pair = Pair(200, 10)
    for _ in range(3):
        pair.poll(0)
    assert int(pair.drivers[0].row["empty_polls"]) == 3
    pair.poll(1)
    pair.drivers[0].deliver(pair.drivers[1].sent()[0])
    pair.poll(0)
    assert int(pair.drivers[0].row["empty_polls"]) == 0


@pytest.mark.parametrize("altered", [False, True])
def test_ping_pong(altered: bool) -> None:
    """ARP, then echo after echo; an altered reply is corrupt, and no answer."""
    pair = Pair(98, 5, kind="ping")
    a, b = pair.drivers
    for _ in range(12):
        pair.poll(0)
        for frame in a.sent():
            b.deliver(frame)
        pair.poll(1)
        for frame in b.sent():
            a.deliver(frame[:60] + bytes([frame[60] ^ 1]) + frame[61:] if altered and len(frame) == 98 else frame)
    found = [pair.task(0, name) for name in ("asked", "answered", "corrupt", "foreign")]
    assert found == ([1, 0, 1, 0] if altered else [5, 5, 0, 0])
    assert pair.task(1, "corrupt") == 0
