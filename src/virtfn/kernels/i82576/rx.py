"""Receive: give a classified frame to a pool's queue: find a descriptor, DMA, write back.

A frame is (head, body, length): its first HEAD_BYTES bytes are read at `head`, a private copy, the rest at `body`.
Decisions are made on private bytes only, so a sender that changes its buffer meanwhile changes nothing but payload.

    write-back   Q0 | hash or 0 | SPH, header length | packet type | RSS type |
                 Q1 | VLAN | length | errors, status (DD last, with release ordering) |
"""

from __future__ import annotations

from virtfn.hw.eth import BROADCAST
from virtfn.hw.i82576.desc import (
    RXD_DD,
    RXD_EOP,
    RXD_HDRLEN_SHIFT,
    RXD_IPCS,
    RXD_L4CS,
    RXD_LEN_SHIFT,
    RXD_SPH,
    RXD_UDPCS,
    RXD_VLAN_SHIFT,
    RXD_VP,
    SRRCTL_ADV_ONE,
    SRRCTL_LEGACY,
    SRRCTL_SPLIT_ALWAYS,
)
from virtfn.kernels._jit import Row, apart, copy_bytes, inlined, kernel, load8, load64, part, store64, store64_release
from virtfn.kernels.i82576.classify import HEAD_BYTES, split_point
from virtfn.kernels.i82576.ring import advance, latch, note_cause, ring_count, window, window_hot
from virtfn.kernels.i82576.seen import copy_frame, drop
from virtfn.kernels.i82576.state import (
    DROP_DMA_FAULT,
    DROP_NO_DESCRIPTOR,
    DROP_OVERSIZE,
    DROP_PAGE_ABSENT,
    DROP_QUEUE_DISABLED,
    NIC,
    SPLIT_AREA,
)
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import dma_copy_out, translate, translate_hot
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = [
    "RX_DONE",
    "RX_DROPPED",
    "RX_OVERSIZE",
    "RX_STALL",
    "choose_queue",
    "receive",
    "strip_tag",
    "strips",
]

RX_DONE, RX_DROPPED, RX_STALL, RX_OVERSIZE = range(4)


@kernel
def write_frame(nic: Row, rid: int, iova: int, head: int, body: int, length: int) -> bool:
    """DMA a frame to `iova`; False if the IOMMU refused, and then no byte was written."""
    hpa, run = translate_hot(iommu_at(nic.port.iommu), rid, iova, length, 1)
    if run == length:
        copy_frame(hpa, head, body, length)
        return True
    if run == 0:
        return False
    target = nic.port.scratch + SPLIT_AREA
    copy_frame(target, head, body, length)
    return dma_copy_out(iommu_at(nic.port.iommu), rid, iova, length, target) == length


@inlined
def complete(nic: Row, q: int, at: int, q0: int, q1: int) -> None:
    """Write a receive descriptor back and move the head; DD becomes visible last."""
    r = nic.rx[q]
    store64(at, q0)
    store64_release(at + 8, q1)
    advance(r)


@inlined
def choose_queue(nic: Row, pool: int, q0: int) -> int:
    """Queue of a pool, by the RSS hash in `q0` where that is on."""
    p = nic.port
    if p.vmdq:
        if p.rss and nic.pools[pool].rsse and q0 & 0xF:
            return pool + 8 * (int(nic.reta[q0 >> 32 & 0x7F]) & 1)
        return pool
    if p.rss and q0 & 0xF:
        return int(nic.reta[q0 >> 32 & 0x7F]) & 0xF
    return 0


@part
def receive_whole(
    nic: Row, pool: int, q: int, head: int, body: int, length: int, strip: bool, tci: int, q0: int, status: int
) -> int:
    """Receive into one descriptor in the advanced layout. Returns what `receive` returns."""
    r = nic.rx[q]
    at = window_hot(nic, r)
    if at == 0 and r.enabled:
        return refuse(nic, pool, q, DROP_PAGE_ABSENT)
    if at == 0:
        drop(nic, pool, DROP_DMA_FAULT)
        r.refused = 0
        return RX_DROPPED
    if strip:
        good = write_stripped(nic, r.rid, load64(at), head, body, length)
        length -= 4
    else:
        good = write_frame(nic, r.rid, load64(at), head, body, length)
    if not good and awaits_page(iommu_at(nic.port.iommu), r.rid):
        return refuse(nic, pool, q, DROP_PAGE_ABSENT)
    complete(nic, q, at, q0, status | RXD_DD | RXD_EOP | length << RXD_LEN_SHIFT | tci << RXD_VLAN_SHIFT)
    if good:
        return RX_DONE
    drop(nic, pool, DROP_DMA_FAULT)
    note_cause(nic, r)
    return RX_DROPPED


