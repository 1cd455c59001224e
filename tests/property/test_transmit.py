"""Transmit against its twin: chains of descriptors, sound, altered and senseless; the same frames come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.csum import ones_sum
from reference.transmit import Queue, Sent
from unit.nicrig import (
    DEXT,
    EOP,
    IC,
    IFCS,
    IXSM,
    RS,
    TSE,
    TXSM,
    VLE,
    Rig,
    context,
    data,
    ether,
    legacy,
    mac,
    tagged,
)
from unit.packets import TCP, UDP, ipv4, ipv6, pseudo, wrap
from virtfn.machine.memory import CHUNK

Chain = list[tuple[int, int, bytes]]  # q0 (0: where the bytes are put), q1, bytes


@pytest.fixture(scope="module", params=[True, False], ids=["scattered", "contiguous"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(scattered=request.param)
    yield made
    made.close()


def cut(frame: bytes, cuts: list[int], q1: int, payload: int) -> Chain:
    """Spread a frame over descriptors: EOP and RS on the last only."""
    edges = [0, *sorted(c % (len(frame) + 1) for c in cuts), len(frame)]
    parts = [frame[a:b] for a, b in pairwise(edges)]
    return [
        (0, data(0, len(p), q1 & ~(EOP | RS) if i + 1 < len(parts) else q1, payload)[1], p) for i, p in enumerate(parts)
    ]


_flags = st.sampled_from([EOP | RS | IFCS, EOP | RS | IFCS, EOP | IFCS])
_cuts = st.lists(st.integers(0, 2000), max_size=3)
_sizes = st.one_of(st.integers(14, 200), st.integers(14, 1600), st.sampled_from([0, 5, 13, 14, 59, 60, 61]))
_tci = st.sampled_from([0, 5, 0xE005, 0xFFFF])


@st.composite
def plain(draw: st.DrawFn) -> Chain:
    size = draw(_sizes)
    frame = ether(mac(1), mac(0), size=size)[:size]
    if draw(st.booleans()) and size >= 14:
        frame = tagged(frame, draw(_tci))
    return cut(frame, draw(_cuts), draw(_flags), len(frame) + draw(st.sampled_from([0] * 12 + [1, -1])))


@st.composite
def offloaded(draw: st.DrawFn) -> Chain:
    """A context, and an IP frame whose checksums the device is asked for, tagged perhaps."""
    protocol, v4 = draw(st.sampled_from([TCP, UDP, 132])), draw(st.booleans())
    body = bytes(i * 13 & 0xFF for i in range(draw(st.integers(0, 600))))
    options = bytes([1]) * 4 * draw(st.sampled_from([0, 0, 3, 10]))
    frame = wrap(ipv4(protocol, body, options=options) if v4 else ipv6(protocol, body))
    iplen = 20 + len(options) if v4 else 40
    raw = bytearray(frame)
    l4 = 14 + iplen
    addresses = frame[26:34] if v4 else frame[22:54]
    place = l4 + {TCP: 16, UDP: 6, 132: 8}[protocol]
    if protocol != 132:
        raw[place : place + 2] = ones_sum(pseudo(addresses, protocol, len(frame) - l4)).to_bytes(2, "big")
    idx, tci = draw(st.integers(0, 1)), draw(_tci)
    c0, c1 = context(14, iplen, 0, 0, {UDP: 0, TCP: 1, 132: 2}[protocol], v4, tci, idx)
    asked = draw(_flags) | TXSM | (IXSM if v4 and draw(st.booleans()) else 0) | (VLE if draw(st.booleans()) else 0)
    return [(c0, c1, b""), *cut(bytes(raw), draw(_cuts), asked | idx << 36, len(frame))]


@st.composite
def large(draw: st.DrawFn) -> Chain:
    """A context, and a large send to be cut into frames."""
    protocol, v4 = draw(st.sampled_from([TCP, TCP, UDP])), draw(st.booleans())
    mss = draw(st.sampled_from([1, 8, 100, 536, 1000, 1448]))
    body = bytes(i * 29 & 0xFF for i in range(draw(st.integers(1, min(12 * mss, 9000)))))
    options = bytes([1]) * 4 * draw(st.sampled_from([0, 3])) if protocol == TCP else b""
    packet = ipv4(protocol, body, tcp_options=options, ident=draw(st.sampled_from([0, 7, 0xFFFE])))
    frame = bytearray(wrap(packet if v4 else ipv6(protocol, body, tcp_options=options)))
    l4 = 34 if v4 else 54
    frame[16 + (0 if v4 else 2) : 18 + (0 if v4 else 2)] = b"\0\0"
    if draw(st.booleans()) and protocol == TCP:
        frame[l4 + 4 : l4 + 8] = b"\xff\xff\xff\xf0"
    place = l4 + (16 if protocol == TCP else 6)
    addresses = bytes(frame[26:34] if v4 else frame[22:54])
    frame[place : place + 2] = ones_sum(pseudo(addresses, protocol, 0)).to_bytes(2, "big")
    header = 20 + len(options) if protocol == TCP else 8
    idx = draw(st.integers(0, 1))
    c0, c1 = context(14, l4 - 14, header, mss, 1 if protocol == TCP else 0, v4, draw(_tci), idx)
    asked = draw(_flags) | TSE | TXSM | (IXSM if v4 else 0) | (VLE if draw(st.booleans()) else 0)
    paylen = len(body) + draw(st.sampled_from([0] * 12 + [1, -1]))
    return [(c0, c1, b""), *cut(bytes(frame), draw(_cuts), asked | idx << 36, paylen)]


@st.composite
def old(draw: st.DrawFn) -> Chain:
    """A legacy chain, with a checksum or a tag perhaps."""
    frame = ether(mac(1), mac(0), 0x0800, size=draw(st.integers(14, 400)))
    more = (IC if draw(st.booleans()) else 0) | (VLE if draw(st.booleans()) else 0)
    cso, css, tci = draw(st.integers(0, 255)), draw(st.integers(0, 255)), draw(_tci)
    parts = cut(frame, draw(_cuts), EOP | RS | IFCS, 0)
    last = legacy(0, len(parts[-1][2]), EOP | draw(_flags) | more, cso, css, tci)[1]
    return [(0, legacy(0, len(p), IFCS)[1], p) for _, _, p in parts[:-1]] + [(0, last, parts[-1][2])]


@st.composite
def senseless(draw: st.DrawFn) -> Chain:
    """Any bits at all, or a few wrong ones in a sound chain."""
    kind = draw(st.sampled_from(["noise", "elsewhere", "flip", "flip"]))
    if kind == "noise":
        q1 = draw(st.integers(0, (1 << 64) - 1))
        q1 = q1 & ~0xFFFF | draw(st.sampled_from([0, 20, 60, 300, 65535]))
        q1 |= draw(st.sampled_from([0, DEXT, DEXT | 3 << 20, DEXT | 2 << 20]))
        return [(0, q1, ether(mac(1), mac(0), size=300))]
    if kind == "elsewhere":  # not the sender's memory, or not all of it
        where = draw(st.sampled_from([CHUNK - 10, CHUNK, 1 << 40, (1 << 64) - 8, 1 << 63]))
        size = draw(st.sampled_from([60, 1500, 9000]))
        return [(where, data(0, size, EOP | draw(st.sampled_from([0, RS, VLE, RS | VLE])))[1], b"")]
    chain = draw(st.one_of(plain(), offloaded(), large(), old()))
    k = draw(st.integers(0, len(chain) - 1))
    q0, q1, content = chain[k]
    which, flip = draw(st.integers(0, 1)), 1 << draw(st.integers(0, 63))
    is_context = q1 >> 20 & 0xF == 2
    chain[k] = (q0 ^ flip, q1, content) if which and is_context else (q0, q1 ^ flip, content)
    return chain


_chains = st.lists(st.one_of(plain(), offloaded(), large(), old(), senseless()), min_size=1, max_size=6)


@dataclass(frozen=True)
class Setting:
    pad: bool
    insert: int
    port_vlan: int
    head_wb: bool


_settings = st.builds(Setting, st.booleans(), st.sampled_from([0, 0, 1, 2]), _tci, st.booleans())


def post(rig: Rig, chains: list[Chain]) -> list[tuple[int, int]]:
    """Put bytes into the sender's memory and descriptors into its ring."""
    ring = []
    for q0, q1, content in (part for chain in chains for part in chain):
        is_context = q1 & DEXT and q1 >> 20 & 0xF == 2
        ring.append((q0 if q0 or is_context else rig.store(0, content, 100 + len(ring) * 37), q1))
    ring = ring[:250]
    rig.post(0, *ring)
    return ring


