"""The short path does what the general path does: same bytes in memory, same registers, same counters."""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.nicrig import (
    EOP,
    IFCS,
    IXSM,
    POOLS,
    RS,
    SCTP,
    TCP,
    TXSM,
    UDP,
    VLE,
    Rig,
    context,
    data,
    ether,
    mac,
    snapshot,
    tagged,
)
from virtfn.kernels.csum import toeplitz_key
from virtfn.kernels.i82576.state import CHAIN
from virtfn.kernels.ranges import address_of
from virtfn.machine.memory import CHUNK

SENDER, RECEIVERS = 0, (1, 2)
TARGETS = {"a": mac(1), "b": mac(2), "self": mac(0), "group": (1 << 48) - 1, "stranger": mac(15)}


SIZES = [14, 18, 20, 22, 30, 37, 42, 54, 55, 56, 59, 60, 61, 64, 68, 69, 71, 72, 76, 128, 129, 500, 1514, 1519, 9724]
KINDS = {
    "local": 0x88B5,
    "udp4": 0x0800,
    "tcp4": 0x0800,
    "udp6": 0x86DD,
    "tcp6": 0x86DD,
    "noise4": 0x0800,
    "noise6": 0x86DD,
}


@dataclass(frozen=True)
class Sent:
    """One frame, and what is asked of the device. tci: -1 for none. wrong: what of its context is."""

    target: str = "a"
    spoofed: bool = False
    kind: str = "local"
    size: int = 60
    report: bool = True
    lie: bool = False
    nowhere: bool = False
    tci: int = -1
    options: int = 0
    seed: int = 0
    trailer: int = 0
    asks: int = 0
    wrong: int = 0
    context: bool = True


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Rig, Rig]]:
    short, general = Rig(seed=3), Rig(seed=3)
    yield short, general
    short.close()
    general.close()


frames = st.lists(
    st.builds(
        Sent,
        st.sampled_from(["a", "a", "a", "b", "b", "self", "group", "stranger"]),
        st.sampled_from([False] * 7 + [True]),
        st.sampled_from(list(KINDS)),
        st.sampled_from(SIZES),
        st.booleans(),
        st.sampled_from([False] * 15 + [True]),
        st.sampled_from([False] * 15 + [True]),
        st.sampled_from([-1, -1, -1, 5, 0xA005, 6, 0]),
        st.sampled_from([0, 0, 0, 1, 2, 10]),
        st.integers(0, 7),
        st.sampled_from([0, 0, 0, 1, 6]),
        st.sampled_from([0, 0, TXSM, IXSM, TXSM | IXSM, VLE, VLE | TXSM, VLE | TXSM | IXSM]),
        st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
        st.sampled_from([True, True, False]),
    ),
    min_size=1,
    max_size=40,
)


