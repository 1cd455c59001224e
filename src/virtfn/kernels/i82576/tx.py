"""Transmit: fetch descriptors, gather what needs gathering, check the sender, and forward.

    one plain data descriptor      forwarded from where it lies in guest memory: one copy, sender to receiver
    anything else                  gathered into private memory first (several buffers, VLAN insertion, checksums,
                                   segmentation, padding), see `offload.py`

The head moves, and done bits appear, only when a frame is finished; a frame that has to wait for a receiver stays at
the head of its queue, with the pools that still lack it in the port's state.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.eth import MIN_FRAME
from virtfn.hw.i82576.desc import (
    MAX_FRAME,
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
from virtfn.kernels._jit import Row, apart, copy_bytes, kernel, load64, part, store32_release
from virtfn.kernels.card import EV_CAPTURE, EV_MORE, EV_TIMER
from virtfn.kernels.i82576.classify import HEAD_BYTES
from virtfn.kernels.i82576.forward import BURST_PS, FORWARDED, WAITING, YIELDED, forward
from virtfn.kernels.i82576.offload import (
    CHAIN_BAD,
    CHAIN_DONE,
    CHAIN_FAULT,
    CHAIN_OPEN,
    CHAIN_PAGE,
    area_of,
    gather,
    segment,
)
from virtfn.kernels.i82576.ring import advance, forget_chain, misbehave, note_cause, ring_count, window, window_hot
from virtfn.kernels.i82576.seen import capture_room, drop_seen
from virtfn.kernels.i82576.state import (
    DROP_DMA_FAULT,
    DROP_MALFORMED,
    DROP_OVERSIZE,
    DROP_UNDERSIZE,
    HEAD_AREA,
    NIC,
    SEGMENT_AREA,
)
from virtfn.kernels.i82576.whole import mark_done, serve_whole
from virtfn.kernels.i82576.work import DESCRIPTOR_WORK, FAULT_WORK, GENERAL_WORK, SEGMENT_WORK
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate, translate_hot
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["serve_queue"]

_LATE_PS = 15_000_000_000  # credit of a sender that its rate holds up: it is served late, and makes up for that
_LATELY_PS = 100_000_000_000  # as long as it was held up not longer ago than this
_PATIENCE = 4  # frames that were not for `whole.py`, before a call stops asking it
_PLAIN_MASK = TXD_DTYP_MASK | TXD_EOP | TXD_DEXT | TXD_VLE | TXD_TSE | TXD_IXSM | TXD_TXSM
_PLAIN = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT


@kernel
def send_one(nic: Row, q: int, pool: int, q0: int, q1: int) -> tuple[int, int, int]:
    """Send the frame whose first descriptor, `q0` and `q1`, is at the head.

    Returns (verdict, descriptors used, events); 0 used: the chain is not complete yet.
    """
    p = nic.port
    r = nic.tx[q]
    scratch = nic.port.scratch
    length = q1 & TXD_LEN_MASK
    if (
        not r.whole
        and q1 & _PLAIN_MASK == _PLAIN
        and (length >= MIN_FRAME or not p.pad)
        and nic.pools[pool].vlan_mode != 1
    ):
        if q1 >> TXD_PAYLEN_SHIFT & 0x3FFFF != length:
            drop_seen(nic, pool, 1, DROP_MALFORMED, 0, 0, length)
            return FORWARDED, 1, misbehave(nic, q)
        if not sound_length(nic, pool, length):
            return FORWARDED, 1, 0
        hpa, run = translate_hot(iommu_at(nic.port.iommu), r.rid, q0, length, 0)
        if run == 0:
            if awaits_page(iommu_at(nic.port.iommu), r.rid):
                return WAITING, 0, 0
            drop_seen(nic, pool, 1, DROP_DMA_FAULT, 0, 0, 0)
            nic.turn.work += FAULT_WORK
            return FORWARDED, 1, 0
        if run == length:
            if p.capture and not capture_room(nic, length):
                return WAITING, 0, EV_CAPTURE
            copy_bytes(scratch + HEAD_AREA, hpa, min(length, HEAD_BYTES))
            return forward(nic, q, pool, scratch + HEAD_AREA, hpa, length), 1, 0
    code, used = gather(nic, q, pool)
    if code != CHAIN_DONE:
        return without_frame(nic, q, pool, code, used)
    if r.chain_mss:
        verdict, events = send_segments(nic, q, pool)
        return verdict, used, events
    if not sound_length(nic, pool, r.chain_bytes):
        return FORWARDED, used, 0
    if p.capture and not capture_room(nic, r.chain_bytes):
        return WAITING, 0, EV_CAPTURE
    frame = area_of(nic, q) + r.chain_start
    return forward(nic, q, pool, frame, frame, r.chain_bytes), used, 0


@part
def sound_length(nic: Row, pool: int, length: int) -> bool:
    """Tell whether a frame is neither too short to be sent nor too long; count it as dropped if it is."""
    if 14 <= length <= MAX_FRAME:
        return True
    drop_seen(nic, pool, 1, DROP_UNDERSIZE if length < 14 else DROP_OVERSIZE, 0, 0, length)
    return False


@part
def without_frame(nic: Row, q: int, pool: int, code: int, used: int) -> tuple[int, int, int]:
    """Tell what becomes of a chain that gave no frame to send, as `send_one` does."""
    if code == CHAIN_OPEN or code == CHAIN_PAGE:
        return WAITING, 0, EV_MORE if code == CHAIN_OPEN and used < ring_count(nic.tx[q]) else 0
    if code == CHAIN_FAULT:
        drop_seen(nic, pool, 1, DROP_DMA_FAULT, 0, 0, 0)
        nic.turn.work += FAULT_WORK
    if code == CHAIN_BAD:
        drop_seen(nic, pool, 1, DROP_MALFORMED, 0, 0, 0)
        return FORWARDED, used, misbehave(nic, q)
    return FORWARDED, used, 0


@apart(NIC, int, int, gives=2)
def send_segments(nic: Row, q: int, pool: int) -> tuple[int, int]:
    """Send the segments of the large send that queue `q` has gathered, as far as its turn goes.

    Returns (verdict, events). Those sent before the line was held up, or the turn was over, are not sent again.
    """
    p = nic.port
    r = nic.tx[q]
    target = p.scratch + SEGMENT_AREA
    offset = r.chain_header + r.segments_done * r.chain_mss
    while offset < r.chain_bytes:
        if turn_is_over(nic):
            return WAITING, EV_MORE
        size = segment(nic, q, offset, target)
        nic.turn.work += SEGMENT_WORK
        if p.capture and not capture_room(nic, size):
            return WAITING, EV_CAPTURE
        verdict = forward(nic, q, pool, target, target, size)
        if verdict != FORWARDED:
            return verdict, 0
        p.stalled = 0
        r.segments_done += 1
        offset += r.chain_mss
    nic.counters.tsctc += 1
    return FORWARDED, 0


@part
def turn_is_over(nic: Row) -> bool:
    """Tell whether the work that this visit to a queue may do is done."""
    over: bool = nic.turn.work >= nic.turn.work_stop
    return over


@kernel
def write_back(nic: Row, q: int, used: int) -> bool:
    """Finish `used` descriptors at the head: set DD where RS asks for it, and move the head. True if any asked."""
    r = nic.tx[q]
    asked = False
    nic.turn.work += used * DESCRIPTOR_WORK
    for _ in range(used):
        at = window(nic, r)
        if at == 0:
            return asked
        q1 = load64(at + 8)
        mark_done(r, at, q1)
        asked = asked or q1 & TXD_RS != 0
        advance(r)
    return asked


@kernel
def can_report(nic: Row, r: Row) -> bool:
    """Tell whether heads can be written back; False while the page for them has been asked for."""
    iommu = iommu_at(nic.port.iommu)
    if iommu.contexts[r.rid].device_tlb == 0:
        return True
    _, run = translate(iommu, r.rid, r.head_wb & ~np.int64(3), 4, 1)
    return run != 0 or not awaits_page(iommu, r.rid)


@part
def report(nic: Row, r: Row) -> None:
    """Write the head of a transmit queue back, where its driver wants that, and enter its interrupt cause."""
    if r.head_wb:
        hpa, run = translate(iommu_at(nic.port.iommu), r.rid, r.head_wb & ~np.int64(3), 4, 1)
        if run == 4:
            store32_release(hpa, r.head)
    note_cause(nic, r)


@part
def keep_waiting(nic: Row, q: int, verdict: int, used: int, event: int) -> int:
    """Leave the frame of queue `q` at its head, for what `send_one` says of it; returns events."""
    events = 0
    if verdict == YIELDED:
        nic.turn.yielded |= 1 << q
        events = EV_MORE
    elif verdict == WAITING and used and not event:
        events = EV_TIMER
    if used or event:
        nic.port.stall_epoch = nic.port.epoch
    return events


@part
def pay(owner: Row, now: int, size: int) -> None:
    """Let a pool that has a rate pay for bytes that it has sent, and forget time that it has not used."""
    held = owner.held_ps != 0 and now - owner.held_ps <= _LATELY_PS
    owner.next_ps = max(owner.next_ps, now - (_LATE_PS if held else BURST_PS)) + size * owner.ps_per_byte


@apart(NIC, int, gives=3)
def serve_one(nic: Row, q: int) -> tuple[bool, bool, int]:
    """Send the frame at the head of transmit queue `q`, and finish its descriptors.

    Frames are paid for as they are sent, and the rate may hold up the next one, but not one that others wait for.
    Returns (whether it is done with, whether it asked for a report, events).
    """
    p = nic.port
    r = nic.tx[q]
    owner = nic.pools[r.pool]
    if owner.ps_per_byte and owner.next_ps > p.now and not p.stalled:
        owner.held_ps = p.now
        return False, False, EV_TIMER
    at = window_hot(nic, r)
    if at == 0 and r.enabled:
        return False, False, 0
    if at == 0:
        drop_seen(nic, r.pool, 1, DROP_DMA_FAULT, 0, 0, 0)
        return False, False, misbehave(nic, q)
    sent = owner.gotc
    q1 = load64(at + 8)
    verdict, used, event = send_one(nic, q, r.pool, load64(at), q1)
    if owner.ps_per_byte:
        pay(owner, p.now, owner.gotc - sent)
    if verdict != FORWARDED or used == 0:
        return False, False, event | keep_waiting(nic, q, verdict, used, event)
    p.stalled = 0
    if used == 1:
        mark_done(r, at, q1)
        asked = q1 & TXD_RS != 0
        advance(r)
    else:
        asked = write_back(nic, q, used)
    forget_chain(r)
    nic.turn.work += GENERAL_WORK
    return True, asked, event


@kernel
def serve_queue(nic: Row, q: int, budget: int) -> tuple[int, int]:
    """Send up to `budget` frames of transmit queue `q`, latched before, until its turn is over.

    Returns (frames, events).
    """
    p = nic.port
    r = nic.tx[q]
    events = 0
    frames = 0
    asked = False
    extraordinary = 0
    if r.head_wb and not can_report(nic, r):
        return 0, 0
    while frames < budget and r.head != r.tail:
        if turn_is_over(nic):
            events |= EV_MORE
            break
        if extraordinary < _PATIENCE and not r.whole:
            count, told = serve_whole(nic, q, budget - frames)
            frames += count
            asked = asked or told
            extraordinary = 0 if count else extraordinary + 1
            if count:
                continue
        done, told, event = serve_one(nic, q)
        events |= event
        if not done:
            break
        asked = asked or told
        frames += 1
        if p.blocked >> q & 1:
            break
    if asked:
        report(nic, r)
    return frames, events