@kernel
def receive(
    nic: Row, pool: int, head: int, body: int, length: int, tci: int, replicated: bool, q0: int, status: int
) -> int:
    """Give a frame to one pool. tci: its VLAN tag, in the frame at `tag_at`, or -1.

    Returns RX_DONE, RX_DROPPED or RX_OVERSIZE (counted by reason), or RX_STALL: no descriptor, and the queue must not
    drop.
    """
    p = nic.port
    owner = nic.pools[pool]
    if tci < 0:
        limit = owner.max_frame if p.vmdq else p.max_frame
    else:
        limit = owner.max_tagged if p.vmdq else p.max_tagged
    if length + 4 > limit:
        drop(nic, pool, DROP_OVERSIZE)
        return RX_OVERSIZE
    q = choose_queue(nic, pool, q0)
    r = nic.rx[q]
    if r.epoch != p.epoch:
        latch(r, p.epoch, True)
    if not r.enabled or r.size == 0:
        drop(nic, pool, DROP_DMA_FAULT if r.refused else DROP_QUEUE_DISABLED)
        r.refused = 0
        return RX_DROPPED
    strip = strips(nic, pool, tci, replicated)
    size = length - 4 if strip else length
    if not p.rss_in_descriptor:
        q0 &= 0xFFFFFFFF
    if strip:
        status |= RXD_VP
    else:
        tci = 0
    if r.head == r.tail:
        return refuse(nic, pool, q, DROP_NO_DESCRIPTOR)
    if r.layout == SRRCTL_ADV_ONE and size <= r.packet_bytes:
        code = receive_whole(nic, pool, q, head, body, length, strip, tci, q0, status)
    else:
        code = receive_scattered(nic, pool, q, head, body, length, strip, tci, q0, status)
    if code != RX_DONE:
        return code
    note_cause(nic, r)
    owner.gprc += 1
    owner.gorc += length + 4
    if load8(head) & 1:
        owner.mprc += 1
        if load64(head) & BROADCAST == BROADCAST:
            owner.bprc += 1
    return RX_DONE


@part
def strips(nic: Row, pool: int, tci: int, replicated: bool) -> bool:
    """Tell whether a pool gets a frame without its tag."""
    return tci >= 0 and (nic.port.strip_replicated if replicated else nic.pools[pool].strip) != 0


@kernel
def refuse(nic: Row, pool: int, q: int, why: int) -> int:
    """There are too few descriptors, or pages: drop, or hold the line up if neither DROP_EN nor QDE lets it drop."""
    r = nic.rx[q]
    nic.scarce[pool] = nic.port.epoch
    nic.turn.refused = 1
    if not r.drop_enable and not nic.port.drop_queues >> q & 1:
        return RX_STALL
    r.drops += 1
    nic.counters.rnbc += 1
    drop(nic, pool, why)
    return RX_DROPPED


@kernel
def write_stripped(nic: Row, rid: int, iova: int, head: int, body: int, length: int) -> bool:
    """DMA a frame without its VLAN tag; an outer one stays."""
    target = nic.port.scratch + SPLIT_AREA
    strip_tag(nic, target, head, body, length)
    return dma_copy_out(iommu_at(nic.port.iommu), rid, iova, length - 4, target) == length - 4


@kernel
def strip_tag(nic: Row, target: int, head: int, body: int, length: int) -> None:
    """Copy a frame to private memory, leaving out its VLAN tag."""
    at = nic.port.tag_at
    behind = at + 4
    copy_bytes(target, head, at)
    if length <= HEAD_BYTES:
        copy_bytes(target + at, head + behind, length - behind)
    else:
        copy_bytes(target + at, head + behind, HEAD_BYTES - behind)
        copy_bytes(target + HEAD_BYTES - 4, body + HEAD_BYTES, length - HEAD_BYTES)


