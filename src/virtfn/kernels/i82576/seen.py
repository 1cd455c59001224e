"""What is seen of frames: why they were dropped, captures, and taps.

    capture   every frame as functions and the wire sent and received it; the card waits for whoever takes them
    tap       copies at chosen points, for other processes (`tapring.py`); the card waits for nobody

A frame is (head, body, length), as in `rx.py`; head 0: nobody has seen its bytes.
"""

from __future__ import annotations

from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.kernels._jit import Row, apart, copy_bytes, kernel, part
from virtfn.kernels.i82576.classify import HEAD_BYTES
from virtfn.kernels.i82576.state import (
    CAPTURE_BYTES,
    CAPTURE_SLOTS,
    NIC,
    TAPS,
    WIRE,
)
from virtfn.kernels.tapring import (
    DETAIL_SHIFT,
    OUTBOUND_SHIFT,
    POINT_SHIFT,
    RECORD_BYTES,
    TAP_DROP,
    TAP_SWITCH,
    TAP_TX,
    count_lost,
    has_room,
    put_record,
    start_record,
)

__all__ = [
    "capture_frame",
    "capture_room",
    "copy_frame",
    "drop",
    "drop_seen",
    "tap_frame",
    "tap_missed",
    "tap_sent",
    "taps_take",
]


@part
def drop(nic: Row, interface: int, why: int) -> None:
    """Count a frame of a pool, or of the wire, as dropped; whoever knows its length counts its bytes."""
    nic.drops[interface, why] += 1
    nic.seen.why = why


@part
def drop_seen(nic: Row, interface: int, outbound: int, why: int, head: int, body: int, length: int) -> None:
    """Drop a frame, and let taps see it. outbound: it left the pool, or was to leave by the wire. length: or 0."""
    drop(nic, interface, why)
    if length:
        nic.dropped_bytes[interface] += length + 4
    if nic.seen.points:
        tap_frame(nic, TAP_DROP, interface, outbound, why, head, body, length)


@kernel
def capture_room(nic: Row, length: int) -> bool:
    """Tell whether the capture buffer takes one more frame at every interface."""
    p = nic.port
    return p.capture_head + WIRE + 2 <= CAPTURE_SLOTS and p.capture_bytes + (WIRE + 2) * length <= CAPTURE_BYTES


@apart(NIC, int, int, int, int, int, gives=0)
def capture_frame(nic: Row, interface: int, outbound: int, head: int, body: int, length: int) -> None:
    """Record a frame as `interface` (pool, or WIRE) sent or received it."""
    p = nic.port
    record = nic.capture[p.capture_head]
    record.interface = interface
    record.outbound = outbound
    record.length = length
    record.offset = p.capture_bytes
    record.time_ps = p.now
    copy_frame(nic.port.captured + p.capture_bytes, head, body, length)
    p.capture_head += 1
    p.capture_bytes += length


@kernel
def copy_frame(target: int, head: int, body: int, length: int) -> None:
    """Copy a frame to private or translated memory."""
    if length <= HEAD_BYTES:
        copy_bytes(target, head, length)
    else:
        copy_bytes(target, head, HEAD_BYTES)
        copy_bytes(target + HEAD_BYTES, body + HEAD_BYTES, length - HEAD_BYTES)


@apart(NIC, int, int, int, int, int, int, int, gives=0)
def tap_frame(
    nic: Row, point: int, interface: int, outbound: int, detail: int, head: int, body: int, length: int
) -> None:
    """Let the taps that want this point and interface see a frame."""
    what = interface | point << POINT_SHIFT | outbound << OUTBOUND_SHIFT | detail << DETAIL_SHIFT
    for i in range(TAPS):
        t = nic.taps[i]
        if t.points & point == 0 or t.interfaces >> interface & 1 == 0:
            continue
        captured = min(length, t.snap, MAX_FRAME) if head else 0
        at = start_record(t, interface, captured)
        if at:
            copy_frame(at + RECORD_BYTES, head, body, captured)
            put_record(t, at, nic.port.now, what, length, captured)


@apart(NIC, gives=1)
def taps_take(nic: Row) -> int:
    """Tell whether any tap takes frames, as 0 or 1: who asks once for many counts what is missed with `tap_missed`."""
    for i in range(TAPS):
        t = nic.taps[i]
        if t.points and has_room(t):
            return 1
    return 0


@apart(NIC, int, int, int, gives=0)
def tap_missed(nic: Row, point: int, interface: int, frames: int) -> None:
    """Count frames that no tap takes, as lost to those that want them."""
    for i in range(TAPS):
        t = nic.taps[i]
        if t.points & point and t.interfaces >> interface & 1:
            count_lost(t, interface, frames)


@part
def tap_sent(nic: Row, interface: int, outbound: int, goes: int, head: int, body: int, length: int) -> None:
    """Let taps see a frame as it enters the switch, and where it goes from there, as a bitmap of interfaces."""
    if nic.seen.points & TAP_TX:
        tap_frame(nic, TAP_TX, interface, outbound, 0, head, body, length)
    if nic.seen.points & TAP_SWITCH:
        tap_frame(nic, TAP_SWITCH, interface, outbound, goes, head, body, length)
