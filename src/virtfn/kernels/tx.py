"""Transmit: fetch descriptors, gather what needs gathering, check the sender, and forward.

    one plain data descriptor      forwarded from where it lies in guest memory: one copy, sender to receiver
    anything else                  gathered into private memory first (several buffers, VLAN insertion, checksums,
                                   segmentation, padding), see `offload.py`

The head moves, and done bits appear, only when a frame is finished; a frame that has to wait for a receiver stays at
the head of its queue, with the pools that still lack it in the port's state.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.i82576.desc import (
    MAX_FRAME,
    MIN_FRAME,
    RXD_LB,
    TXD_LEN_MASK,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
)  # fmt: skip
from virtfn.kernels._jit import Row, copy_bytes, kernel, load8, load16, load64, store32_release
from virtfn.kernels.ats import awaits_page
from virtfn.kernels.classify import HEAD_BYTES, classify
from virtfn.kernels.csum import swap16
from virtfn.kernels.dma import translate, translate_hot
from virtfn.kernels.iommu import iommu_at
from virtfn.kernels.offload import CHAIN_BAD, CHAIN_DONE, CHAIN_FAULT, CHAIN_OPEN, CHAIN_PAGE, gather, segment
from virtfn.kernels.ring import misbehave, window, window_hot
from virtfn.kernels.runs import PLAIN, PLAIN_MASK, serve_run
from virtfn.kernels.rx import RX_DONE, RX_OVERSIZE, RX_STALL, capture_frame, capture_room, receive
from virtfn.kernels.state import (
    DROP_DMA_FAULT,
    DROP_MAC_SPOOF,
    DROP_MALFORMED,
    DROP_NO_UPLINK,
    DROP_OVERSIZE,
    DROP_UNDERSIZE,
    DROP_VLAN_SPOOF,
    EV_CAPTURE,
    EV_TIMER,
    GATHER_AREA,
    HEAD_AREA,
    LOWEST,
    SEGMENT_AREA,
    WIRE,
)
from virtfn.kernels.switch import BROADCAST, MAC, find_pools, switch_receive, switch_transmit
from virtfn.kernels.uplink import depart

__all__ = ["FORWARDED", "STALLED", "WAITING", "forward", "serve_queue"]

FORWARDED, STALLED, WAITING = range(3)

_SEGMENTS = 512  # of one large send in one call: with tiny segments there could be a quarter of a million
_PATIENCE = 4  # frames that were no run, before a call stops looking for one
_BURST_PS = 2_000_000_000  # credit that an idle sender keeps: 2 ms


@kernel
def count_size(nic: Row, length: int, sent: bool) -> None:
    """Count a frame of the wire by size, as the port's statistics do: with the frame check sequence."""
    c = nic.counters
    size = length + 4
    if sent:
        c.gptc += 1
        c.gotc += size
        c.tpt += 1
        c.tot += size
        if size <= 64:
            c.ptc64 += 1
        elif size <= 127:
            c.ptc127 += 1
        elif size <= 255:
            c.ptc255 += 1
        elif size <= 511:
            c.ptc511 += 1
        elif size <= 1023:
            c.ptc1023 += 1
        else:
            c.ptc1522 += 1
    elif size <= 64:
        c.prc64 += 1
    elif size <= 127:
        c.prc127 += 1
    elif size <= 255:
        c.prc255 += 1
    elif size <= 511:
        c.prc511 += 1
    elif size <= 1023:
        c.prc1023 += 1
    else:
        c.prc1522 += 1


@kernel
def spread(nic: Row, pools: int, head: int, body: int, length: int, tci: int, looped: bool) -> int:
    """Give a frame to each pool in the bitmap. Returns the pools that still lack it because the line is held up."""
    p = nic.port
    start = 18 if tci >= 0 else 14
    q0 = 0
    status = RXD_LB if looped else 0
    kind = load16(head + start - 2)
    if kind == 0x0008 or kind == 0xDD86:
        q0, verdict = classify(nic, head, body, length, start)
        status |= verdict
    replicated = pools & (pools - 1) != 0 or (load8(head) & 1 != 0 and p.replicate != 0 and p.vmdq != 0)
    if p.stalled:
        replicated = p.stall_replicated != 0
    capture = p.capture
    fits = looped or p.stalled != 0
    while pools:
        pool = LOWEST[pools & 0xFF]
        code = receive(nic, pool, head, body, length, tci, replicated, q0, status)
        if code == RX_STALL:
            p.stall_replicated = replicated
            return pools
        if code != RX_OVERSIZE:
            fits = True
        if code == RX_DONE:
            nic.counters.rpthc += 1
            nic.counters.hgorc += length + 4
            if looped:
                owner = nic.pools[pool]
                owner.gprlbc += 1
                owner.gorlbc += length + 4
            if capture:
                capture_frame(nic, pool, 0, head, body, length)
        pools &= pools - 1
    if not fits:
        nic.counters.roc += 1
    return 0


