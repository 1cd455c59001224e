"""A virtio front end against its twin: frames by random chains, into random buffers, with random features; and chains
of random descriptors, each of which is taken, given back empty, or breaks its ring, as the twin says."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from reference.virtio import EVENT, LONGEST, MRG, Header, delivered, has, walk, wrong
from unit.kernels.virtio.test_offload import large, partial
from unit.packets import TCP, UDP, ipv4
from unit.virtiorig import INDIRECT, NEXT, WRITE, FrontEnd, ether, mac
from virtfn.devices.virtio import OFFERED, Bridge
from virtfn.hw.virtio.net import closed

OPTIONAL = [0, 1, 7, 8, 9, 11, 12, 13, 15, 28, 29]
FEATURES = st.sets(st.sampled_from(OPTIONAL)).map(lambda off: OFFERED & ~sum(1 << bit for bit in off)).filter(closed)
BUFFERS = 0x1_0000_0000


@st.composite
def sends(draw: st.DrawFn) -> tuple[bytes, Header]:
    """A frame and its header: plain, with an open checksum, to be cut; now and then with a header of anything."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        frame = ether(mac(1), mac(0), draw(st.binary(max_size=300)))
        header = Header()
    elif kind == 1:
        protocol = draw(st.sampled_from([TCP, UDP]))
        frame, l4 = partial(ipv4(protocol, draw(st.binary(max_size=200))), 0x0800, protocol)
        header = Header(1, 0, 0, 0, l4, 16 if protocol == TCP else 6)
    else:
        mss = draw(st.integers(200, 3000))
        size = draw(st.integers(1, 9000))
        frame, header = large(size, draw(st.booleans()), ecn=draw(st.booleans()), mss=mss)
    if draw(st.integers(0, 5)) == 0:
        fields = [draw(st.one_of(st.just(was), st.integers(0, most))) for was, most in zip(
            (header.flags, header.gso, header.hdr_len, header.gso_size, header.csum_start, header.csum_offset),
            (3, 255, 65535, 65535, 400, 400), strict=True)]  # fmt: skip
        header = Header(*fields)
    return frame, header


def cuts(draw: st.DrawFn, total: int, most: int) -> list[int]:
    """Lengths that a total is cut into."""
    edges = sorted(draw(st.lists(st.integers(0, total), max_size=most - 1)))
    return [b - a for a, b in zip([0, *edges], [*edges, total], strict=True)]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_frames_arrive_as_the_receiver_bears_them(data: st.DataObject) -> None:
    sender, receiver = data.draw(FEATURES), data.draw(FEATURES)
    bridge = Bridge()
    a, b = FrontEnd(bridge, features=sender), FrontEnd(bridge, features=receiver)
    bridge.pin(b.port, mac(1))
    offer_buffers(data, b)
    expected, errors = [], {}
    for _ in range(data.draw(st.integers(1, 4))):
        frame, header = data.draw(sends())
        raw = header.pack() + frame
        a.memory.write(BUFFERS, raw)
        pieces = cuts(data.draw, len(raw), 5)
        parts, at = [], BUFFERS
        for piece in pieces:
            parts.append((at, piece))
            at += piece
        post(data, a, parts)
        error = wrong(frame, header, sender)
        if error:
            errors[error] = errors.get(error, 0) + 1
        else:
            expected.append(delivered(frame, header, receiver))
        a.kick()
        bridge.serve()
        got = b.received()
        if error:
            assert got == []
        else:
            wanted = expected[-1]
            dropped = sum(bridge.drops(b.port).values())
            assert got == (wanted if not dropped else wanted[: len(got)])
            if dropped:
                break
            for _, content in got:
                assert len(content) <= LONGEST
    assert a.back.errors() == errors
    assert b.back.errors() == {}
    assert a.memory.sound()
    assert b.memory.sound()
    assert not a.back.needs_reset


def offer_buffers(data: st.DataObject, end: FrontEnd) -> None:
    """Make 30 receive buffers or more available, each of one part or two."""
    for i in range(data.draw(st.integers(30, 32))):
        at = BUFFERS + i * 4096
        sizes = cuts(data.draw, data.draw(st.sampled_from([60, 700, 1536, 4000])), 2)
        end.receive_into([(at + sum(sizes[:k]), size) for k, size in enumerate(sizes)])


def post(data: st.DataObject, end: FrontEnd, parts: list[tuple[int, int]]) -> None:
    """Offer a chain: direct, or the last part of it in a table."""
    direct = len(parts)
    if has(end.features, 28):
        direct = data.draw(st.integers(0, len(parts)))
    if direct == len(parts):
        end.tx.offer(end.tx.chain(parts))
        return
    inner = parts[direct:]
    table = 0x30000 + data.draw(st.integers(0, 15))
    content = b"".join(
        struct.pack("<QIHH", at, size, NEXT if k < len(inner) - 1 else 0, k + 1) for k, (at, size) in enumerate(inner)
    )
    end.memory.write(table, content)
    head = end.tx.next
    for k, (at, size) in enumerate(parts[:direct]):
        end.tx.descriptor((head + k) % end.tx.size, at, size, NEXT, (head + k + 1) % end.tx.size)
    end.tx.descriptor((head + direct) % end.tx.size, table, len(content), INDIRECT)
    end.tx.next = (head + direct + 1) % end.tx.size
    end.tx.offer(head)


