"""Local switching: whole frames from a pool to one other pool, the common case of a busy switch.

    descriptor -> source translated -> head: the first bytes, a private copy, without their VLAN tag
               -> route: sender check and switching, remembered by addresses and VLAN as long as the call lasts
               -> IP: packet type, hash, checksums asked for and found
               -> receive descriptor -> target translated -> head and tag written, the rest copied and summed at once
               -> write-backs

A frame that is out of the ordinary goes the general way of `tx.py`: chains of buffers, large sends, groups, the wire,
rates, captures, receivers without descriptors. Both give the same results.

Decisions are made on the private head, and the head that was checked is the head that arrives: what the sender changes
meanwhile is payload only.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED, MIN_FRAME, VLAN_BYTES
from virtfn.hw.i82576.desc import (
    MAX_FRAME,
    RXD_DD,
    RXD_EOP,
    RXD_LB,
    RXD_LEN_SHIFT,
    RXD_VLAN_SHIFT,
    RXD_VP,
    SRRCTL_ADV_ONE,
    TXC_VLAN_SHIFT,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_DTYP_MASK,
    TXD_EOP,
    TXD_IXSM,
    TXD_LEN_MASK,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
    TXD_TSE,
    TXD_TXSM,
    TXD_VLE,
)
from virtfn.kernels._jit import (
    Row,
    copy_bytes,
    inlined,
    kernel,
    load64,
    part,
    store32_release,
    store64,
    store64_release,
)
from virtfn.kernels.csum import swap16
from virtfn.kernels.i82576.checks import IP_START, look, settle_sums
from virtfn.kernels.i82576.head import (
    HELD_BYTES,
    copy_rest,
    put_tagged,
    put_words,
    take_head,
)
from virtfn.kernels.i82576.offload import context_of, is_context, keep_context
from virtfn.kernels.i82576.ring import latch, move_head, next_stretch, note_cause
from virtfn.kernels.i82576.rx import choose_queue
from virtfn.kernels.i82576.shares import is_scarce
from virtfn.kernels.i82576.state import DROP_DMA_FAULT, LOCAL_AREA, LOWEST, PLAIN_TAG_AT, QUEUES, ROUTES, SPLIT_AREA
from virtfn.kernels.i82576.switch import MAC, switch_transmit, why_spoofed
from virtfn.kernels.i82576.work import DESCRIPTOR_WORK, FAULT_WORK, LOCAL_WORK, ROUTE_WORK, copy_work
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate_hot
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["mark_done", "serve_local"]

_WHOLE_MASK = TXD_DTYP_MASK | TXD_EOP | TXD_DEXT | TXD_TSE
_WHOLE = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT
_DONE = RXD_DD | RXD_EOP | RXD_LB
_LOW = 0xFFFFFFFF
_LEAST = 16  # bytes that are looked at before anything else
_ROUTE_HASH = 0x9E3779B97F4A7C15 - (1 << 64)


@kernel
def ordinary(nic: Row, q: int) -> bool:
    """Tell whether nothing of port and sender needs a look at every frame."""
    p = nic.port
    return (
        p.vmdq != 0
        and p.loopback != 0
        and p.capture == 0
        and p.mirror == 0
        and p.stalled == 0
        and p.tag_at == PLAIN_TAG_AT
        and nic.pools[nic.tx[q].pool].ps_per_byte == 0
    )


@inlined
def find_whole(nic: Row, iommu: Row, t: Row, q0: int, q1: int) -> tuple[int, int]:
    """Find the frame of a descriptor, `q0` and `q1`, of transmit queue `t`. Returns (length, address).

    Length 0: it is not whole, or not there yet, and the general path takes it. Address 0: it was refused, and dropped.
    """
    length = q1 & TXD_LEN_MASK
    if q1 & _WHOLE_MASK != _WHOLE or q1 >> TXD_PAYLEN_SHIFT & 0x3FFFF != length:
        return 0, 0
    if length < _LEAST or length > MAX_FRAME - VLAN_BYTES:
        return 0, 0
    source, run = translate_hot(iommu, t.rid, q0, length, 0)
    if run == length:
        return length, source
    if run or awaits_page(iommu, t.rid):
        return 0, 0
    nic.drops[t.pool, DROP_DMA_FAULT] += 1
    nic.turn.work += FAULT_WORK
    return length, 0


@inlined
def is_plain(nic: Row, t: Row, q1: int, kind: int, length: int) -> bool:
    """Tell whether a frame is to be given on as it is, and nobody looks behind its ether type, `kind` as loaded."""
    if kind == IPV4_LOADED or kind == IPV6_LOADED or kind == nic.port.tag_kind:
        return False
    return (
        q1 & (TXD_VLE | TXD_IXSM | TXD_TXSM) == 0
        and nic.pools[t.pool].vlan_mode != 1
        and (length >= MIN_FRAME or nic.port.pad == 0)
    )


@inlined
def take_tag(nic: Row, t: Row, q1: int, head: int, length: int) -> tuple[int, int]:
    """Find the VLAN tag of a frame, and take it out of its head. Returns (tag or -1, bytes taken out)."""
    owner = nic.pools[t.pool]
    if owner.vlan_mode == 1:
        return owner.vlan_tag, 0
    if q1 & TXD_VLE and owner.vlan_mode != 2:
        return context_of(t, q1)[0] >> TXC_VLAN_SHIFT & 0xFFFF, 0
    word = load64(head + 8)
    if word >> 32 & 0xFFFF != nic.port.tag_kind or length < IP_START + VLAN_BYTES:
        return -1, 0
    after = load64(head + 16)
    store64(head + 8, word & _LOW | after << 32)
    for i in range(24, HELD_BYTES, 8):
        further = load64(head + i)
        store64(head + i - 8, after >> 32 & _LOW | further << 32)
        after = further
    store64(head + HELD_BYTES - 8, after >> 32 & _LOW)
    return swap16(word >> 48), VLAN_BYTES


@kernel
def choose_route(nic: Row, pool: int, low: int, high: int, vid: int) -> int:
    """Find the only pool that frames of `pool` with these addresses go to; -1: they need the general path."""
    source = (low >> 48 & 0xFFFF) | (high & _LOW) << 16
    if low & 1 or why_spoofed(nic, pool, source, vid) >= 0:
        return -1
    pools, wire, _ = switch_transmit(nic, pool, low & MAC, vid)
    if wire or pools == 0 or pools & (pools - 1):
        return -1
    return LOWEST[pools & 0xFF]


@inlined
def find_route(nic: Row, pool: int, low: int, high: int, tci: int) -> int:
    """Find the pool that a frame goes to, as `choose_route` does, or as it did in this call.

    low, high: its first 16 bytes.
    """
    vid = tci & 0xFFF if tci >= 0 else -1
    high = high & _LOW | vid + 1 << 32
    stamp = nic.port.epoch << 4 | pool
    route = nic.routes[np.uint64((low ^ high) * _ROUTE_HASH >> 48 & ROUTES - 1)]
    if route.stamp != stamp or route.low != low or route.high != high:
        route.stamp = stamp
        route.low = low
        route.high = high
        route.target = choose_route(nic, pool, low, high, vid)
        nic.turn.work += ROUTE_WORK
    return route.target


@inlined
def have_room(nic: Row, target: int, q: int, size: int, whole: int, tagged: bool) -> int:
    """Find the next descriptor of receive queue `q` of pool `target` for a frame; 0: the general path sees to it.

    size: bytes for the buffer. whole: bytes with the tag. Latches the queue, when it is the first time in this visit.
    """
    r = nic.rx[q]
    if not nic.turn.touched >> q & 1:
        if r.epoch != nic.port.epoch:
            latch(r, nic.port.epoch, True)
        if not r.enabled or r.size == 0 or r.layout != SRRCTL_ADV_ONE or is_scarce(nic, target):
            return 0
        nic.turn.touched |= 1 << q
        r.place = r.stop = 0
    receiver = nic.pools[target]
    if whole + 4 > (receiver.max_tagged if tagged else receiver.max_frame) or size > r.packet_bytes:
        return 0
    if r.place == r.stop:
        r.place, r.stop = next_stretch(nic, r, r.place)
    return r.place


@inlined
def put_frame(
    nic: Row, q1: int, head: int, target: int, source: int, size: int, length: int, cut: int, tci: int,
    looked: tuple[int, int, int, int, int, int],
) -> int:  # fmt: skip
    """Write a frame of `size` bytes, with its tag unless it is -1, to the receiver's buffer, checksums included.

    length: its bytes before it was filled up. cut: bytes that were taken out of what lies at `source`. Returns status
    and errors.
    """
    held = min(size, HELD_BYTES - cut)
    if tci >= 0:
        put_tagged(target, head, held, nic.port.tag_kind, tci)
        target += VLAN_BYTES
    else:
        put_words(target, head, held)
    rest = 0
    if size > held:
        covered = looked[3] - held if looked[4] else 0
        rest = copy_rest(target + held, source + HELD_BYTES, size - held, covered)
    return settle_sums(nic, q1, head, held, target, length, looked, rest) if looked[4] else 0


@part
def move_frame(nic: Row, iommu: Row, t: Row, q1: int, source: int, length: int) -> tuple[int, int]:
    """Give a frame at `source` to the pool that it is for. Returns (whether it is the general path's, bytes to count).

    The bytes are those of a frame that its receiver has, with its tag. A write that the IOMMU refuses is posted: the
    device does not learn of it, and goes on.
    """
    p = nic.port
    head = p.scratch + LOCAL_AREA
    low = load64(source)
    high = load64(source + 8)
    plain = is_plain(nic, t, q1, high >> 32 & 0xFFFF, length)
    tci, cut = -1, 0
    if not plain:
        take_head(head, source, length, low, high)
        tci, cut = take_tag(nic, t, q1, head, length)
    target = find_route(nic, t.pool, low, high, tci)
    if target < 0:
        return True, 0
    tag = VLAN_BYTES if tci >= 0 else 0
    bare = length - cut
    size = max(bare, MIN_FRAME - tag) if p.pad else bare
    looked = (0, 0, 0, 0, 0, 0)
    if not plain:
        looked = look(nic, t, q1, head, size, cut, bare)
    if looked[4] < 0:
        return True, 0
    q = choose_queue(nic, target, looked[0])
    r = nic.rx[q]
    strip = tag != 0 and nic.pools[target].strip != 0
    left = 0 if strip else tag
    place = have_room(nic, target, q, size + left, size + tag, tag != 0)
    if place == 0:
        return True, 0
    buffer, run = translate_hot(iommu, r.rid, load64(place), size + left, 1)
    refused = run == 0
    if run != size + left and (run or awaits_page(iommu, r.rid)):
        return True, 0
    if refused:
        buffer = p.scratch + SPLIT_AREA
    status = looked[1]
    if plain:
        copy_bytes(buffer, source, size)
        store64(buffer, low)
        store64(buffer + 8, high)
    else:
        status |= put_frame(nic, q1, head, buffer, source, size, bare, cut, tci if left else -1, looked)
    if strip:
        status |= RXD_VP | tci << RXD_VLAN_SHIFT
    store64(place, looked[0] if p.rss_in_descriptor else looked[0] & _LOW)
    store64_release(place + 8, status | _DONE | size + left << RXD_LEN_SHIFT)
    r.place = place + 16
    if refused:
        nic.drops[target, DROP_DMA_FAULT] += 1
        settle_sent(nic, t.pool, 1, size + tag + 4)
        note_cause(nic, r)
        return False, 0
    r.frames += 1
    r.bytes += size + tag + 4
    return False, size + tag + 4


@part
def settle_sent(nic: Row, pool: int, frames: int, size: int) -> None:
    """Enter frames into the counters of those that `pool` has sent."""
    sender = nic.pools[pool]
    c = nic.counters
    sender.gptc += frames
    sender.gotc += size
    sender.gptlbc += frames
    sender.gotlbc += size
    c.hgptc += frames
    c.hgotc += size
    nic.card.forwarded += frames


@part
def settle_received(nic: Row, q: int) -> None:
    """Enter what receive queue `q` got in this visit into every counter that it concerns, and move its head."""
    r = nic.rx[q]
    move_head(r, r.place)
    if r.frames == 0:
        return
    receiver = nic.pools[r.pool]
    c = nic.counters
    receiver.gprc += r.frames
    receiver.gorc += r.bytes
    receiver.gprlbc += r.frames
    receiver.gorlbc += r.bytes
    nic.turn.taken += r.bytes
    c.rpthc += r.frames
    c.hgorc += r.bytes
    r.frames = r.bytes = 0
    note_cause(nic, r)


@part
def mark_done(t: Row, at: int, q1: int) -> bool:
    """Mark a descriptor of transmit queue `t` as done if it asks for a report; tell whether it does."""
    asked = q1 & TXD_RS != 0
    if asked and t.head_wb == 0:
        store32_release(at + 12, q1 >> 32 | 1)
    return asked


@kernel
def serve_local(nic: Row, q: int, budget: int) -> tuple[int, bool]:
    """Send frames of transmit queue `q`, up to `budget` and what its turn allows, while they are ordinary.

    Returns (frames, contexts among them; whether any asked for a report).
    """
    if not ordinary(nic, q):
        return 0, False
    iommu = iommu_at(nic.port.iommu)
    t = nic.tx[q]
    turn = nic.turn
    turn.touched = 0
    at = end = frames = delivered = size = work = 0
    asked = False
    # What a frame costs here is added at the end: what goes beyond the turn is a debt of the pool.
    while frames < budget and work < turn.work_stop - turn.work:
        if at == end:
            at, end = next_stretch(nic, t, at)
            if at == 0:
                break
        q0 = load64(at)
        q1 = load64(at + 8)
        if is_context(q1):
            keep_context(t, q0, q1)
            work += DESCRIPTOR_WORK
        else:
            length, source = find_whole(nic, iommu, t, q0, q1)
            if length == 0:
                break
            if source:
                left, moved = move_frame(nic, iommu, t, q1, source, length)
                if left:
                    break
                delivered += moved != 0
                size += moved
            work += LOCAL_WORK + copy_work(length)
        asked = mark_done(t, at, q1) or asked
        at += 16
        frames += 1
    turn.work += work
    move_head(t, at)
    settle_sent(nic, t.pool, delivered, size)
    for k in range(QUEUES):
        if turn.touched >> k & 1:
            settle_received(nic, k)
    return frames, asked