@kernel
def check_sender(nic: Row, q: int, pool: int, source: int, vid: int) -> bool:
    """Anti-spoofing: the source address, and the VLAN, must be the pool's own where DTXSWC says so."""
    p = nic.port
    reason = -1
    if p.mac_spoof_pools >> pool & 1 and not find_pools(nic.macs, source) >> pool & 1:
        reason = DROP_MAC_SPOOF
    elif p.vlan_spoof_pools >> pool & 1 and vid >= 0 and not nic.vlans[vid] >> pool & 1:
        reason = DROP_VLAN_SPOOF
    if reason < 0:
        return True
    nic.drops[pool, reason] += 1
    nic.counters.ssvpc += 1
    if p.spoof_int:
        p.misbehaved |= 1 << q
    return False


@kernel
def forward(nic: Row, q: int, pool: int, head: int, body: int, length: int) -> int:
    """Send one whole frame of a pool through the switch: FORWARDED (or dropped and counted), STALLED or WAITING.

    A frame that stalled is checked and switched again, since its sender may have changed it meanwhile.
    """
    p = nic.port
    owner = nic.pools[pool]
    vid = -1
    tci = -1
    if load16(head + 12) == swap16(p.vet & 0xFFFF) and length >= 18:
        tci = swap16(load16(head + 14))
        vid = tci & 0xFFF
    destination = load64(head) & MAC
    if (p.mac_spoof_pools | p.vlan_spoof_pools) >> pool & 1 and not check_sender(
        nic, q, pool, load64(head + 6) & MAC, vid
    ):
        return FORWARDED
    pools, wire, why = switch_transmit(nic, pool, destination, vid)
    if wire and p.self_loop:
        back, why = switch_receive(nic, destination, vid)
        pools |= back
    if p.stalled:
        pools &= p.stall_pools
    else:
        if wire and p.wire_up and p.wire_ps_per_byte:
            if p.wire_next_ps > p.now:
                return WAITING
            p.wire_next_ps = max(p.wire_next_ps, p.now - _BURST_PS) + (length + 24) * p.wire_ps_per_byte
        if p.capture:
            capture_frame(nic, pool, 1, head, body, length)
        owner.gptc += 1
        owner.gotc += length + 4
        nic.counters.hgptc += 1
        nic.counters.hgotc += length + 4
        if wire and p.wire_up and not p.self_loop:
            count_size(nic, length, True)
            if destination & 1:
                if destination == BROADCAST:
                    nic.counters.bptc += 1
                else:
                    nic.counters.mptc += 1
            if p.capture:
                capture_frame(nic, WIRE, 1, head, body, length)
            if p.departures:
                depart(nic, head, body, length)
        elif pools == 0:
            if wire and not p.self_loop and why == 0:
                why = DROP_NO_UPLINK
            nic.drops[pool, why] += 1
        if pools:
            if pools & (pools - 1):
                nic.counters.flooded += 1
            else:
                nic.counters.forwarded += 1
            owner.gptlbc += 1
            owner.gotlbc += length + 4
    if pools == 0:
        return FORWARDED
    left = spread(nic, pools, head, body, length, tci, True)
    if left:
        p.stalled = q + 1
        p.stall_pools = left
        return STALLED
    p.stalled = 0
    return FORWARDED


@kernel
def send_one(nic: Row, q: int, pool: int, at: int, q0: int, q1: int) -> tuple[int, int, int]:
    """Send the frame whose first descriptor is at the head.

    Returns (verdict, descriptors used, events); 0 used: the chain is not complete yet.
    """
    p = nic.port
    r = nic.tx[q]
    owner = nic.pools[pool]
    scratch = nic.port.scratch
    length = q1 & TXD_LEN_MASK
    if q1 & PLAIN_MASK == PLAIN and (length >= MIN_FRAME or not p.pad) and owner.vlan_mode != 1:
        if q1 >> TXD_PAYLEN_SHIFT & 0x3FFFF != length:
            nic.drops[pool, DROP_MALFORMED] += 1
            return FORWARDED, 1, misbehave(nic, q)
        if length < 14 or length > MAX_FRAME:
            nic.drops[pool, DROP_UNDERSIZE if length < 14 else DROP_OVERSIZE] += 1
            return FORWARDED, 1, 0
        hpa, run = translate_hot(iommu_at(nic.port.iommu), r.rid, q0, length, 0)
        if run == 0:
            if awaits_page(iommu_at(nic.port.iommu), r.rid):
                return WAITING, 0, 0
            nic.drops[pool, DROP_DMA_FAULT] += 1
            return FORWARDED, 1, 0
        if run == length:
            if p.capture and not capture_room(nic, length):
                return WAITING, 0, EV_CAPTURE
            copy_bytes(scratch + HEAD_AREA, hpa, min(length, HEAD_BYTES))
            return forward(nic, q, pool, scratch + HEAD_AREA, hpa, length), 1, 0
    code, used, start, length, mss, first_payload = gather(nic, q, pool)
    if code == CHAIN_OPEN or code == CHAIN_PAGE:
        return WAITING, 0, 0
    if code == CHAIN_FAULT:
        nic.drops[pool, DROP_DMA_FAULT] += 1
        return FORWARDED, used, 0
    if code == CHAIN_BAD:
        nic.drops[pool, DROP_MALFORMED] += 1
        return FORWARDED, used, misbehave(nic, q)
    if code != CHAIN_DONE:
        return FORWARDED, used, 0
    frame = scratch + GATHER_AREA + start
    if mss == 0:
        if length < 14 or length > MAX_FRAME:
            nic.drops[pool, DROP_UNDERSIZE if length < 14 else DROP_OVERSIZE] += 1
            return FORWARDED, used, 0
        if p.capture and not capture_room(nic, length):
            return WAITING, 0, EV_CAPTURE
        return forward(nic, q, pool, frame, frame, length), used, 0
    # Segments sent before the line was held up are not sent again.
    offset = first_payload + r.segments_done * mss
    stop = offset + _SEGMENTS * mss
    while offset < length:
        if offset == stop:
            return WAITING, used, 0
        size = segment(nic, frame, length, first_payload, offset, mss, scratch + SEGMENT_AREA)
        if p.capture and not capture_room(nic, size):
            return WAITING, 0, EV_CAPTURE
        verdict = forward(nic, q, pool, scratch + SEGMENT_AREA, scratch + SEGMENT_AREA, size)
        if verdict != FORWARDED:
            return verdict, used, 0
        p.stalled = 0
        r.segments_done += 1
        offset += mss
    nic.counters.tsctc += 1
    return FORWARDED, used, 0


