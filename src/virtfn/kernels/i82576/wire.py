"""The wire on the short path: whole frames that leave by it alone, and those that come from it for one pool.

    out   first 16 bytes as words, read once -> route: sender check and switching -> the uplink's store
    in    first 16 bytes as words -> route: filters -> given to the pool as one from another pool is (`local.py`)

Groups, wires with a rate, frames that are cut short for the uplink or that ask for anything go the general way, by
`forward.py` and `port.py`. Both give the same results.
"""

from __future__ import annotations

from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED, MIN_FRAME, VLAN_BYTES
from virtfn.hw.i82576.desc import MAX_FRAME, TXD_ASKS
from virtfn.kernels._jit import Row, inlined, kernel, load64, part, store64, unlikely
from virtfn.kernels.csum import swap16
from virtfn.kernels.i82576.departures import book
from virtfn.kernels.i82576.forward import count_size
from virtfn.kernels.i82576.head import SHORTEST, copy_short
from virtfn.kernels.i82576.local import OUT, find_route, move_packet, move_plain, settle_received
from virtfn.kernels.i82576.seen import drop, taps_take
from virtfn.kernels.i82576.state import DROP_UPLINK_FULL, PLAIN_TAG_AT, QUEUES, WIRE
from virtfn.kernels.i82576.taplocal import tap_unseen
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["come", "leave", "settle_came", "settle_left"]

_LOW = 0xFFFFFFFF


@inlined
def leave(nic: Row, t: Row, q1: int, source: int, length: int) -> bool:
    """Put a frame at `source` where the uplink takes it from; tell whether it is the general path's."""
    p = nic.port
    low = load64(source)
    high = load64(source + 8)
    tci = -1
    if high >> 32 & 0xFFFF == p.tag_kind:
        tci = swap16(high >> 48 & 0xFFFF)
    if q1 & TXD_ASKS or unlikely(length < MIN_FRAME) or unlikely(p.departed_bare != 0 and length <= MIN_FRAME):
        return True
    if unlikely(find_route(nic, t.pool, low, high, tci) != OUT):
        return True
    count_size(nic, length, True)
    if unlikely(p.departures == 0):
        return False
    at = book(nic, length)
    if unlikely(at == 0):
        drop(nic, WIRE, DROP_UPLINK_FULL)
        nic.dropped_bytes[WIRE] += length + 4
        return False
    store64(at, low)
    store64(at + 8, high)
    copy_short(at + SHORTEST, source + SHORTEST, length - SHORTEST)
    return False


@part
def settle_left(nic: Row, pool: int, frames: int, size: int) -> None:
    """Enter frames of `pool` that have left, with `size` bytes, into the counters but for those by size."""
    sender = nic.pools[pool]
    c = nic.counters
    sender.gptc += frames
    sender.gotc += size
    nic.to_wire[pool, 0] += frames
    nic.to_wire[pool, 1] += size
    c.hgptc += frames
    c.hgotc += size
    c.gptc += frames
    c.gotc += size
    c.tpt += frames
    c.tot += size
    nic.turn.taken += size


@kernel
def come_any(nic: Row, iommu: Row, low: int, high: int, frame: int, length: int) -> bool:
    """Give a frame of the wire to the pool that it is for, whatever it is; tell whether it is the general path's."""
    tci, cut = -1, 0
    if high >> 32 & 0xFFFF == nic.port.tag_kind:
        if length < SHORTEST + VLAN_BYTES:
            return True
        tci, cut = swap16(high >> 48 & 0xFFFF), VLAN_BYTES
        high = high & _LOW | load64(frame + 12) & ~_LOW
    kind = high >> 32 & 0xFFFF
    t = nic.tx[0]  # nothing of it is looked at: nobody asked for anything
    bare = length - cut
    six = kind == IPV6_LOADED
    if six or kind == IPV4_LOADED:
        return move_packet(nic, iommu, t, 0, six, low, high, tci, cut, frame + cut, bare, bare, False)
    return move_plain(nic, iommu, t, low, high, tci, frame + cut, bare, bare, False)


@kernel
def come(nic: Row, frame: int, length: int) -> bool:
    """Receive a frame from the wire, if it is ordinary; tell whether it is the general path's, and nothing was done.

    What pools got is in the counters when `settle_came` has been called.
    """
    p = nic.port
    if p.stalled | p.capture | p.mirror | p.wire_ps_per_byte or p.tag_at != PLAIN_TAG_AT:
        return True
    if unlikely(nic.seen.points != 0) and taps_take(nic) != 0:
        return True
    if length < SHORTEST or length > MAX_FRAME:
        return True
    iommu = iommu_at(p.iommu)
    low = load64(frame)
    high = load64(frame + 8)
    if high >> 32 & 0xFFFF == IPV4_LOADED and length >= MIN_FRAME:
        odd = move_packet(nic, iommu, nic.tx[0], 0, False, low, high, -1, 0, frame, length, length, False)
    else:
        odd = come_any(nic, iommu, low, high, frame, length)
    if odd:
        return True
    c = nic.counters
    c.tpr += 1
    c.tor += length + 4
    c.gprc += 1
    c.gorc += length + 4
    count_size(nic, length, False)
    return False


@part
def settle_came(nic: Row) -> None:
    """Enter what came from the wire by `come` into the counters of pools, and move the heads of their queues."""
    touched = nic.turn.touched
    if touched == 0:
        return
    if unlikely(nic.seen.points != 0):
        tap_unseen(nic, WIRE)
    for k in range(QUEUES):
        if touched >> k & 1:
            settle_received(nic, k, False)
    nic.turn.touched = 0
