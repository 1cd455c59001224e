"""Receive against its twin: what frames are, and what drivers find in descriptors and buffers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import receive as twin
from unit.nicrig import STANDARD, TAGGED, Rig
from unit.packets import frames
from virtfn.kernels._jit import kernel
from virtfn.kernels.csum import toeplitz_key
from virtfn.kernels.i82576.classify import classify, split_point
from virtfn.kernels.i82576.state import nic_at
from virtfn.kernels.ranges import address_of

KEY = bytes(range(40))


@kernel
def classify_at(address: int, head: int, body: int, length: int, start: int) -> tuple[int, int]:
    return classify(nic_at(address), head, body, length, start)


@kernel
def split_at(address: int, frame: int, length: int, room: int, always: bool) -> int:
    return split_point(nic_at(address), frame, length, room, always)


@pytest.fixture(scope="module", params=[True, False], ids=["scattered", "contiguous"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(scattered=request.param)
    yield made
    made.close()


def start_of(frame: bytes) -> int:
    return 18 if frame[12:14] == b"\x81\x00" and len(frame) >= 18 else 14


def words(kind: twin.Kind) -> tuple[int, int]:
    q0 = sum(1 << bit for bit in kind.packet) | kind.rss_type | kind.digest << 32
    return q0, sum(1 << bit for bit in kind.status)


_offloads = st.builds(twin.Offloads, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 0x1FF), st.just(KEY))


def ask_for(rig: Rig, want: twin.Offloads) -> None:
    rig.set(rx_ip_checksum=want.ip, rx_l4_checksum=want.l4, rss=want.rss, rss_fields=want.fields, rss_in_descriptor=1)
    rig.nic["rss_key"][:] = toeplitz_key(want.key)


@settings(max_examples=300, deadline=None)
@given(frame=frames(), want=_offloads)
def test_classify(rig: Rig, frame: bytes, want: twin.Offloads) -> None:
    rig.reset()
    ask_for(rig, want)
    body = np.frombuffer(frame + b"\xa5" * 256, np.uint8)
    head = np.frombuffer(frame[:128].ljust(128, b"\x5a"), np.uint8)
    start = start_of(frame)
    got = classify_at(rig.address, address_of(head), address_of(body), len(frame), start)
    assert tuple(value & (1 << 64) - 1 for value in got) == words(twin.classify(frame, start, want))


@settings(max_examples=200, deadline=None)
@given(frame=frames(), room=st.integers(1, 15).map(lambda n: n * 64), always=st.booleans())
def test_split_point(rig: Rig, frame: bytes, room: int, always: bool) -> None:
    rig.reset()
    memory = np.frombuffer(frame + b"\x45" * 256, np.uint8)
    wanted = twin.pieces(frame, 5 if always else 2, 1 << 20, room)
    assert split_at(rig.address, address_of(memory), len(frame), room, always) == len(wanted[0][0])


@settings(max_examples=250, deadline=None)
@given(
    batch=st.lists(frames(), min_size=1, max_size=6),
    want=_offloads,
    layout=st.sampled_from([0, 1, 1, 2, 5, 5]),
    header=st.sampled_from([0, 64, 128, 960]),
    kib=st.sampled_from([0, 1, 2, 3]),
    default=st.sampled_from([256, 512, 1024, 2048]),
    strip=st.booleans(),
    fill=st.integers(0, 15),
)
def test_frames_from_the_wire(
    rig: Rig, batch: list[bytes], want: twin.Offloads, layout: int, header: int, kib: int, default: int,
    strip: bool, fill: int,
) -> None:  # fmt: skip
    """Every frame arrives whole, in the descriptors and buffers that the layout says, or is dropped and counted."""
    rig.reset()
    ask_for(rig, want)
    rig.pool(1, strip=strip)
    for row in rig.nic["rx"]:
        row["default_bytes"] = default
    rig.open_rx(1, layout=layout, kib=kib, header=header, fill=fill)
    rig.buffers[1] = kib * 1024 or default, header
    taken, _ = rig.wire(*batch)
    assert taken == len(batch)
    free, dropped, wanted = fill, 0, []
    for frame in batch:
        tci = int.from_bytes(frame[14:16], "big") if start_of(frame) == 18 else None
        kind = twin.classify(frame, start_of(frame), want)
        stripped = strip and tci is not None
        content = frame[:12] + frame[16:] if stripped else frame
        pieces = twin.pieces(content, layout, kib * 1024 or default, header)
        if len(pieces) > free:
            dropped += 1
            continue
        free -= len(pieces)
        wanted.append((frame, pieces, kind, tci if stripped else None))
    got = rig.frames(1)
    assert len(got) == len(wanted)
    for one, (frame, pieces, kind, tag) in zip(got, wanted, strict=True):
        assert [(d.header, d.data) for d in one.descriptors] == pieces
        q0, status = words(kind)
        for i, d in enumerate(one.descriptors):
            eop = i == len(pieces) - 1
            bits = status | 1 | int(eop) << 1 | int(tag is not None) << 3
            if layout == 0:
                assert d.q1 >> 32 & 0xFF == bits & 0xFF
                assert d.q1 >> 40 & 0xFF == bits >> 24
            else:
                split = len(pieces[0][0]) if i == 0 else 0
                assert d.q0 == q0 | (split << 21 | 1 << 31 if split else 0)
                assert d.status == bits
            assert d.vlan == (tag or 0)
        assert frame
    assert rig.drops() == ({(1, "no-descriptor"): dropped} if dropped else {})
    assert int(rig.nic["rx"][1]["drops"]) == rig.counter("rnbc") == dropped
    size = sum(len(frame) + 4 for frame, *_ in wanted)
    assert (rig.stat(1, "gprc"), rig.stat(1, "gorc"), rig.stat(1, "gprlbc")) == (len(wanted), size, 0)
    assert (rig.counter("gprc"), rig.counter("rpthc"), rig.counter("tpr")) == (
        len(batch),
        len(wanted),
        len(batch),
    )
    assert rig.counter("hgorc") == size
    assert bool(int(rig.port["eicr"]) & 2) == bool(wanted)
    assert rig.head(0, 1) == fill - free
    assert rig.faults == 0


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(14, 2000),
    tag=st.booleans(),
    limits=st.sampled_from([(STANDARD, TAGGED), (1400, 1400), (1600, 1600)]),
)
def test_longest_frame(rig: Rig, size: int, tag: bool, limits: tuple[int, int]) -> None:
    """Limits count the frame check sequence; only without LPE is a tag allowed for."""
    rig.reset()
    rig.pool(1, max_frame=limits[0], max_tagged=limits[1])
    rig.open_rx(1)
    frame = bytes.fromhex("020000000011020000000010") + (b"\x81\x00\x00\x05" if tag else b"\x88\xb5").ljust(
        size - 12, b"x"
    )
    fits = size + 4 <= limits[int(tag and size >= 18)]
    rig.wire(frame[:size])
    assert [f.data for f in rig.frames(1)] == ([frame[:size]] if fits else [])
    assert rig.drops() == ({} if fits else {(1, "oversize"): 1})
    assert rig.counter("roc") == int(not fits)