@apart(NIC, int, int, int, int, int, int, int, int, int, gives=1)
def receive_scattered(
    nic: Row, pool: int, q: int, head: int, body: int, length: int, strip: bool, tci: int, q0: int, status: int
) -> int:
    """Receive into several descriptors, with header split, or in the legacy layout: all of a frame or nothing.

    A frame that the whole ring could not hold is dropped: to wait for room would be to wait for ever.
    """
    r = nic.rx[q]
    frame = nic.port.scratch + SPLIT_AREA
    if strip:
        strip_tag(nic, frame, head, body, length)
        length -= 4
    else:
        copy_frame(frame, head, body, length)
    split = 0
    if r.layout >= 2 and r.header_bytes > 0:
        split = split_point(nic, frame, length, r.header_bytes, r.layout == SRRCTL_SPLIT_ALWAYS)
    rest = length - split
    needed = max(1, (rest + r.packet_bytes - 1) // r.packet_bytes) if r.packet_bytes else r.size
    if needed >= r.size:
        drop(nic, pool, DROP_OVERSIZE)
        return RX_DROPPED
    if needed > ring_count(r):
        return refuse(nic, pool, q, DROP_NO_DESCRIPTOR)
    if iommu_at(nic.port.iommu).contexts[r.rid].device_tlb and not pages_present(nic, q, needed, length, split):
        return refuse(nic, pool, q, DROP_PAGE_ABSENT)
    return write_pieces(nic, pool, q, needed, frame, length, split, tci, q0, status)


@part
def write_pieces(
    nic: Row, pool: int, q: int, needed: int, frame: int, length: int, split: int, tci: int, q0: int, status: int
) -> int:
    """Write a frame to the next `needed` descriptors, its first `split` bytes to the first one's header buffer."""
    r = nic.rx[q]
    iommu = iommu_at(nic.port.iommu)
    good = True
    done = split
    for i in range(needed):
        at = window(nic, r)
        if at == 0:
            drop(nic, pool, DROP_DMA_FAULT)
            r.refused = 0
            return RX_DROPPED
        packet = load64(at)
        header = load64(at + 8)
        word0 = q0
        if split and i == 0:
            good = dma_copy_out(iommu, r.rid, header, split, frame) == split and good
            word0 |= split << RXD_HDRLEN_SHIFT | RXD_SPH
        size = min(r.packet_bytes, length - done)
        if size > 0:
            good = dma_copy_out(iommu, r.rid, packet, size, frame + done) == size and good
        done += size
        last = i == needed - 1
        word1 = RXD_DD | (RXD_EOP if last else 0)
        if r.layout == SRRCTL_LEGACY:
            word1 |= status & (RXD_VP | RXD_UDPCS | RXD_L4CS | RXD_IPCS) | (status >> 24 & 0xFF) << 8
            complete(nic, q, at, packet, legacy_word(size, word1, tci))
        else:
            word1 |= status | size << RXD_LEN_SHIFT | tci << RXD_VLAN_SHIFT
            complete(nic, q, at, word0, word1)
    if not good:
        drop(nic, pool, DROP_DMA_FAULT)
        note_cause(nic, r)
        return RX_DROPPED
    return RX_DONE


@kernel
def pages_present(nic: Row, q: int, needed: int, length: int, split: int) -> bool:
    """Translate all that a frame in `needed` descriptors will write; False if a page of it has been asked for."""
    iommu = iommu_at(nic.port.iommu)
    r = nic.rx[q]
    saved = r.head
    done = split
    present = True
    for i in range(needed):
        at = window(nic, r)
        if at == 0:
            present = r.enabled == 0
            break
        size = min(r.packet_bytes, length - done)
        if split and i == 0:
            present = reachable(iommu, r.rid, load64(at + 8), split)
        present = present and reachable(iommu, r.rid, load64(at), size)
        if not present:
            break
        done += size
        advance(r)
    r.head = saved
    return present


@kernel
def reachable(iommu: Row, rid: int, iova: int, nbytes: int) -> bool:
    """Tell whether nothing of `nbytes` at `iova` waits for a page; what is refused for good does not wait."""
    done = 0
    while done < nbytes:
        _, run = translate(iommu, rid, iova + done, nbytes - done, 1)
        if run == 0:
            return not awaits_page(iommu, rid)
        done += run
    return True


@kernel
def legacy_word(size: int, status: int, tci: int) -> int:
    """Second word of a legacy write-back: length, status, errors, VLAN."""
    return size | (status & 0xFFFF) << 32 | tci << 48
