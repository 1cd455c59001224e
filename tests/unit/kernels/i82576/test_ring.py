"""Rings from the device's end: what it takes over from the registers, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.nicrig import Rig, ether, mac
from virtfn.kernels._jit import kernel
from virtfn.kernels.i82576.ring import latch, publish, ring_count
from virtfn.kernels.i82576.state import nic_at

ENABLE = 1 << 25
HEAD, TAIL, CONTROL, LENGTH, LAYOUT, WRITE_BACK = 4, 6, 10, 2, 3, 14


@kernel
def latch_at(address: int, q: int, epoch: int, receive: bool) -> bool:
    nic = nic_at(address)
    return latch(nic.rx[q] if receive else nic.tx[q], epoch, receive)


@kernel
def publish_at(address: int, q: int, receive: bool) -> int:
    nic = nic_at(address)
    r = nic.rx[q] if receive else nic.tx[q]
    publish(r)
    return ring_count(r)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def b(rig: Rig) -> Rig:
    rig.reset()
    rig.open_tx(0, 64)
    return rig


def test_a_head_that_software_rewrote_is_taken_over(b: Rig) -> None:
    row = b.nic["tx"][0]
    b.regs[1, 0, TAIL] = 10
    assert latch_at(b.address, 0, 1, False)
    row["head"] = 7
    assert publish_at(b.address, 0, False) == 3
    assert b.head(1, 0) == 7
    assert latch_at(b.address, 0, 2, False)
    assert row["head"] == 7
    b.regs[1, 0, HEAD] = 2
    assert latch_at(b.address, 0, 3, False)
    assert (row["head"], publish_at(b.address, 0, False)) == (2, 8)


@pytest.mark.parametrize("head", [64, 65, 0xFFFF])
def test_a_head_outside_the_ring_is_zero(b: Rig, head: int) -> None:
    b.regs[1, 0, HEAD], b.regs[1, 0, TAIL] = head, 5
    assert latch_at(b.address, 0, 1, False)
    assert (b.nic["tx"][0]["head"], publish_at(b.address, 0, False)) == (0, 5)


def test_low_bits_of_base_and_length_do_not_count(b: Rig) -> None:
    b.regs[1, 0, 0] |= 0x7F
    b.regs[1, 0, LENGTH] = 0xFFF0047F
    b.regs[1, 0, TAIL] = 1
    latch_at(b.address, 0, 1, False)
    assert (b.nic["tx"][0]["base"], b.nic["tx"][0]["size"]) == (b.ring(1, 0), 64)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        (0x82000002, (1, 2048, 0, 1)),
        (0x8A000202, (5, 2048, 128, 1)),
        (0x00000000, (0, 1024, 0, 0)),
        (0x0A003F7F, (5, 127 * 1024, 960, 0)),
    ],
)
def test_srrctl(b: Rig, word: int, wanted: tuple[int, int, int, int]) -> None:
    row = b.nic["rx"][0]
    row["default_bytes"] = 1024
    b.open_rx(0)
    b.regs[0, 0, LAYOUT] = word
    latch_at(b.address, 0, 1, True)
    assert tuple(int(row[n]) for n in ("layout", "packet_bytes", "header_bytes", "drop_enable")) == wanted


def test_a_ring_without_length_holds_nothing(b: Rig) -> None:
    b.regs[1, 0, LENGTH] = 0
    assert latch_at(b.address, 0, 1, False)
    assert publish_at(b.address, 0, False) == 0
    assert b.serve() == (0, 0)


def test_a_stopped_queue_may_say_anything(b: Rig) -> None:
    b.regs[1, 0, CONTROL] = 0
    b.regs[1, 0, TAIL] = 0xFFFF
    assert latch_at(b.address, 0, 1, False)
    assert b.serve() == (0, 0)
    assert b.port["misbehaved"] == 0


def test_a_receive_tail_one_past_the_end_hands_over_the_whole_ring(b: Rig) -> None:
    size = int(b.regs[0, 0, LENGTH]) // 16
    for receive, owned in ((True, size), (False, 0)):
        b.regs[0 if receive else 1, 0, TAIL] = size
        latch_at(b.address, 0, 1, receive)
        row = b.nic["rx" if receive else "tx"][0]
        assert row["tail"] - row["head"] == owned


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.integers(0, 0xFFFFFFFF), min_size=16, max_size=16),
    length=st.sampled_from([0, 128, 1024, 0x100000, 0xFFFFFFFF]),
    on=st.booleans(),
    receive=st.booleans(),
)
def test_any_registers_are_safe(rig: Rig, words: list[int], length: int, on: bool, receive: bool) -> None:
    """Whatever a driver writes: head and tail lie in the ring, and no more than the ring is the device's."""
    rig.reset()
    regs = rig.regs[0 if receive else 1, 0]
    regs[:] = words
    regs[LENGTH] = length
    regs[CONTROL] = ENABLE if on else 0
    latch_at(rig.address, 0, 1, receive)
    row = rig.nic["rx" if receive else "tx"][0]
    size = int(row["size"])
    assert size == (length & 0xFFF80) // 16
    assert 0 <= row["head"] < max(size, 1)
    assert 0 <= row["tail"] < max(size + receive, 1)
    assert 0 <= publish_at(rig.address, 0, receive) < max(size, 1)
    assert row["base"] % 128 == 0


@settings(max_examples=100, deadline=None)
@given(
    tx=st.lists(st.integers(0, 0xFFFFFFFF), min_size=16, max_size=16),
    rx=st.lists(st.integers(0, 0xFFFFFFFF), min_size=16, max_size=16),
    sane=st.booleans(),
)
def test_any_registers_leave_other_pools_alone(rig: Rig, tx: list[int], rx: list[int], sane: bool) -> None:
    rig.reset()
    rig.open_tx(2)
    rig.open_rx(3)
    rig.regs[1, 0], rig.regs[0, 0] = tx, rx
    for side in (0, 1):
        rig.regs[side, 0, CONTROL] = ENABLE
        if sane:
            rig.regs[side, 0, :3] = rig.ring(side, 0), 0, 1024
    rig.send(2, ether(mac(3), mac(2), size=80), ether(mac(0), mac(2), size=80))
    for _ in range(3):
        rig.serve()
    if not rig.port["stalled"]:
        assert rig.head(1, 2) == 2
    assert [f.data for f in rig.frames(3)] == [ether(mac(3), mac(2), size=80)]
