"""Local switching: a whole frame to one pool, from another pool or from the wire, the common case of a busy switch.

    source -> head: the first bytes as words, read once, without their VLAN tag
           -> route: sender check and switching, remembered by addresses and VLAN until registers change
           -> IP: packet type, hash, checksums asked for and found
           -> receive descriptor -> target translated -> head and tag written, the rest copied and summed at once
           -> write-back

`whole.py` finds the frames, and says which go this way. A frame that is out of the ordinary goes the general way.

Decisions are made on these words, and the head that was checked is the head that arrives: what the sender changes
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
    TXD_ASKS,
    TXD_IXSM,
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
    prefetch_write,
    store64,
    store64_release,
    unlikely,
)
from virtfn.kernels.csum import swap16
from virtfn.kernels.i82576.checks import look, put_packet
from virtfn.kernels.i82576.head import SHORTEST, copy_short, held_bytes, put_start, take_short, take_words
from virtfn.kernels.i82576.offload import context_of
from virtfn.kernels.i82576.ring import latch, move_head, next_stretch, note_cause
from virtfn.kernels.i82576.rx import choose_queue
from virtfn.kernels.i82576.seen import drop
from virtfn.kernels.i82576.shares import is_scarce
from virtfn.kernels.i82576.state import DROP_DMA_FAULT, LOCAL_AREA, LOWEST, ROUTES, SPLIT_AREA, WIRE
from virtfn.kernels.i82576.switch import MAC, find_pools, switch_receive, switch_transmit, why_spoofed
from virtfn.kernels.i82576.work import ROUTE_WORK
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate_near

__all__ = ["OUT", "find_route", "move_frame", "move_packet", "move_plain", "settle_received", "settle_sent"]

OUT = -2  # the route of frames for the wire alone
_DONE = RXD_DD | RXD_EOP
_LOOPED = _DONE | RXD_LB
_LOW = 0xFFFFFFFF
_ROUTE_HASH = 0x9E3779B97F4A7C15 - (1 << 64)


@inlined
def find_tag(nic: Row, t: Row, q1: int, high: int) -> tuple[int, int]:
    """Find the VLAN tag of a frame. Returns (tag or -1, bytes of it that the frame has, to be taken out)."""
    sender = nic.pools[t.pool]
    if sender.vlan_mode == 1:
        return sender.vlan_tag, 0
    if q1 & TXD_VLE and sender.vlan_mode != 2:
        return context_of(t, q1)[0] >> TXC_VLAN_SHIFT & 0xFFFF, 0
    if high >> 32 & 0xFFFF != nic.port.tag_kind:
        return -1, 0
    return swap16(high >> 48 & 0xFFFF), VLAN_BYTES


@kernel
def choose_route(nic: Row, pool: int, low: int, high: int, vid: int) -> int:
    """Find the only pool that frames of `pool`, or of the wire, with these addresses go to.

    OUT: to the wire alone. -1: they need the general path.
    """
    if low & 1:
        return -1
    if pool == WIRE:
        pools, _ = switch_receive(nic, low & MAC, vid)
        wire = False
    else:
        if why_spoofed(nic, pool, (low >> 48 & 0xFFFF) | (high & _LOW) << 16, vid) >= 0:
            return -1
        pools, wire, _ = switch_transmit(nic, pool, low & MAC, vid)
    if wire and pools == 0:
        return OUT
    if wire or pools == 0 or pools & (pools - 1):
        return -1
    if nic.port.storm and find_pools(nic.macs, low & MAC) == 0:
        return -1  # frames to addresses that nobody has may be counted
    return LOWEST[pools & 0xFF]


@inlined
def find_route(nic: Row, pool: int, low: int, high: int, tci: int) -> int:
    """Find where a frame of `pool` goes, as `choose_route` does, or as it did since registers changed.

    low, high: its first 16 bytes.
    """
    vid = tci & 0xFFF if tci >= 0 else -1
    high = high & _LOW | vid + 1 << 32
    stamp = nic.port.era << 4 | pool
    route = nic.routes[np.uint64((low ^ high) * _ROUTE_HASH >> 48 & ROUTES - 1)]
    if unlikely(route.stamp != stamp) or unlikely(route.low != low) or unlikely(route.high != high):
        route.stamp = stamp
        route.low = low
        route.high = high
        route.target = choose_route(nic, pool, low, high, vid)
        nic.turn.work += ROUTE_WORK
    return route.target


@inlined
def have_room(nic: Row, target: int, q: int, size: int, whole: int, tagged: bool, looped: bool) -> int:
    """Find the next descriptor of receive queue `q` of pool `target` for a frame; 0: the general path sees to it.

    size: bytes for the buffer. whole: bytes with the tag. Latches the queue, when it is the first time in this visit.
    """
    r = nic.rx[q]
    if unlikely(nic.turn.touched >> q & 1 == 0):
        if r.pool != target:
            return 0
        if r.epoch != nic.port.epoch:
            latch(r, nic.port.epoch, True)
        if not r.enabled or r.size == 0 or r.layout != SRRCTL_ADV_ONE or is_scarce(nic, target):
            return 0
        nic.turn.touched |= 1 << q
        r.place = r.stop = 0
    p = nic.port
    receiver = nic.pools[target]
    limit = receiver.max_tagged if tagged else receiver.max_frame
    if not looped and p.vmdq == 0:
        limit = p.max_tagged if tagged else p.max_frame
    if unlikely(whole + 4 > limit) or unlikely(size > r.packet_bytes):
        return 0
    if unlikely(r.place == r.stop):
        r.place, r.stop = next_stretch(nic, r, r.place)
    return r.place


@inlined
def find_buffer(
    nic: Row, iommu: Row, target: int, q: int, size: int, tag: int, left: int, looped: bool
) -> tuple[int, int, int]:  # fmt: skip
    """Find where a frame of `size` bytes without its tag goes, in receive queue `q` of pool `target`.

    tag: bytes of its tag. left: those that it keeps. Returns (descriptor, 0: it is the general path's; address, and run
    there, 0: it was refused).
    """
    place = have_room(nic, target, q, size + left, size + tag, tag != 0, looped)
    if unlikely(place == 0):
        return 0, 0, 0
    r = nic.rx[q]
    buffer, run = translate_near(iommu, r, load64(place), size + left, 1)
    if not unlikely(run != size + left):
        return place, buffer, run
    if run or awaits_page(iommu, r.rid):
        return 0, 0, 0
    return place, nic.port.scratch + SPLIT_AREA, 0


@inlined
def finish(nic: Row, t: Row, q: int, place: int, run: int, q0: int, q1: int, size: int, looped: bool) -> None:
    """Write a receive descriptor back, and note the frame, whose bytes with tag and check sequence are `size`.

    A write that the IOMMU refused is posted: the device does not learn of it, and goes on.
    """
    r = nic.rx[q]
    store64(place, q0)
    store64_release(place + 8, q1 | (_LOOPED if looped else _DONE))
    r.place = place + 16
    if not unlikely(r.place == r.stop):
        offset = load64(place + 16) - r.near
        if not unlikely(bool(np.uint64(offset) >= np.uint64(r.near_bytes))):
            prefetch_write(r.near_hpa + offset)  # where the next frame goes, if to this page, too
    if unlikely(run == 0):
        drop(nic, r.pool, DROP_DMA_FAULT)
        nic.dropped_bytes[r.pool] += size
        if looped:
            settle_sent(nic, t.pool, 1, size)
        note_cause(nic, r)
    else:
        r.frames += 1
        r.bytes += size


@inlined
def move_plain(
    nic: Row, iommu: Row, t: Row, low: int, high: int, tci: int, frame: int, length: int, size: int, looped: bool
) -> bool:  # fmt: skip
    """Give a frame into which nobody looks to the pool that it is for; tell whether it is the general path's.

    frame: where it lies, less a tag that was taken out; it has `length` bytes there, and is filled up to `size`.
    looped: whether a pool sent it, by queue `t`; else it came from the wire.
    """
    target = find_route(nic, t.pool if looped else WIRE, low, high, tci)
    if unlikely(target < 0):
        return True
    tag = VLAN_BYTES if tci >= 0 else 0
    strip = tag != 0 and nic.pools[target].strip != 0
    left = 0 if strip else tag
    if size > length:
        frame = take_short(nic.port.scratch + LOCAL_AREA, frame, length)
    place, buffer, run = find_buffer(nic, iommu, target, target, size, tag, left, looped)
    if unlikely(place == 0):
        return True
    at = put_start(buffer, low, high, nic.port.tag_kind, tci if left else -1)
    copy_short(at + SHORTEST, frame + SHORTEST, size - SHORTEST)
    status = RXD_VP | tci << RXD_VLAN_SHIFT if strip else 0
    finish(nic, t, target, place, run, 0, status | size + left << RXD_LEN_SHIFT, size + tag + 4, looped)
    return False


@inlined
def move_packet(
    nic: Row, iommu: Row, t: Row, q1: int, six: bool, low: int, high: int, tci: int, cut: int, frame: int, length: int,
    size: int, looped: bool,
) -> bool:  # fmt: skip
    """Give an IP frame to the pool that it is for, as `move_plain` does. cut: bytes of the tag that was taken out."""
    p = nic.port
    target = find_route(nic, t.pool if looped else WIRE, low, high, tci)
    if unlikely(target < 0):
        return True
    held = held_bytes(six)
    if unlikely(size > length) or unlikely(length < held):
        frame = take_short(p.scratch + LOCAL_AREA, frame, length)
    words = take_words(frame, six)
    looked = look(nic, t, q1, six, high, words, size, cut, length)
    if unlikely(looked[2] < 0):
        return True
    tag = VLAN_BYTES if tci >= 0 else 0
    strip = tag != 0 and nic.pools[target].strip != 0
    left = 0 if strip else tag
    q = choose_queue(nic, target, looked[0])
    place, buffer, run = find_buffer(nic, iommu, target, q, size, tag, left, looped)
    if unlikely(place == 0):
        return True
    # The words of a frame that is shorter would be written beyond its end.
    start = buffer if size >= held else p.scratch + LOCAL_AREA + 128
    at = put_start(start, low, high, p.tag_kind, tci if left else -1)
    status = looked[1] | put_packet(nic, q1, six, high, words, frame, at, size, looked)
    if unlikely(size < held):
        copy_bytes(buffer, start, size + left)
    if strip:
        status |= RXD_VP | tci << RXD_VLAN_SHIFT
    q0 = looked[0] if p.rss_in_descriptor else looked[0] & _LOW
    finish(nic, t, q, place, run, q0, status | size + left << RXD_LEN_SHIFT, size + tag + 4, looped)
    return False


@kernel
def move_special(nic: Row, iommu: Row, t: Row, q1: int, source: int, length: int) -> bool:
    """Give a frame at `source` to the pool that it is for, whatever it is; tell whether it is the general path's."""
    low = load64(source)
    high = load64(source + 8)
    tci, cut = find_tag(nic, t, q1, high)
    if length - cut < SHORTEST or (tci >= 0 and length - cut > MAX_FRAME - VLAN_BYTES):
        return True
    if cut:
        high = high & _LOW | load64(source + 12) & ~_LOW
    bare = length - cut
    frame = source + cut
    size = max(bare, MIN_FRAME - VLAN_BYTES if tci >= 0 else MIN_FRAME) if nic.port.pad else bare
    kind = high >> 32 & 0xFFFF
    six = kind == IPV6_LOADED
    if six or kind == IPV4_LOADED:
        return move_packet(nic, iommu, t, q1, six, low, high, tci, cut, frame, bare, size, True)
    if q1 & (TXD_IXSM | TXD_TXSM):
        return True
    return move_plain(nic, iommu, t, low, high, tci, frame, bare, size, True)