def twin(rig: Rig, setting: Setting) -> Queue:
    def read(address: int, size: int) -> bytes | None:
        if size and address + size > CHUNK:
            return None
        return rig.read(0, address, size) if size else b""

    return Queue(read, setting.pad, setting.insert, setting.port_vlan)


def prepare(rig: Rig, setting: Setting) -> None:
    rig.reset()
    rig.set(pad=setting.pad)
    rig.pool(0, vlan_mode=setting.insert, vlan_tag=setting.port_vlan)
    rig.open_tx(0, 256, head_wb=setting.head_wb)
    rig.write(0, rig.head_wb(0), bytes(4))


def check_queue(rig: Rig, ring: list[tuple[int, int]], sent: list[Sent], head_wb: bool) -> None:
    """Compare head, done bits and drops with what the twin did."""
    used = sum(s.used for s in sent)
    assert rig.head(1, 0) == used
    asked = [bool(q1 >> 27 & 1) for _, q1 in ring[:used]]
    before = [bool(q1 >> 32 & 1) for _, q1 in ring]
    for slot, one in enumerate(before):
        assert rig.tx_done(0, slot) == (one or (slot < used and asked[slot] and not head_wb))
    if head_wb:
        written = int.from_bytes(rig.read(0, rig.head_wb(0), 4), "little")
        last = max((slot + 1 for slot in range(used) if asked[slot]), default=0)
        assert last <= written <= used
    assert bool(int(rig.port["eicr"]) & 1) == any(asked)
    reasons = Counter((0, s.why) for s in sent if s.why)
    own = ("malformed", "undersize", "oversize", "dma-fault")
    assert {k: v for k, v in rig.drops().items() if k[0] == 0 and k[1] in own} == reasons
    assert bool(int(rig.port["misbehaved"])) == any(s.why == "malformed" for s in sent)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chains=_chains, setting=_settings)
