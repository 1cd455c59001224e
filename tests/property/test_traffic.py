"""The workload's frames against their twin: every alteration is found, every frame is accounted for."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reference import traffic as twin
from unit.guestrig import Pair, check_frame, frame_check_value
from virtfn.kernels.ranges import address_of
from virtfn.kernels.traffic import digest

M64 = (1 << 64) - 1


def at(frame: bytes) -> tuple[np.ndarray, int]:
    memory = np.frombuffer(frame + b"\x99" * 64, np.uint8)
    return memory, address_of(memory)


def accepted(pair: Pair, frame: bytes) -> bool:
    """Show a frame to guest 0 and tell whether it took it for a new one of guest 1's."""
    names = ("corrupt", "repeated", "reordered", "foreign")
    before = [pair.task(0, name) for name in names]
    memory, address = at(frame)
    check_frame(pair.address, 0, address, len(frame))
    assert memory.size
    return before == [pair.task(0, name) for name in names]


def generate(pair: Pair, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        pair.poll(1, count - len(frames))
        frames += pair.drivers[1].sent()
    return frames


@pytest.mark.parametrize("length", [60, 61, 67, 100, 1514])
def test_generated_frames_are_the_twins(length: int) -> None:
    pair = Pair(length, 100)
    frames = generate(pair, 100)
    assert [int.from_bytes(f[16:24], "little") for f in frames] == list(range(100))
    for frame in frames:
        assert len(frame) == length
        assert frame[:12] == bytes.fromhex("020000000010020000000011")
        assert frame[12:16] == b"\x88\xb5\x01\x00"
        assert int.from_bytes(frame[24:32], "little") == twin.check_value(frame)
    assert len({f[32:] for f in frames}) == 32  # each buffer has its own filler


@settings(deadline=None)
@given(frame=st.binary(min_size=32, max_size=200))
def test_check_value(frame: bytes) -> None:
    memory, address = at(frame)
    assert frame_check_value(address, len(frame)) & M64 == twin.check_value(frame)
    assert memory.size


@settings(deadline=None)
@given(frame=st.binary(max_size=200))
def test_digest(frame: bytes) -> None:
    memory, address = at(frame)
    assert digest(address, len(frame)) & M64 == twin.digest(frame)
    assert memory.size


@pytest.mark.parametrize("length", [60, 75])
def test_every_single_bit_counts(length: int) -> None:
    pair = Pair(length, 4)
    frame = generate(pair, 1)[0]
    known = twin.digest(frame)
    for bit in range(8 * length):
        altered = bytearray(frame)
        altered[bit // 8] ^= 1 << bit % 8
        assert not accepted(pair, bytes(altered)), f"bit {bit}"
        memory, address = at(bytes(altered))
        assert digest(address, length) & M64 != known, len(memory)
    assert pair.task(0, "corrupt") == 8 * (length - 2)
    assert pair.task(0, "foreign") == 16  # without the right type it is nobody's
    assert accepted(pair, frame)


def test_every_cut_and_every_swap_of_neighbours_counts() -> None:
    pair = Pair(131, 4)
    frame = generate(pair, 1)[0]
    for size in range(14, 131):
        assert not accepted(pair, frame[:size]), size
        assert not accepted(pair, frame[:size] + bytes(131 - size)) or not any(frame[size:]), size
    for step in (1, 2, 4, 8, 16):
        for i in range(131 - 2 * step):
            a, b = frame[i : i + step], frame[i + step : i + 2 * step]
            if a != b:
                assert not accepted(pair, frame[:i] + b + a + frame[i + 2 * step :]), (step, i)
    assert not accepted(pair, frame + b"\0")
    assert accepted(pair, frame)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_alteration_passes(data: st.DataObject) -> None:
    """Any bytes written over any place; the head of one frame with the tail of another."""
    length = data.draw(st.sampled_from([60, 99, 600]))
    pair = Pair(length, 8)
    first, second = generate(pair, 2)
    if data.draw(st.booleans()):
        patch = data.draw(st.binary(min_size=1, max_size=20))
        where = data.draw(st.integers(0, length - len(patch)))
        altered = first[:where] + patch + first[where + len(patch) :]
    else:
        cut = data.draw(st.integers(1, length - 1))
        altered = first[:cut] + second[cut:]
    assume(altered not in (first, second))
    assert not accepted(pair, altered)


_event = st.sampled_from(["pass"] * 8 + ["lose", "double", "late", "flip", "cut", "foreign", "number", "sender"])


@settings(max_examples=150, deadline=None)
@given(events=st.lists(_event, min_size=1, max_size=100), seed=st.integers(0, 1 << 30))
def test_a_stream_is_accounted_for_frame_by_frame(events: list[str], seed: int) -> None:
    """Lost, repeated, reordered, altered: the receiver's counters are exact."""
    rng = random.Random(seed)
    pair = Pair(80, 100)
    frames = generate(pair, len(events))
    stream: list[bytes] = []
    late: list[bytes] = []
    truth = {"corrupt": 0, "foreign": 0, "repeated": 0}
    got = set()
    for k, (event, frame) in enumerate(zip(events, frames, strict=True)):
        raw = bytearray(frame)
        match event:
            case "lose":
                continue
            case "late":
                late.append(frame)
                got.add(k)
                continue
            case "double":
                stream.append(frame)
                truth["repeated"] += 1
            case "flip":
                raw[rng.choice([*range(12), *range(14, 80)])] ^= 1 << rng.randrange(8)
            case "cut":
                raw = raw[: rng.randrange(14, 80)]
            case "foreign":
                raw[12:14] = b"\x08\x00"
            case "number":  # a sender that goes beyond what it was to send
                raw[16:24] = rng.choice([128, 1 << 40, M64]).to_bytes(8, "little")
                raw[24:32] = twin.check_value(bytes(raw)).to_bytes(8, "little")
            case "sender":
                raw[14:16] = rng.choice([2, 63, 0xFFFF]).to_bytes(2, "little")
                raw[24:32] = twin.check_value(bytes(raw)).to_bytes(8, "little")
        if event in ("pass", "double"):
            got.add(k)
        else:
            truth["foreign" if event == "foreign" else "corrupt"] += 1
        stream.append(bytes(raw))
        if late and rng.random() < 0.3:
            stream.append(late.pop(rng.randrange(len(late))))
    stream += late
    receiver = twin.Receiver(2, 128)
    driver = pair.drivers[0]
    for frame in stream:
        receiver.take(frame)
        driver.deliver(frame)
        pair.poll(0)
    for name in ("corrupt", "foreign", "repeated", "reordered"):
        assert pair.task(0, name) == getattr(receiver, name)
    assert {name: pair.task(0, name) for name in truth} == truth
    assert set(receiver.had.get(1, [])) == got
    seen = np.unpackbits(pair.workload._seen[0, 1].view(np.uint8), bitorder="little")
    assert set(np.flatnonzero(seen).tolist()) == got
    assert int(driver.row["rx_frames"]) == len(stream)
