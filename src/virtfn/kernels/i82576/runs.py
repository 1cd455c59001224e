"""Runs: consecutive plain frames from one sender to one local receiver, the common case of a busy switch.

Whatever holds for the first frame of a run holds for the next one with the same addresses and type: sender check,
switching, receive queue. Between them only descriptors, translations and bytes differ. A run ends, and the general path
of `tx.py` takes the next frame, as soon as anything is out of the ordinary; both give the same results.

    descriptor -> source translated -> 16 header bytes held in registers, compared with the run's
               -> receive descriptor -> target translated -> copied, header from the registers -> write-backs

The header that was checked is the header that arrives: what the sender changes meanwhile is payload only.
"""

from __future__ import annotations

from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED, MIN_FRAME
from virtfn.hw.i82576.desc import (
    MAX_FRAME,
    RXD_DD,
    RXD_EOP,
    RXD_LB,
    RXD_LEN_SHIFT,
    SRRCTL_ADV_ONE,
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
from virtfn.kernels._jit import Row, copy_bytes, kernel, load64, part, store32_release, store64, store64_release
from virtfn.kernels.i82576.ring import latch, move_head, next_stretch, note_cause
from virtfn.kernels.i82576.shares import is_scarce
from virtfn.kernels.i82576.state import DROP_DMA_FAULT, LOWEST
from virtfn.kernels.i82576.switch import MAC, find_pools, switch_transmit
from virtfn.kernels.i82576.work import FAULT_WORK, FRAME_WORK, RUN_WORK, copy_work
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate_hot
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["PLAIN", "PLAIN_MASK", "mark_done", "serve_run"]

PLAIN_MASK = TXD_DTYP_MASK | TXD_EOP | TXD_DEXT | TXD_VLE | TXD_TSE | TXD_IXSM | TXD_TXSM
PLAIN = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT
DELIVERED, REFUSED, LEFT = range(3)
_DONE = RXD_DD | RXD_EOP | RXD_LB


@kernel
def ordinary(nic: Row, q: int) -> bool:
    """Tell whether nothing of port and sender needs a look at every frame."""
    p = nic.port
    owner = nic.pools[nic.tx[q].pool]
    return (
        p.vmdq != 0
        and p.loopback != 0
        and p.capture == 0
        and p.mirror == 0
        and p.stalled == 0
        and owner.vlan_mode != 1
        and owner.ps_per_byte == 0
    )


@kernel
def receiver_of(nic: Row, pool: int, word0: int, word1: int) -> tuple[int, int]:
    """Pool that all frames with this header go to, and only there; and how long they may be.

    Pool -1: they need the general path.
    """
    p = nic.port
    kind = word1 >> 32 & 0xFFFF
    if word0 & 1 or kind == IPV4_LOADED or kind == IPV6_LOADED or kind == p.tag_kind:
        return -1, 0
    source = (word0 >> 48 & 0xFFFF) | (word1 & 0xFFFFFFFF) << 16
    if p.mac_spoof_pools >> pool & 1 and not find_pools(nic.macs, source) >> pool & 1:
        return -1, 0
    pools, wire, _ = switch_transmit(nic, pool, word0 & MAC, -1)
    if wire or pools == 0 or pools & (pools - 1):
        return -1, 0
    target = LOWEST[pools & 0xFF]
    r = nic.rx[target]
    if r.epoch != p.epoch:
        latch(r, p.epoch, True)
    if not r.enabled or r.size == 0 or r.layout != SRRCTL_ADV_ONE or is_scarce(nic, target):
        return -1, 0
    return target, min(nic.pools[target].max_frame - 4, r.packet_bytes)


@kernel
def settle_run(nic: Row, pool: int, target: int, place: int, frames: int, size: int) -> None:
    """Enter `frames` frames of `size` bytes in all, frame check sequences included, into every counter they concern.

    place: the receive descriptor behind those that are used up; 0 if the head says which it is.
    """
    r = nic.rx[target]
    move_head(r, place)
    if frames == 0:
        return
    settle_sent(nic, pool, frames, size)
    receiver = nic.pools[target]
    c = nic.counters
    receiver.gprc += frames
    receiver.gorc += size
    receiver.gprlbc += frames
    receiver.gorlbc += size
    nic.turn.taken += size
    c.rpthc += frames
    c.hgorc += size
    note_cause(nic, r)


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
def find_plain(nic: Row, iommu: Row, t: Row, q0: int, q1: int) -> tuple[int, int]:
    """Find the frame of a descriptor, `q0` and `q1`, of transmit queue `t`. Returns (length, address).

    Length 0: it is not plain, or not there yet, and the general path takes it. Address 0: it was refused, and dropped.
    """
    length = q1 & TXD_LEN_MASK
    if q1 & PLAIN_MASK != PLAIN or q1 >> TXD_PAYLEN_SHIFT & 0x3FFFF != length:
        return 0, 0
    if length < MIN_FRAME or length > MAX_FRAME:
        return 0, 0
    source, run = translate_hot(iommu, t.rid, q0, length, 0)
    if run == length:
        return length, source
    if run or awaits_page(iommu, t.rid):
        return 0, 0
    nic.drops[t.pool, DROP_DMA_FAULT] += 1
    nic.turn.work += FAULT_WORK
    return length, 0


@part
def deliver(
    nic: Row, iommu: Row, pool: int, target: int, place: int, stop: int, source: int, length: int, limit: int,
    word0: int, word1: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Copy a frame of `pool`, whose first 16 bytes are `word0` and `word1`, to the next descriptor of pool `target`.

    place, stop: the receive descriptors at hand. limit: bytes that the receiver takes. Returns (code, place, stop). The
    code is DELIVERED, and to be counted; REFUSED, a posted write that the IOMMU refuses: the device does not learn of
    it, and goes on; or LEFT to the general path.
    """
    r = nic.rx[target]
    if length > limit:
        return LEFT, place, stop
    if place == stop:
        place, stop = next_stretch(nic, r, place)
        if place == 0:
            return LEFT, place, stop
    code = DELIVERED
    hpa, run = translate_hot(iommu, r.rid, load64(place), length, 1)
    if run == length:
        copy_bytes(hpa, source, length)
        store64(hpa, word0)
        store64(hpa + 8, word1)
    elif run or awaits_page(iommu, r.rid):
        return LEFT, place, stop
    else:
        code = REFUSED
        nic.drops[target, DROP_DMA_FAULT] += 1
        settle_sent(nic, pool, 1, length + 4)
        note_cause(nic, r)
    store64(place, 0)
    store64_release(place + 8, _DONE | length << RXD_LEN_SHIFT)
    return code, place + 16, stop


@part
def mark_done(t: Row, at: int, q1: int) -> bool:
    """Mark a descriptor of transmit queue `t` as done if it asks for a report; tell whether it does."""
    asked = q1 & TXD_RS != 0
    if asked and t.head_wb == 0:
        store32_release(at + 12, q1 >> 32 | 1)
    return asked


@kernel
def serve_run(nic: Row, q: int, budget: int) -> tuple[int, bool]:
    """Send frames of transmit queue `q`, up to `budget` and what its turn allows, while they are ordinary.

    Returns (frames, whether any asked for a report).
    """
    if not ordinary(nic, q):
        return 0, False
    iommu = iommu_at(nic.port.iommu)
    t = nic.tx[q]
    target, word0, word1, limit = -1, 0, 0, 0
    at = end = place = stop = 0
    frames = sent = in_run = size = 0
    asked = False
    # Frames and bytes are counted, and their work at the end: what a run does beyond its turn is a debt of its pool.
    turn = nic.turn
    budget = min(budget, (turn.work_stop - turn.work) // (2 * FRAME_WORK) + 1)
    while frames < budget and turn.work + copy_work(sent) < turn.work_stop:
        if at == end:
            at, end = next_stretch(nic, t, at)
            if at == 0:
                break
        q1 = load64(at + 8)
        length, source = find_plain(nic, iommu, t, load64(at), q1)
        if length == 0:
            break
        if source:
            first = load64(source)
            second = load64(source + 8)
            if target < 0 or first != word0 or (second ^ word1) & MAC:
                settle_run(nic, t.pool, target, place, in_run, size)
                place = stop = in_run = size = 0
                target, limit = receiver_of(nic, t.pool, first, second)
                turn.work += RUN_WORK
                if target < 0:
                    break
                word0, word1 = first, second
            code, place, stop = deliver(nic, iommu, t.pool, target, place, stop, source, length, limit, first, second)
            if code == LEFT:
                break
            if code == DELIVERED:
                in_run += 1
                size += length + 4
            sent += length
        asked = mark_done(t, at, q1) or asked
        at += 16
        frames += 1
    turn.work += 2 * FRAME_WORK * frames + copy_work(sent)
    move_head(t, at)
    settle_run(nic, t.pool, target, place, in_run, size)
    return frames, asked