def test_chains(rig: Rig, chains: list[Chain], setting: Setting) -> None:
    """What a guest's capture shows is what the twin sends, frame by frame; then nothing is left of it."""
    prepare(rig, setting)
    rig.set(capture=1)
    ring = post(rig, chains)
    sent = twin(rig, setting).send(ring)
    rig.serve(budget=256)
    frames = [f for s in sent for f in s.frames]
    assert rig.captured(0, outbound=True) == frames
    check_queue(rig, ring, sent, setting.head_wb)
    size = sum(len(f) + 4 for f in frames)
    assert (rig.stat(0, "gptc"), rig.stat(0, "gotc")) == (len(frames), size)
    assert (rig.counter("hgptc"), rig.counter("hgotc")) == (len(frames), size)
    rig.serve(budget=256)
    assert rig.stat(0, "gptc") == len(frames)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    chains=st.lists(st.one_of(plain(), plain(), offloaded(), large(), old()), min_size=1, max_size=5),
    setting=_settings,
    budget=st.sampled_from([1, 3, 64]),
    give=st.integers(1, 9),
)
def test_delivery(rig: Rig, chains: list[Chain], setting: Setting, budget: int, give: int) -> None:
    """Frames for pool 1 arrive as they were sent, once and in order, however often the line is held up."""
    prepare(rig, setting)
    rig.pool(1, max_frame=16383, max_tagged=16383)
    rig.open_rx(1, 32, drop=False, fill=give)
    ring = post(rig, chains)
    sent = twin(rig, setting).send(ring)
    frames = [f for s in sent for f in s.frames]
    got: list[bytes] = []
    for _ in range(400):
        rig.serve(budget=budget)
        came = rig.frames(1)
        got += [f.data for f in came]
        rig.refill(1, sum(len(f.descriptors) for f in came))
        if rig.head(1, 0) == sum(s.used for s in sent) and not came:
            break
    local = [f for f in frames if f[:6] == mac(1).to_bytes(6, "little")]
    assert got == local
    check_queue(rig, ring, sent, setting.head_wb)
    size = sum(len(f) + 4 for f in local)
    for pool, names in ((0, ("gptlbc", "gotlbc")), (1, ("gprc", "gorc")), (1, ("gprlbc", "gorlbc"))):
        assert tuple(rig.stat(pool, name) for name in names) == (len(local), size)
    assert rig.counter("tsctc") == sum(len(s.frames) > 1 or _is_large(ring, sent, i) for i, s in enumerate(sent))


def _is_large(ring: list[tuple[int, int]], sent: list[Sent], i: int) -> bool:
    """Tell whether chain `i` was a large send, of one segment perhaps."""
    first = ring[sum(s.used for s in sent[:i])][1]
    return bool(sent[i].frames) and bool(first & DEXT) and bool(first & TSE)
