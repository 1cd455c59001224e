"""Uplink kernels agree with their slow twins, on streams good and hostile; departures leave in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.uplink import cut
from unit.rig import Rig, frame, send
from virtfn.kernels.ranges import address_of
from virtfn.kernels.streams import MAX_STREAM_FRAME, cut_stream, whole_frames

_lengths = st.one_of(
    st.integers(0, 70), st.integers(0, 1600), st.sampled_from([13, 14, 59, 60, 61, 9724, 9725, MAX_STREAM_FRAME])
)
_frames = st.lists(_lengths.map(lambda n: bytes(n * 3 + i & 255 for i in range(n))), max_size=12)
_tails = st.one_of(
    st.binary(max_size=8),
    st.integers(MAX_STREAM_FRAME + 1, 0xFFFFFFFF).map(lambda n: n.to_bytes(4, "big") + bytes(9)),
    st.just((100).to_bytes(4, "big") + bytes(99)),
)


def as_stream(frames: list[bytes]) -> bytes:
    return b"".join(len(f).to_bytes(4, "big") + f for f in frames)


@settings(deadline=None)
@given(_frames, _tails, st.integers(0, 200), st.integers(1, 12))
def test_frames_are_found_as_the_twin_finds_them(frames, tail, start, most):
    stream = as_stream(frames) + tail
    store = np.zeros(start + len(stream) + 60 * most, np.uint8)
    store[start : start + len(stream)] = np.frombuffer(stream, np.uint8)
    offsets, lengths = np.zeros(most, np.int64), np.zeros(most, np.int64)
    count, rest, sound = cut_stream(
        address_of(store), start, start + len(stream), start + len(stream), offsets, lengths
    )
    found = [store[a : a + n].tobytes() for a, n in zip(offsets[:count], lengths[:count], strict=True)]
    assert (found, stream[rest - start :], sound) == cut(stream, most, MAX_STREAM_FRAME)


@settings(deadline=None)
@given(_frames, st.integers(0, 1 << 17))
def test_whole_frames_are_counted(frames, cut_at):
    stream = as_stream(frames)
    cut_at = min(cut_at, len(stream))
    store = np.frombuffer(stream + bytes(8), np.uint8)
    whole, left, _ = cut(stream[:cut_at], 1000, MAX_STREAM_FRAME)
    assert whole_frames(address_of(store), cut_at) == (len(whole), cut_at - len(left))


@settings(deadline=None, max_examples=20)  # each brings a machine up
@given(st.data())
def test_departures_leave_in_order_whatever_is_taken_at_a_time(data):
    with Rig() as rig:
        rig.nic.port.set_wire(True, 0)
        rig.nic.open_wire()
        driver, expected, got = rig.driver(0), [], b""
        for step in range(data.draw(st.integers(1, 12))):
            bodies = [
                frame(0x1234_5678_9A02, driver.mac, bytes([step, n]), length=data.draw(st.integers(60, 1514)))
                for n in range(data.draw(st.integers(0, 100)))
            ]
            send(driver, *bodies)
            rig.serve()
            expected += bodies
            waiting = rig.nic.departures()
            _, nbytes = whole_frames(address_of(waiting), data.draw(st.integers(0, waiting.size)))
            got += waiting[:nbytes].tobytes()
            rig.nic.release_departures(nbytes)
        got += rig.nic.departures().tobytes()
        assert got == as_stream(expected)
        rig.nic.discard_departures()
        assert rig.nic.departures().size == 0


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from((0x0800, 0x86DD, 0x0806)), st.integers(0, 70), st.booleans())))
def test_a_bare_wire_leaves_padding_behind_ipv4_packets_off(packets):
    with Rig() as rig:
        rig.nic.port.set_wire(True, 0)
        rig.nic.open_wire(bare=True)
        driver, expected = rig.driver(0), []
        for kind, total, longer in packets:
            addresses = frame(0x1234_5678_9A02, driver.mac, b"")[:12]
            packet = kind.to_bytes(2, "big") + b"\x45\0" + total.to_bytes(2, "big") + bytes(range(1, 43))
            body = addresses + packet + bytes(4 if longer else 0)
            send(driver, body)
            rig.serve()
            short = kind == 0x0800 and 20 <= total <= 46 and not longer
            expected.append(body[: 14 + total] if short else body)
        assert rig.nic.departures().tobytes() == as_stream(expected)
