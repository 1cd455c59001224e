"""One call serves a port: every ready transmit queue, every receive queue that got something, every due interrupt.

snapshot   tails and registers of each queue, once
run        up to `budget` frames of each transmit queue in turn (`turns.py`), through the switch, into receive queues
publish    heads; then vectors whose cause is pending, enabled and not throttled
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import BROADCAST
from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.kernels._jit import Row, copy_bytes, kernel, load64
from virtfn.kernels.card import EV_CAPTURE, EV_FAULT, EV_INTERRUPT, EV_MALICIOUS, EV_PAGE, EV_TIMER, EV_UPLINK
from virtfn.kernels.i82576.classify import HEAD_BYTES
from virtfn.kernels.i82576.forward import BURST_PS, count_size, spread, tag_of
from virtfn.kernels.i82576.ring import publish
from virtfn.kernels.i82576.seen import capture_frame, capture_room, drop_seen, tap_sent
from virtfn.kernels.i82576.state import (
    DEPARTURE_ALARM,
    DROP_OVERSIZE,
    DROP_STORM,
    DROP_UNDERSIZE,
    HEAD_AREA,
    QUEUES,
    RX_CAUSE,
    TX_CAUSE,
    VECTORS,
    WIRE,
    nic_at,
)
from virtfn.kernels.i82576.storm import is_storm
from virtfn.kernels.i82576.switch import switch_receive
from virtfn.kernels.i82576.turns import serve_stalled, serve_turns
from virtfn.kernels.i82576.wire import come, settle_came
from virtfn.kernels.ranges import start_call
from virtfn.kernels.vtd.ats import device_tlb_at
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["arrive", "begin", "enable_vectors", "finish", "fire_vectors", "raise_vectors", "serve_port", "wire_in"]

ALL_VECTORS = (1 << VECTORS) - 1
WAITS = 1 << 32  # for a receiver
WIRE_STALL = 100  # `stalled` when the frame at the head of the line came from the wire


@kernel
def begin(nic: Row, now: int) -> None:
    """Start a call: queues latch their registers again at first use. now: time in ps."""
    start_call()
    p = nic.port
    p.now = now
    p.epoch += 1


@kernel
def raise_vectors(nic: Row) -> int:
    """Fire the vectors that are pending, enabled and not throttled; apply auto-clear and auto-mask."""
    p = nic.port
    events = 0
    if p.pending >> 32:
        # Whether they are enabled is up to ICR and IMS, which Python looks after.
        nic.card.fired |= p.pending & (RX_CAUSE | TX_CAUSE)
        p.pending &= ~(RX_CAUSE | TX_CAUSE)
        events = EV_INTERRUPT
    due = p.pending & p.eims
    if due == 0:
        return events
    for v in range(VECTORS):
        bit = 1 << v
        if not due & bit:
            continue
        if nic.eitr[v, 1] > p.now:
            events |= EV_TIMER
            continue
        if nic.eitr[v, 0] > 0:
            nic.eitr[v, 1] = p.now + nic.eitr[v, 0]
        p.pending &= ~bit
        nic.card.fired |= bit
        p.eicr &= ~(bit & p.eiac)
        if p.automask:
            p.eims &= ~(bit & p.eiam)
        events |= EV_INTERRUPT
    return events


@kernel
def enable_vectors(nic: Row, bits: int) -> None:
    """Enable vectors; those whose cause is set are pending again."""
    p = nic.port
    p.eims |= bits
    p.pending |= p.eicr & bits & ALL_VECTORS


@kernel
def finish(nic: Row) -> int:
    """End a call: show receive heads to the drivers and raise interrupts. Returns events."""
    p = nic.port
    settle_came(nic)
    for q in range(QUEUES):
        if nic.rx[q].epoch == p.epoch:
            publish(nic.rx[q])
    events = raise_vectors(nic)
    if p.misbehaved:
        events |= EV_MALICIOUS
    unit = iommu_at(nic.port.iommu).unit[0]
    if unit.fault_head != unit.fault_tail or unit.message_head != unit.message_tail:
        events |= EV_FAULT
    if p.device_tlb and device_tlb_at(p.device_tlb).cache[0].unsent:
        events |= EV_PAGE
    if p.departed_tail - p.departed_head > DEPARTURE_ALARM:
        events |= EV_UPLINK
    return events


@kernel
def fire_vectors(address: int, now: int) -> int:
    """Fire due vectors of the NIC whose row is at `address`, when no frame is about to move. Returns events."""
    nic = nic_at(address)
    nic.port.now = now
    return raise_vectors(nic)


@kernel
def serve_port(address: int, now: int, budget: int) -> tuple[int, int]:
    """Move what is ready, at most `budget` frames of each queue. Returns (frames sent, events).

    address: of the NIC's row.
    """
    nic = nic_at(address)
    p = nic.port
    begin(nic, now)
    frames = 0
    events = 0
    if p.stalled and p.stalled != WIRE_STALL:
        frames, events = serve_stalled(nic, budget)
    if not p.stalled:
        sent, event = serve_turns(nic, budget)
        frames += sent
        events |= event
    return frames, events | finish(nic)


@kernel
def wire_in(
    address: int,
    now: int,
    store: int,
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    first: int,
    count: int,
) -> tuple[int, int]:
    """Receive frames first..first+count-1 of a store from the wire. Returns (frames taken, events).

    address: of the NIC's row. store: address of the frames' bytes; offsets, lengths: (frames,) int64, without frame
    check sequence.
    """
    nic = nic_at(address)
    begin(nic, now)
    taken = 0
    events = 0
    while taken < count:
        why = arrive(nic, store + offsets[first + taken], lengths[first + taken])
        if why:
            events |= why & ~WAITS
            break
        taken += 1
    return taken, events | finish(nic)


@kernel
def arrive(nic: Row, frame: int, length: int) -> int:
    """Receive a frame from the wire, in a call that has begun: 0, or what it waits for, as events and WAITS."""
    if not come(nic, frame, length):
        return 0
    settle_came(nic)
    p = nic.port
    if p.stalled and p.stalled != WIRE_STALL:
        return WAITS
    if p.stalled == 0:
        if p.wire_ps_per_byte:
            if p.wire_rx_next_ps > p.now:
                return EV_TIMER
            p.wire_rx_next_ps = max(p.wire_rx_next_ps, p.now - BURST_PS) + (length + 24) * p.wire_ps_per_byte
        if p.capture and not capture_room(nic, length):
            return EV_CAPTURE
    head = p.scratch + HEAD_AREA
    copy_bytes(head, frame, min(length, HEAD_BYTES))
    return 0 if wire_frame(nic, head, frame, length) else WAITS


@kernel
def wire_frame(nic: Row, head: int, frame: int, length: int) -> bool:
    """Receive one frame from the wire; False if it has to wait at the head of the line."""
    p = nic.port
    c = nic.counters
    if p.stalled:
        pools = p.stall_pools & p.rx_pools if p.rx_enable else 0
        tci = p.stall_tci
    else:
        c.tpr += 1
        c.tor += length + 4
        if length < 14 or length > MAX_FRAME:
            if length < 14:
                c.ruc += 1
            else:
                c.roc += 1
            drop_seen(nic, WIRE, 0, DROP_UNDERSIZE if length < 14 else DROP_OVERSIZE, head, frame, length)
            return True
        if p.capture:
            capture_frame(nic, WIRE, 0, head, frame, length)
        tci = tag_of(nic, head, length)
        mac = load64(head) & BROADCAST
        vid = tci & 0xFFF if tci >= 0 else -1
        pools, why = switch_receive(nic, mac, vid)
        if nic.seen.points:
            tap_sent(nic, WIRE, 0, pools, head, frame, length)
        if pools == 0:
            drop_seen(nic, WIRE, 0, why, head, frame, length)
            return True
        c.gprc += 1
        c.gorc += length + 4
        count_size(nic, length, False)
        if mac == BROADCAST:
            c.bprc += 1
        elif mac & 1:
            c.mprc += 1
        if p.storm and is_storm(nic, WIRE, mac, vid, pools, length):
            drop_seen(nic, WIRE, 0, DROP_STORM, head, frame, length)
            return True
    left = spread(nic, pools, head, frame, length, tci, False)
    if left:
        p.stalled = WIRE_STALL
        p.stall_pools = left
        p.stall_tci = tci
        return False
    p.stalled = 0
    return True
