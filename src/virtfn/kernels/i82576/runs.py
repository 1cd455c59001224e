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
from virtfn.kernels._jit import Row, copy_bytes, kernel, load64, store32_release, store64, store64_release
from virtfn.kernels.csum import swap16
from virtfn.kernels.i82576.ring import latch, window, window_end
from virtfn.kernels.i82576.shares import is_scarce
from virtfn.kernels.i82576.state import DROP_DMA_FAULT, LOWEST
from virtfn.kernels.i82576.switch import MAC, find_pools, switch_transmit
from virtfn.kernels.i82576.work import FAULT_WORK, FRAME_WORK, RUN_WORK, copy_work
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate_hot
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["PLAIN", "PLAIN_MASK", "serve_run"]

PLAIN_MASK = TXD_DTYP_MASK | TXD_EOP | TXD_DEXT | TXD_VLE | TXD_TSE | TXD_IXSM | TXD_TXSM
PLAIN = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT
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
def receiver_of(nic: Row, pool: int, word0: int, word1: int) -> int:
    """Pool that all frames with this header go to, and only there; -1 if they need the general path."""
    p = nic.port
    kind = word1 >> 32 & 0xFFFF
    if word0 & 1 or kind == IPV4_LOADED or kind == IPV6_LOADED or kind == swap16(p.vet & 0xFFFF):
        return -1
    source = (word0 >> 48 & 0xFFFF) | (word1 & 0xFFFFFFFF) << 16
    if p.mac_spoof_pools >> pool & 1 and not find_pools(nic.macs, source) >> pool & 1:
        return -1
    pools, wire, _ = switch_transmit(nic, pool, word0 & MAC, -1)
    if wire or pools == 0 or pools & (pools - 1):
        return -1
    target = LOWEST[pools & 0xFF]
    r = nic.rx[target]
    if r.epoch != p.epoch:
        latch(r, p.epoch, True)
    plain = r.enabled and r.size and r.layout == SRRCTL_ADV_ONE
    return target if plain and not is_scarce(nic, target) else -1


@kernel
def settle_run(
    nic: Row, pool: int, target: int, frames: int, size: int, refused: int, refused_size: int, head: int
) -> None:
    """Enter `frames` frames of `size` bytes in all, frame check sequences included, into every counter they concern.

    refused, refused_size: those among them that the receiver's memory did not take.
    """
    if frames == 0:
        return
    p = nic.port
    sender = nic.pools[pool]
    receiver = nic.pools[target]
    c = nic.counters
    sender.gptc += frames
    sender.gotc += size
    sender.gptlbc += frames
    sender.gotlbc += size
    c.hgptc += frames
    c.hgotc += size
    nic.card.forwarded += frames
    frames -= refused
    size -= refused_size
    receiver.gprc += frames
    receiver.gorc += size
    receiver.gprlbc += frames
    receiver.gorlbc += size
    nic.turn.taken += size
    c.rpthc += frames
    c.hgorc += size
    r = nic.rx[target]
    r.head = head
    p.pending |= r.cause
    p.eicr |= r.cause


@kernel
def serve_run(nic: Row, q: int, budget: int) -> tuple[int, bool]:
    """Send frames of transmit queue `q`, up to `budget` and what its turn allows, while they are ordinary.

    Returns (frames, whether any asked for a report).
    """
    if not ordinary(nic, q):
        return 0, False
    iommu = iommu_at(nic.port.iommu)
    t = nic.tx[q]
    pool = t.pool
    rid = t.rid
    head = t.head
    tail = t.tail
    at = window(nic, t)
    if at == 0:
        return 0, False
    end = window_end(t)
    target = -1
    r = nic.rx[0]
    word0 = 0
    word1 = 0
    r_rid = r_head = r_tail = r_end = r_at = limit = 0
    frames = 0
    in_run = size = refused = refused_size = 0
    asked = False
    # Frames and bytes are counted, and their work at the end: what a run does beyond its turn is a debt of its pool.
    begun = 0  # units for what began: runs, and requests that were refused
    sent = 0  # bytes
    room = nic.turn.work_stop - nic.turn.work
    budget = min(budget, room // (2 * FRAME_WORK) + 1)
    while frames < budget and head != tail and begun + copy_work(sent) < room:
        if at >= end:
            t.head = head
            at = window(nic, t)
            if at == 0:
                break
            end = window_end(t)
        q0 = load64(at)
        q1 = load64(at + 8)
        length = q1 & TXD_LEN_MASK
        if q1 & PLAIN_MASK != PLAIN or q1 >> TXD_PAYLEN_SHIFT & 0x3FFFF != length:
            break
        if length < MIN_FRAME or length > MAX_FRAME:
            break
        source, run = translate_hot(iommu, rid, q0, length, 0)
        if run == 0 and awaits_page(iommu, rid):
            break
        if run == 0:
            nic.drops[pool, DROP_DMA_FAULT] += 1
            begun += FAULT_WORK
        elif run != length:
            break
        else:
            first = load64(source)
            second = load64(source + 8)
            if target < 0 or first != word0 or (second ^ word1) & MAC:
                if target >= 0:
                    settle_run(nic, pool, target, in_run, size, refused, refused_size, r_head)
                    in_run = size = refused = refused_size = 0
                target = receiver_of(nic, pool, first, second)
                begun += RUN_WORK
                if target < 0:
                    break
                word0 = first
                word1 = second
                r = nic.rx[target]
                r_rid = r.rid
                r_head = r.head
                r_tail = r.tail
                r_at = r_end = 0
                limit = min(nic.pools[target].max_frame - 4, r.packet_bytes)
            if length > limit or r_head == r_tail:
                break
            if r_at >= r_end:
                r.head = r_head
                r_at = window(nic, r)
                if r_at == 0:
                    break
                r_end = window_end(r)
            place, run = translate_hot(iommu, r_rid, load64(r_at), length, 1)
            if run == length:
                copy_bytes(place, source, length)
                store64(place, first)
                store64(place + 8, second)
            elif run or awaits_page(iommu, r_rid):
                break
            else:
                # A posted write that the IOMMU refuses: the device does not learn of it, and goes on.
                nic.drops[target, DROP_DMA_FAULT] += 1
                refused += 1
                refused_size += length + 4
            store64(r_at, 0)
            store64_release(r_at + 8, _DONE | length << RXD_LEN_SHIFT)
            r_at += 16
            r_head += 1
            if r_head == r.size:
                r_head = 0
                r_end = 0  # what lies behind the ring is not the ring's
            in_run += 1
            size += length + 4
            sent += length
        if q1 & TXD_RS:
            asked = True
            if t.head_wb == 0:
                store32_release(at + 12, q1 >> 32 | 1)
        at += 16
        head += 1
        if head == t.size:
            head = 0
            end = 0
        frames += 1
    nic.turn.work += begun + 2 * FRAME_WORK * frames + copy_work(sent)
    if target >= 0:
        settle_run(nic, pool, target, in_run, size, refused, refused_size, r_head)
    t.head = head
    return frames, asked