ADDRESSES = st.sampled_from(
    [0x9000, 0xA000, 0x1FFF0, 0x3FF00, 0x3FFF8, BUFFERS, BUFFERS + 0x3FFFF, 0x5000_0000, (1 << 64) - 16]
)
LENGTHS = st.sampled_from([0, 1, 12, 16, 32, 48, 64, 200, 4096, 0x20000, 0xFFFFFFFF])
FLAGS = st.sampled_from([0, NEXT, NEXT, NEXT, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE])
DESCRIPTOR = st.tuples(ADDRESSES, LENGTHS, FLAGS, st.integers(0, 9))
BROKEN = ("avail-index", "head", "next", "loop", "indirect", "order")


@settings(max_examples=250, deadline=None)
@given(
    table=st.lists(DESCRIPTOR, min_size=8, max_size=8),
    inner=st.lists(DESCRIPTOR, min_size=4, max_size=4),
    heads=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    features=FEATURES,
    write=st.booleans(),
)
def test_chains_of_anything_end_as_the_twin_says(table, inner, heads, features, write) -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge, size=8, features=features), FrontEnd(bridge, size=8)
    bridge.pin(a.port, mac(0))
    queue = a.rx if write else a.tx
    b.fill(4, 4096)
    for i, row in enumerate(table):
        queue.descriptor(i, *row)
    rows = b"".join(struct.pack("<QIHH", *row) for row in inner)
    for at in (0x9000, 0xA000, BUFFERS):
        a.memory.write(at, rows)
    for head in heads:
        queue.offer(head)
    frame = ether(mac(0), mac(1), bytes(86))
    expected, used, broken = {}, [], None
    needed = 112
    chains: list[tuple[int, int]] = []
    for head in heads:
        if head >= 8:
            broken = "head"
            break
        if write:
            room = sum(size for _, size in chains)
            error, parts = walk(queue.table(), head, True, features, a.memory.read, needed - room)
            total = sum(size for _, size in parts)
            if error is None and total < 12 and total < needed - room:
                error = "short"
        else:
            error, parts = walk(queue.table(), head, False, features, a.memory.read, limit=12 + LONGEST)
            if error is None:
                raw = b"".join(a.memory.read(at, size) or b"" for at, size in parts if size)
                error = "short" if len(raw) < 26 else wrong(raw[12:], Header.unpack(raw)[0], features)
        if error in BROKEN:
            broken = error
            break
        if error:
            expected[error] = expected.get(error, 0) + 1
        if not write:
            used.append((head, 0))
        elif error:
            used += [*((h, 0) for h, _ in chains), (head, 0)]
            chains = []
        elif not has(features, MRG) and total < needed:
            break
        else:
            chains.append((head, total))
            if sum(size for _, size in chains) >= needed:
                left = needed
                for h, size in chains:
                    used.append((h, min(size, left)))
                    left -= min(size, left)
                break
    if broken:
        expected[broken] = 1
    if write:
        b.send(frame)
    a.kick()
    bridge.serve()
    assert a.back.errors() == expected
    assert queue.reap() == used
    assert a.back.needs_reset == (broken is not None)
    assert a.memory.sound()
    assert b.memory.sound()


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3), st.booleans()), min_size=1, max_size=12),
    events=st.booleans(),
    offset=st.integers(0, 0),
)
def test_calls_are_as_the_rule_says(steps: list[tuple[int, int, bool]], events: bool, offset: int) -> None:
    """After each burst the driver is called if it asked for an index that was passed, or did not say no."""
    features = OFFERED if events else OFFERED & ~(1 << EVENT)
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge, features=features)
    bridge.pin(b.port, mac(1))
    old, first = 0, True
    for count, event, flag in steps:
        b.fill(count, 128)
        wanted = (old + count + event) & 0xFFFF
        b.rx.set_event(wanted)
        b.rx.set_flags(int(flag))
        b.called.clear()
        for _ in range(count):
            a.send(ether(mac(1), mac(0)))
        bridge.serve()
        assert len(b.received()) == count
        new = (old + count) & 0xFFFF
        if count == 0:
            called = False
        elif events:
            called = first or (new - wanted - 1) & 0xFFFF < (new - old) & 0xFFFF
            first = False
        else:
            called = not flag
        assert b.called == ([0] if called else [])
        old = new