def checksum(content: bytes) -> int:
    content += bytes(len(content) & 1)
    total = sum(int.from_bytes(content[i : i + 2], "big") for i in range(0, len(content), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ip_packet(s: Sent, number: int) -> bytes:
    """Make an IP packet that fills a frame of `s.size` bytes but for its trailer; some wrong."""
    rng = random.Random(s.seed * 1000 + number)
    six = s.kind.endswith("6")
    room = max(0, s.size - 14 - s.trailer)
    header = 40 if six else 20 + 4 * s.options
    if s.kind.startswith("noise") or room < header + 20:
        start = bytes([(6 if six else 4) << 4 | rng.choice([5, 5, 6, 15, 0])])
        if not six and s.seed & 1:
            start = bytes([0x45, 0, 0, 20])  # no more than a header, and perhaps not even that
        return (start + rng.randbytes(room))[:room]
    tcp = s.kind.startswith("tcp")
    size = room - header
    field = 16 if tcp else 6
    segment = bytearray(rng.randbytes(size))
    if not tcp:
        segment[4:6] = (size - (s.seed == 2)).to_bytes(2, "big")
    segment[field : field + 2] = b"\0\0"
    protocol = 6 if tcp else 17
    addresses = rng.randbytes(32 if six else 8)
    pseudo = addresses + protocol.to_bytes(2, "big") + size.to_bytes(2, "big")
    value = checksum(pseudo) ^ 0xFFFF if s.asks & TXSM else checksum(pseudo + bytes(segment)) * (s.seed != 3)
    segment[field : field + 2] = (value ^ (1 if s.seed == 5 else 0)).to_bytes(2, "big")
    if six:
        return bytes([0x60, 0, 0, 0]) + size.to_bytes(2, "big") + bytes([protocol, 64]) + addresses + bytes(segment)
    fragment = 0x2000 if s.seed == 6 else 0
    ip = bytes([0x45 + s.options, 0]) + room.to_bytes(2, "big") + bytes(2) + fragment.to_bytes(2, "big")
    ip = ip + bytes([64, protocol, 0, 0]) + addresses + bytes(4 * s.options)
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:] if s.seed != 4 else ip
    return ip + bytes(segment)


def frame_of(s: Sent, number: int) -> bytes:
    source = mac(7) if s.spoofed else mac(SENDER)
    payload = bytes([number]) if s.kind == "local" else ip_packet(s, number)
    frame = ether(TARGETS[s.target], source, KINDS[s.kind], payload, s.size)[: s.size]
    return tagged(frame, s.tci) if s.tci >= 0 else frame


def context_of(s: Sent) -> tuple[int, int]:
    """Make the context that a frame's headers ask for, or one that is wrong."""
    iplen = 40 if s.kind.endswith("6") else 20 + 4 * s.options
    kind = TCP if s.kind.startswith("tcp") else UDP
    if s.wrong == 1:
        iplen += 4
    if s.wrong == 2:
        kind = TCP if kind == UDP else UDP
    if s.wrong == 3:
        kind = SCTP
    maclen = 14 + (4 if s.tci >= 0 else 0) - (2 if s.wrong == 4 else 0)
    return context(maclen=maclen, iplen=iplen, l4t=kind, vlan=s.seed << 13 | 5, idx=s.seed & 1)


def memory_of(rig: Rig, pool: int) -> npt.NDArray[np.uint8]:
    """Look at a pool's memory as it lies in the host's; two rigs of one seed lay it out alike."""
    start = rig.chunks[pool] - int(rig.memory.base)
    return rig.memory.bytes[start : start + CHUNK]


@dataclass(frozen=True)
class World:
    """How the port is set up. port_vlan: vlan_mode of the sender. members: pools in VLAN 5.

    hole: what of the first receiver the IOMMU refuses: buffer, or ring. pools: whether there are any; else all is
    pool 0's. bare: short packets leave without what fills them up.
    """

    rings: int = 16
    drop: bool = True
    spoof: bool = True
    blocking: bool = False
    head_wb: bool = False
    wire: bool = False
    hole: str = ""
    pad: bool = False
    strip: bool = False
    port_vlan: int = 0
    filtered: bool = False
    members: int = 7
    rss: int = 0
    sums: bool = True
    in_descriptor: bool = True
    pools: bool = True
    bare: bool = False


worlds = st.builds(
    World,
    st.sampled_from([8, 16, 48]),
    *[st.booleans()] * 5,
    st.sampled_from(["", "", "buffer", "buffer", "ring"]),
    *[st.booleans()] * 2,
    st.sampled_from([0, 0, 0, 1, 2]),
    st.booleans(),
    st.sampled_from([7, 7, 3, 1]),
    st.sampled_from([0, 0xFF, 0x12]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([True, True, False]),
    st.sampled_from([False, False, True]),
)


def set_up(rig: Rig, w: World) -> None:
    rig.reset()
    for pool in (SENDER, *RECEIVERS):
        memory_of(rig, pool)[:] = 0
    rig.set(
        mac_spoof_pools=0xFF if w.spoof else 0,
        vlan_spoof_pools=0xFF if w.spoof and w.filtered else 0,
        mdp=int(w.blocking),
        vmdq=int(w.pools),
        wire_up=int(w.wire),
        departures=address_of(rig.nic["departed"]),
        departed_bare=int(w.bare),
        pad=int(w.pad),
        vfe=int(w.filtered),
        aupe_pools=0xFF,
        rss=int(w.rss != 0),
        rss_fields=w.rss,
        rx_ip_checksum=int(w.sums),
        rx_l4_checksum=int(w.sums),
        rss_in_descriptor=int(w.in_descriptor),
    )
    rig.nic["departed"][: 1 << 16] = 0
    rig.nic["vlans"][:] = 0
    rig.nic["vlans"][5] = w.members | 1 << 8
    rig.nic["vlans"][0] = 7 | 1 << 8
    rig.nic["rss_key"][:] = toeplitz_key(bytes(range(40)))
    rig.nic["reta"][:] = 0
    for n in range(POOLS):
        rig.nic["pools"][n]["strip"] = int(w.strip)
        rig.nic["pools"][n]["rsse"] = int(w.rss != 0)
    rig.nic["pools"][SENDER]["vlan_mode"] = w.port_vlan
    rig.nic["pools"][SENDER]["vlan_tag"] = 0x6005
    rig.open_tx(SENDER, 64, head_wb=w.head_wb)
    for n in RECEIVERS if w.pools else (SENDER,):
        rig.open_rx(n, w.rings, drop=w.drop)
    first = 1 if w.pools else SENDER
    for n in (SENDER, 1):
        for hole, at in (("buffer", rig.places(n, 1)[0]), ("ring", rig.ring(0, n))):
            rig.protect(n, at, 0 if w.hole == hole and n == first else 3)


def post(rig: Rig, sent: list[Sent]) -> None:
    posted = 0
    for i, s in enumerate(sent):
        frame = frame_of(s, i)
        flags = EOP | IFCS | (RS if s.report else 0)
        if s.asks and s.context and posted < 60:
            rig.post(SENDER, context_of(s))
            posted += 1
        at = rig.store(SENDER, frame) if not s.nowhere else 0x7000_0000 + i * 4096
        if posted < 62:
            rig.post(SENDER, data(at, len(frame), flags | s.asks, len(frame) + s.lie, s.seed & 1))
            posted += 1


def state(rig: Rig) -> dict[str, object]:
    transient = {"epoch", "win_lo", "win_hi", "win_hpa", "near", "near_hpa", "near_bytes", "outward"}
    transient |= {"regs", "iommu", "scratch", "captured", "rss_key", "mirror", "departures"}
    rows = {"port": rig.port, "counters": rig.nic["counters"]}
    rows |= {f"pool {n}": rig.nic["pools"][n] for n in range(POOLS)}
    rows |= {"tx": rig.nic["tx"][SENDER]}
    # What was gathered of a chain that is sent is not looked at again.
    transient |= {*CHAIN} - {"walked", "gathered", "whole", "segments_done"}
    found: dict[str, object] = {
        name: {k: v for k, v in snapshot(row).items() if k not in transient} for name, row in rows.items()
    }
    # One path may latch a receive queue's registers one frame before the other: heads and drops tell what it did.
    found["rx"] = [(int(rig.nic["rx"][n]["head"]), int(rig.nic["rx"][n]["drops"])) for n in (SENDER, *RECEIVERS)]
    found["departed"] = zlib.crc32(rig.nic["departed"][: 1 << 16]), int(rig.nic["card"]["departed"])
    found["drops"] = rig.drops()
    found["registers"] = rig.regs[:, :, 4:].tolist()
    found["faults"] = rig.faults
    found["bytes"] = [rig.nic["dropped_bytes"].tolist(), rig.nic["to_wire"].tolist()]
    found["memory"] = [zlib.crc32(memory_of(rig, n)) for n in (SENDER, *RECEIVERS)]
    return found


@settings(max_examples=120, deadline=None)
@given(sent=frames, world=worlds, budget=st.sampled_from([1, 3, 64]))
def test_local_switching_equals_the_general_path(
    pair: tuple[Rig, Rig], sent: list[Sent], world: World, budget: int
) -> None:
    short, general = pair
    for rig in pair:
        set_up(rig, world)
        post(rig, sent)
    general.set(mirror=1)  # mirroring, with no rule: nothing is mirrored, but no frame is ordinary any more
    for _ in range(4):
        assert short.serve(budget=budget) == general.serve(budget=budget)
        assert state(short) == state(general)
        for rig in pair:
            rig.refill(1 if world.pools else 0, 2)


@settings(max_examples=120, deadline=None)
@given(sent=frames, world=worlds)
def test_arrivals_equal_those_of_the_general_path(pair: tuple[Rig, Rig], sent: list[Sent], world: World) -> None:
    short, general = pair
    for rig in pair:
        set_up(rig, replace(world, wire=True))
    general.set(mirror=1)
    arriving = [frame_of(s, i) for i, s in enumerate(sent)]
    taken = 0
    for _ in range(4):
        count, events = short.wire(*arriving, first=taken)
        assert (count, events) == general.wire(*arriving, first=taken)
        assert state(short) == state(general)
        taken += count
        for rig in pair:
            rig.refill(1 if world.pools else 0, 2)


@settings(max_examples=80, deadline=None)
@given(sent=frames, world=worlds, budget=st.sampled_from([1, 3, 64]))
def test_taps_see_the_same_on_both_paths_and_change_nothing(
    pair: tuple[Rig, Rig], sent: list[Sent], world: World, budget: int
) -> None:
    short, general = pair
    for rig in pair:
        set_up(rig, world)
        post(rig, sent)
        rig.tap()
    general.set(mirror=1)
    try:
        for _ in range(4):
            assert short.serve(budget=budget) == general.serve(budget=budget)
            had = short.seen()
            assert had == general.seen()
            assert state(short) == state(general)
            for rig in pair:
                rig.refill(1 if world.pools else 0, 2)
    finally:
        for rig in pair:
            rig.untap()


COMMON = [
    Sent(),
    Sent(kind="udp4", size=64),
    Sent(kind="tcp4", size=300, target="b"),
    Sent(kind="udp6", size=76, tci=5),
    Sent(kind="tcp6", size=300, asks=TXSM),
    Sent(kind="tcp4", size=500, asks=TXSM | IXSM | VLE, target="b"),
    Sent(kind="udp4", size=60, tci=5, asks=TXSM),
    Sent(kind="tcp4", size=54, asks=TXSM),
]


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("port_vlan", [0, 1])
def test_common_frames_are_switched_locally(pair: tuple[Rig, Rig], strip: bool, port_vlan: int) -> None:
    # The property above would hold of a short path that never ran. The general path copies heads to the scratch area.
    short, _ = pair
    set_up(short, World(rss=0xFF, pad=True, strip=strip, port_vlan=port_vlan, filtered=True))
    gathered = short.nic["scratch"][48 << 10 :]
    gathered[:64] = short.nic["scratch"][:64] = 0xCC
    sent = [s for s in COMMON if not port_vlan or s.tci < 0]
    post(short, sent)
    assert short.serve()[0] == len(sent) + sum(s.asks != 0 for s in sent)
    had = [*short.frames(1), *short.frames(2)]
    assert len(had) == len(sent)
    assert all(frame.status >> 29 & 3 == 0 for frame in had)
    assert (short.nic["scratch"][:64] == 0xCC).all()
    assert (gathered[:64] == 0xCC).all()


@pytest.mark.parametrize("pools", [True, False])
def test_common_frames_go_to_the_wire_and_come_from_it_the_short_way(pair: tuple[Rig, Rig], pools: bool) -> None:
    short, _ = pair
    set_up(short, World(wire=True, pad=True, pools=pools))
    short.nic["scratch"][:64] = 0xCC
    out = [Sent("stranger", kind=kind, size=size) for kind, size in (("udp4", 60), ("tcp6", 1514), ("local", 64))]
    post(short, out)
    assert short.serve()[0] == len(out)
    assert int(short.nic["card"]["departed"]) == len(out)
    sent = [frame_of(s, i) for i, s in enumerate(out)]
    departed = b"".join(len(f).to_bytes(4, "big") + f for f in sent)
    assert short.nic["departed"][: len(departed)].tobytes() == departed

    kinds = (("udp4", 60), ("tcp6", 500), ("local", 64))
    coming = [Sent("a" if pools else "self", kind=kind, size=size) for kind, size in kinds]
    arriving = [frame_of(s, i) for i, s in enumerate(coming)]
    assert short.wire(*arriving)[0] == len(coming)
    assert [frame.data for frame in short.frames(1 if pools else 0)] == arriving
    assert short.counter("gprc") == short.counter("tpr") == len(coming)
    assert (short.nic["scratch"][:64] == 0xCC).all()