@kernel
def move_common(nic: Row, iommu: Row, t: Row, q1: int, source: int, length: int) -> bool:
    """Do what `move_special` does, faster for most IP frames: long ones without a tag, or with one that is inserted.

    With less to decide, the same code is less for each of them.
    """
    low = load64(source)
    high = load64(source + 8)
    kind = high >> 32 & 0xFFFF
    four = kind == IPV4_LOADED
    six = kind == IPV6_LOADED and length >= held_bytes(True)
    rest = q1 & ~(TXD_IXSM | TXD_VLE)
    if q1 & TXD_IXSM == 0 and nic.pools[t.pool].vlan_mode == 0:
        if q1 & TXD_VLE == 0 and length >= MIN_FRAME:
            if four:
                return move_packet(nic, iommu, t, rest, False, low, high, -1, 0, source, length, length, True)
            if six:
                return move_packet(nic, iommu, t, rest, True, low, high, -1, 0, source, length, length, True)
        if q1 & TXD_VLE and MIN_FRAME <= length + VLAN_BYTES <= MAX_FRAME:
            tci = context_of(t, q1)[0] >> TXC_VLAN_SHIFT & 0xFFFF
            if four:
                return move_packet(nic, iommu, t, rest, False, low, high, tci, 0, source, length, length, True)
            if six:
                return move_packet(nic, iommu, t, rest, True, low, high, tci, 0, source, length, length, True)
    return move_special(nic, iommu, t, q1, source, length)


