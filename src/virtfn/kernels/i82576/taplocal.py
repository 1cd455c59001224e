"""What taps see of a frame that `local.py` has moved: the same as of one that went the general way.

Nothing of it costs the short path anything while there is no tap: the frame is made once more, from its descriptor, as
`offload.py` makes it. While the taps are full, frames are only counted. Of a guest that changes a buffer which the card
still has, other bytes may be seen than arrived.
"""

from __future__ import annotations

from virtfn.hw.eth import MIN_FRAME
from virtfn.hw.i82576.desc import MAX_FRAME, TXD_ASKS, TXD_LEN_MASK
from virtfn.kernels._jit import Row, apart, copy_bytes, load64
from virtfn.kernels.i82576.forward import tag_of, tap_receiver
from virtfn.kernels.i82576.offload import TAG_BYTES, area_of, finish_advanced
from virtfn.kernels.i82576.ring import forget_chain
from virtfn.kernels.i82576.seen import tap_frame, tap_missed, tap_sent
from virtfn.kernels.i82576.state import LOWEST, NIC, QUEUES, WIRE
from virtfn.kernels.i82576.switch import MAC, switch_transmit
from virtfn.kernels.tapring import TAP_DROP, TAP_RX, TAP_SWITCH, TAP_TX

__all__ = ["tap_left_unseen", "tap_local", "tap_unseen"]


@apart(NIC, int, int, int, gives=0)
def tap_local(nic: Row, q: int, source: int, q1: int) -> None:
    """Let taps see a frame of transmit queue `q` at all points, before its driver is told that it is done.

    It is at `source`, and `q1` was the second word of its descriptor. What became of it is in `seen`, which forgets it.
    """
    t = nic.tx[q]
    pool = t.pool
    why = nic.seen.why
    unread = nic.seen.unread
    nic.seen.why = -1
    nic.seen.unread = 0
    if unread:
        tap_frame(nic, TAP_DROP, pool, 1, why, 0, 0, 0)
        return
    length = q1 & TXD_LEN_MASK
    frame = source
    size = length
    if q1 & TXD_ASKS or nic.pools[pool].vlan_mode or length < MIN_FRAME:
        area = area_of(nic, q)
        t.first_word = q1  # what is in the area goes with the VF's reset
        copy_bytes(area + TAG_BYTES, source, length)
        work = nic.turn.work
        made = finish_advanced(nic, q, pool, q1, length)
        nic.turn.work = work
        forget_chain(t)
        frame = area + t.chain_start
        size = t.chain_bytes
        if not made or size > MAX_FRAME:
            tap_missed(nic, TAP_TX, pool, 1)
            tap_missed(nic, TAP_SWITCH, pool, 1)
            return
    tci = tag_of(nic, frame, size)
    pools, _, _ = switch_transmit(nic, pool, load64(frame) & MAC, tci & 0xFFF if tci >= 0 else -1)
    tap_sent(nic, pool, 1, pools, frame, frame, size)
    if pools == 0:
        return
    target = LOWEST[pools & 0xFF]
    if why >= 0:
        tap_frame(nic, TAP_DROP, target, 0, why, frame, frame, size)
    else:
        tap_receiver(nic, target, True, frame, frame, size, tci, False)


@apart(NIC, int, gives=0)
def tap_unseen(nic: Row, pool: int) -> None:
    """Count frames that `local.py` has moved for `pool`, or WIRE, in this visit, where the taps had no room."""
    moved = 0
    for k in range(QUEUES):
        if nic.turn.touched >> k & 1 and nic.rx[k].frames:
            tap_missed(nic, TAP_RX, nic.rx[k].pool, nic.rx[k].frames)
            moved += nic.rx[k].frames
    tap_missed(nic, TAP_TX, pool, moved)
    tap_missed(nic, TAP_SWITCH, pool, moved)


@apart(NIC, int, int, gives=0)
def tap_left_unseen(nic: Row, pool: int, frames: int) -> None:
    """Count frames of `pool` that have left by the wire in this visit, where the taps had no room."""
    tap_missed(nic, TAP_TX, pool, frames)
    tap_missed(nic, TAP_SWITCH, pool, frames)
    tap_missed(nic, TAP_RX, WIRE, frames)