@kernel
def write_back(nic: Row, q: int, used: int) -> bool:
    """Finish `used` descriptors at the head: set DD where RS asks for it, and move the head. True if any asked."""
    r = nic.tx[q]
    asked = False
    for _ in range(used):
        at = window(nic, r)
        if at == 0:
            return asked
        word = load64(at + 8)
        if word & TXD_RS:
            asked = True
            if r.head_wb == 0:
                store32_release(at + 12, word >> 32 | 1)
        r.head = r.head + 1 if r.head + 1 < r.size else 0
    return asked


@kernel
def can_report(nic: Row, r: Row) -> bool:
    """Tell whether heads can be written back; False while the page for them has been asked for."""
    iommu = iommu_at(nic.port.iommu)
    if iommu.contexts[r.rid].device_tlb == 0:
        return True
    _, run = translate(iommu, r.rid, r.head_wb & ~np.int64(3), 4, 1)
    return run != 0 or not awaits_page(iommu, r.rid)


@kernel
def serve_queue(nic: Row, q: int, budget: int) -> tuple[int, int]:
    """Send up to `budget` frames of transmit queue `q`, latched before. Returns (frames, events).

    Frames are paid for as they are sent, and the rate may hold up the next one, but not one that others wait for.
    """
    p = nic.port
    r = nic.tx[q]
    pool = r.pool
    owner = nic.pools[pool]
    events = 0
    frames = 0
    asked = False
    extraordinary = 0
    if r.head_wb and not can_report(nic, r):
        return 0, 0
    while frames < budget and r.head != r.tail:
        if extraordinary < _PATIENCE:
            count, told = serve_run(nic, q, budget - frames)
            frames += count
            asked = asked or told
            extraordinary = 0 if count else extraordinary + 1
            if count:
                continue
        if owner.ps_per_byte and owner.next_ps > p.now and not p.stalled:
            events |= EV_TIMER
            break
        at = window_hot(nic, r)
        if at == 0 and r.enabled:
            break
        if at == 0:
            nic.drops[pool, DROP_DMA_FAULT] += 1
            events |= misbehave(nic, q)
            break
        sent = owner.gotc
        q1 = load64(at + 8)
        verdict, used, event = send_one(nic, q, pool, at, load64(at), q1)
        events |= event
        if owner.ps_per_byte:
            cost = (owner.gotc - sent) * owner.ps_per_byte
            owner.next_ps = max(owner.next_ps, p.now - _BURST_PS) + cost
        if verdict != FORWARDED or used == 0:
            if verdict == WAITING and used:
                events |= EV_TIMER
            if used or event:
                p.stall_epoch = p.epoch
            break
        p.stalled = 0
        r.segments_done = 0
        if used == 1:
            if q1 & TXD_RS:
                asked = True
                if r.head_wb == 0:
                    store32_release(at + 12, q1 >> 32 | 1)
            r.head = r.head + 1 if r.head + 1 < r.size else 0
        else:
            asked = write_back(nic, q, used) or asked
        frames += 1
        if p.blocked >> q & 1:
            break
    if asked:
        if r.head_wb:
            hpa, run = translate(iommu_at(nic.port.iommu), r.rid, r.head_wb & ~np.int64(3), 4, 1)
            if run == 4:
                store32_release(hpa, r.head)
        p.pending |= r.cause
        p.eicr |= r.cause
    return frames, events