@inlined
def move_frame(nic: Row, iommu: Row, sender: Row, t: Row, q1: int, source: int, length: int) -> bool:
    """Give a frame at `source` to the pool that it is for; tell whether it is the general path's."""
    low = load64(source)
    high = load64(source + 8)
    kind = high >> 32 & 0xFFFF
    plain = kind != IPV4_LOADED and kind != IPV6_LOADED and kind != nic.port.tag_kind
    if plain and q1 & TXD_ASKS == 0 and length >= MIN_FRAME and sender.vlan_mode == 0:
        return move_plain(nic, iommu, t, low, high, -1, source, length, length, True)
    return move_common(nic, iommu, t, q1, source, length)


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
def settle_received(nic: Row, q: int, looped: bool) -> tuple[int, int]:
    """Enter what receive queue `q` got in this visit into every counter of receivers, and move its head.

    looped: whether pools sent it. Returns (frames, bytes).
    """
    r = nic.rx[q]
    frames = r.frames
    size = r.bytes
    move_head(r, r.place)
    if frames == 0:
        return 0, 0
    receiver = nic.pools[r.pool]
    c = nic.counters
    receiver.gprc += frames
    receiver.gorc += size
    if looped:
        receiver.gprlbc += frames
        receiver.gorlbc += size
    nic.turn.taken += size
    c.rpthc += frames
    c.hgorc += size
    r.frames = r.bytes = 0
    note_cause(nic, r)
    return frames, size
