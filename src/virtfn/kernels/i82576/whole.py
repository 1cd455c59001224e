"""The short path: frames that lie whole in one buffer, and go to one pool (`local.py`) or to the wire (`wire.py`).

    descriptor -> source translated -> moved -> write-back, many in turn; counters at the end of a visit

A frame that is out of the ordinary goes the general way of `tx.py`: chains of buffers, large sends, groups, rates,
captures, receivers without descriptors. Both give the same results.
"""

from __future__ import annotations

from virtfn.hw.i82576.desc import (
    MAX_FRAME,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_DTYP_MASK,
    TXD_EOP,
    TXD_LEN_MASK,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
    TXD_TSE,
)
from virtfn.kernels._jit import Row, inlined, kernel, load64, part, store32_release, unlikely
from virtfn.kernels.i82576.head import SHORTEST
from virtfn.kernels.i82576.local import move_frame, settle_received, settle_sent
from virtfn.kernels.i82576.offload import is_context, keep_context
from virtfn.kernels.i82576.ring import move_head, next_stretch
from virtfn.kernels.i82576.seen import drop, taps_take
from virtfn.kernels.i82576.state import DROP_DMA_FAULT, PLAIN_TAG_AT, QUEUES
from virtfn.kernels.i82576.taplocal import tap_left_unseen, tap_local, tap_unseen
from virtfn.kernels.i82576.wire import leave, settle_left
from virtfn.kernels.i82576.work import DESCRIPTOR_WORK, FAULT_WORK, LOCAL_WORK, copy_work
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate_near
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["mark_done", "serve_whole"]

_WHOLE_MASK = TXD_DTYP_MASK | TXD_EOP | TXD_DEXT | TXD_TSE
_WHOLE = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT


@kernel
def ordinary(nic: Row, pool: int) -> bool:
    """Tell whether nothing of port and sender needs a look at every frame."""
    p = nic.port
    quiet = p.capture == 0 and p.mirror == 0 and p.stalled == 0 and p.tag_at == PLAIN_TAG_AT
    return quiet and nic.pools[pool].ps_per_byte == 0


@kernel
def switches(nic: Row) -> bool:
    """Tell whether frames may go from pool to pool."""
    return nic.port.vmdq != 0 and nic.port.loopback != 0


@kernel
def has_wire(nic: Row, pool: int) -> bool:
    """Tell whether frames of `pool` may leave as they are, and nobody paces them, or could watch them."""
    p = nic.port
    return (
        (nic.seen.points == 0 or taps_take(nic) == 0)
        and p.wire_up != 0
        and p.self_loop == 0
        and p.wire_ps_per_byte == 0
        and nic.pools[pool].vlan_mode != 1
    )


@inlined
def find_whole(nic: Row, iommu: Row, t: Row, q0: int, q1: int) -> tuple[int, int]:
    """Find the frame of a data descriptor, `q0` and `q1`, of transmit queue `t`. Returns (length, address).

    Length 0: it is not whole, or not there yet, and the general path takes it. Address 0: it was refused, and dropped.
    """
    length = q1 & TXD_LEN_MASK
    odd = unlikely(length < SHORTEST) or unlikely(length > MAX_FRAME)
    if odd or unlikely(q1 >> TXD_PAYLEN_SHIFT & 0x3FFFF != length):
        return 0, 0
    source, run = translate_near(iommu, t, q0, length, 0)
    if not unlikely(run != length):
        return length, source
    if run or awaits_page(iommu, t.rid):
        return 0, 0
    drop(nic, t.pool, DROP_DMA_FAULT)
    nic.seen.unread = 1
    nic.turn.work += FAULT_WORK
    return length, 0


@part
def mark_done(t: Row, at: int, q1: int) -> None:
    """Mark a descriptor of transmit queue `t` as done, if it asks for a report there."""
    if q1 & TXD_RS and t.head_wb == 0:
        store32_release(at + 12, q1 >> 32 | 1)


@inlined
def serve_run(nic: Row, q: int, budget: int, outward: bool) -> tuple[int, bool]:
    """Send frames of transmit queue `q` as `serve_whole` does, to pools, or `outward`, as long as they go there."""
    iommu = iommu_at(nic.port.iommu)
    t = nic.tx[q]
    sender = nic.pools[t.pool]
    turn = nic.turn
    turn.touched = 0
    nic.seen.why = -1
    nic.seen.unread = 0
    tapped = not outward and nic.seen.points != 0 and taps_take(nic) != 0
    at = end = frames = asked = moved = size = 0
    while frames < budget and turn.work < turn.work_stop:
        if unlikely(at == end):
            at, end = next_stretch(nic, t, at)
            if at == 0:
                break
        q0 = load64(at)
        q1 = load64(at + 8)
        if q1 & _WHOLE_MASK == _WHOLE:
            length, source = find_whole(nic, iommu, t, q0, q1)
            if unlikely(length == 0):
                break
            if not unlikely(source == 0):
                if outward:
                    if unlikely(leave(nic, t, q1, source, length)):
                        break
                    moved += 1
                    size += length + 4
                elif unlikely(move_frame(nic, iommu, sender, t, q1, source, length)):
                    break
            if not outward and unlikely(tapped):
                tap_local(nic, q, source, q1)
            turn.work += LOCAL_WORK + copy_work(length)
        elif is_context(q1):
            keep_context(t, q0, q1)
            turn.work += DESCRIPTOR_WORK
        else:
            break
        mark_done(t, at, q1)
        asked |= q1
        at += 16
        frames += 1
    move_head(t, at)
    if outward:
        settle_left(nic, t.pool, moved, size)
        if unlikely(nic.seen.points != 0):
            tap_left_unseen(nic, t.pool, moved)
        return frames, asked & TXD_RS != 0
    if unlikely(nic.seen.points != 0) and not tapped:
        tap_unseen(nic, t.pool)
    for k in range(QUEUES):
        if turn.touched >> k & 1:
            had, had_bytes = settle_received(nic, k, True)
            moved += had
            size += had_bytes
    turn.touched = 0
    settle_sent(nic, t.pool, moved, size)
    return frames, asked & TXD_RS != 0


@kernel
def serve_local(nic: Row, q: int, budget: int) -> tuple[int, bool]:
    """Send frames that go to other pools, as `serve_whole` does."""
    return serve_run(nic, q, budget, False)


@kernel
def serve_outward(nic: Row, q: int, budget: int) -> tuple[int, bool]:
    """Send frames that go to the wire, as `serve_whole` does."""
    return serve_run(nic, q, budget, True)


@kernel
def serve_whole(nic: Row, q: int, budget: int) -> tuple[int, bool]:
    """Send frames of transmit queue `q`, up to `budget` and what its turn allows, while they are ordinary.

    Returns (frames, contexts among them; whether any asked for a report).
    """
    t = nic.tx[q]
    if not ordinary(nic, t.pool):
        return 0, False
    count = 0
    told = False
    for _ in range(2):
        if t.outward:
            if has_wire(nic, t.pool):
                count, told = serve_outward(nic, q, budget)
        elif switches(nic):
            count, told = serve_local(nic, q, budget)
        if count:
            break
        t.outward ^= 1  # next time, too: frames go where the last ones went
    return count, told
