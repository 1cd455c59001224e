"""Receive: classify a frame once, then give it to a pool's queue: find a descriptor, DMA, write back.

A frame is (head, body, length): its first HEAD_BYTES bytes are read at `head`, a private copy, the rest at `body`.
Decisions are made on private bytes only, so a sender that changes its buffer meanwhile changes nothing but payload.

    write-back   Q0 | hash or 0 | SPH, header length | packet type | RSS type |
                 Q1 | VLAN | length | errors, status (DD last, with release ordering) |
"""

from __future__ import annotations

from virtfn.hw.i82576.desc import (
    RSS_IPV4,
    RSS_IPV6,
    RSS_TCP4,
    RSS_TCP6,
    RSS_UDP4,
    RSS_UDP6,
    RXD_DD,
    RXD_EOP,
    RXD_ERR_IPE,
    RXD_ERR_L4E,
    RXD_HDRLEN_SHIFT,
    RXD_IPCS,
    RXD_L4CS,
    RXD_LEN_SHIFT,
    RXD_PT_IPV4,
    RXD_PT_IPV6,
    RXD_PT_SCTP,
    RXD_PT_TCP,
    RXD_PT_UDP,
    RXD_SPH,
    RXD_UDPCS,
    RXD_VLAN_SHIFT,
    RXD_VP,
    SRRCTL_ADV_ONE,
    SRRCTL_LEGACY,
    SRRCTL_SPLIT_ALWAYS,
)  # fmt: skip
from virtfn.kernels._jit import (
    Row,
    copy_bytes,
    inlined,
    kernel,
    load8,
    load16,
    load32,
    load64,
    store64,
    store64_release,
)
from virtfn.kernels.csum import fold, sum_bytes, sum_words, swap16, toeplitz
from virtfn.kernels.dma import dma_copy_out, iommu_at, translate_hot
from virtfn.kernels.ring import latch, ring_count, window, window_hot
from virtfn.kernels.state import (
    CAPTURE_BYTES,
    CAPTURE_SLOTS,
    DROP_DMA_FAULT,
    DROP_NO_DESCRIPTOR,
    DROP_OVERSIZE,
    DROP_QUEUE_DISABLED,
    SPLIT_AREA,
    WIRE,
)

__all__ = ["HEAD_BYTES", "RX_DONE", "RX_DROPPED", "RX_STALL", "capture_frame", "capture_room", "classify", "receive"]

HEAD_BYTES = 128
RX_DONE, RX_DROPPED, RX_STALL = range(3)


@kernel
def sum_frame(head: int, body: int, start: int, end: int) -> int:
    """Add bytes start..end-1 of a frame as 16-bit words; `start` is even or the whole range is in the head."""
    if end <= HEAD_BYTES:
        return sum_bytes(head + start, end - start)
    return sum_bytes(head + start, HEAD_BYTES - start) + sum_bytes(body + HEAD_BYTES, end - HEAD_BYTES)


@kernel
def classify(nic: Row, head: int, body: int, length: int, start: int) -> tuple[int, int]:
    """Look into an IP frame whose network header begins at `start`: packet type, RSS hash, checksum verdicts.

    Returns (Q0, status and errors) to merge into a write-back; (0, 0) for anything but IP.
    """
    p = nic.port
    ethertype = load16(head + start - 2)
    packet = 0
    status = 0
    rss = 0
    digest = 0
    if ethertype == 0x0008:
        if length < start + 20 or load8(head + start) >> 4 != 4:
            return 0, 0
        l4 = start + ((load8(head + start) & 15) << 2)
        total = swap16(load16(head + start + 2))
        protocol = load8(head + start + 9)
        fragment = swap16(load16(head + start + 6)) & 0x3FFF
        if l4 < start + 20 or total < l4 - start or start + total > length:
            return RXD_PT_IPV4, 0
        packet = RXD_PT_IPV4
        pseudo = sum_words(load32(head + start + 12)) + sum_words(load32(head + start + 16))
        if p.rx_ip_checksum:
            status |= RXD_IPCS
            if fold(sum_bytes(head + start, l4 - start)) != 0xFFFF:
                status |= RXD_ERR_IPE
        addresses = start + 12
        address_bytes = 8
        rss = RSS_IPV4
    elif ethertype == 0xDD86:
        if length < start + 40 or load8(head + start) >> 4 != 6:
            return 0, 0
        l4 = start + 40
        total = 40 + swap16(load16(head + start + 4))
        protocol = load8(head + start + 6)
        fragment = 0
        if start + total > length:
            return RXD_PT_IPV6, 0
        packet = RXD_PT_IPV6
        pseudo = sum_bytes(head + start + 8, 32)
        addresses = start + 8
        address_bytes = 32
        rss = RSS_IPV6
    else:
        return 0, 0
    payload = start + total - l4
    if fragment == 0:
        ports = False
        checked = False
        if protocol == 6 and payload >= 20:
            packet |= RXD_PT_TCP
            ports = p.rss_fields & (1 if address_bytes == 8 else 0x20) != 0
            if ports:
                rss = RSS_TCP4 if address_bytes == 8 else RSS_TCP6
            checked = True
        elif protocol == 17 and payload >= 8:
            packet |= RXD_PT_UDP
            ports = p.rss_fields & (0x40 if address_bytes == 8 else 0x80) != 0
            if ports:
                rss = RSS_UDP4 if address_bytes == 8 else RSS_UDP6
            checked = load16(head + l4 + 6) != 0
        elif protocol == 132 and payload >= 12:
            packet |= RXD_PT_SCTP
        if checked and p.rx_l4_checksum and l4 & 1 == 0:
            total_sum = pseudo + swap16(protocol) + swap16(payload) + sum_frame(head, body, l4, l4 + payload)
            status |= RXD_L4CS
            if protocol == 17:
                status |= RXD_UDPCS
            if fold(total_sum) != 0xFFFF:
                status |= RXD_ERR_L4E
        if p.rss and ports:
            digest = toeplitz(nic.rss_table, head + l4, 4, address_bytes)
    if p.rss:
        if (rss == RSS_IPV4 and not p.rss_fields & 2) or (rss == RSS_IPV6 and not p.rss_fields & 0x10):
            return packet, status
        digest ^= toeplitz(nic.rss_table, head + addresses, address_bytes, 0)
        return packet | rss | digest << 32, status
    return packet, status


@kernel
def capture_room(nic: Row, length: int) -> bool:
    """Tell whether the capture buffer takes one more frame at every interface."""
    p = nic.port
    return p.capture_head + WIRE + 2 <= CAPTURE_SLOTS and p.capture_bytes + (WIRE + 2) * length <= CAPTURE_BYTES


@kernel
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
    r.head = r.head + 1 if r.head + 1 < r.size else 0


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


@kernel
def receive(
    nic: Row, pool: int, head: int, body: int, length: int, tci: int, replicated: bool, q0: int, status: int
) -> int:
    """Give a frame to one pool. tci: its VLAN tag, in the frame at byte 12, or -1.

    Returns RX_DONE, RX_DROPPED (counted by reason), or RX_STALL: no descriptor, and the queue must not drop.
    """
    p = nic.port
    owner = nic.pools[pool]
    limit = owner.max_frame if p.vmdq else p.max_frame
    if length + 4 > limit + (4 if tci >= 0 and limit <= 1522 else 0):
        nic.drops[pool, DROP_OVERSIZE] += 1
        nic.counters.roc += 1
        return RX_DROPPED
    q = choose_queue(nic, pool, q0)
    r = nic.rx[q]
    if r.epoch != p.epoch:
        latch(r, p.epoch, True)
    if not r.enabled or r.size == 0:
        nic.drops[pool, DROP_QUEUE_DISABLED] += 1
        return RX_DROPPED
    strip = tci >= 0 and (p.strip_replicated if replicated else owner.strip)
    size = length - 4 if strip else length
    if not p.rss_in_descriptor:
        q0 &= 0xFFFFFFFF
    if strip:
        status |= RXD_VP
    if r.head == r.tail:
        return refuse(nic, pool, q)
    if r.layout == SRRCTL_ADV_ONE and size <= r.packet_bytes:
        at = window_hot(nic, r)
        if at == 0:
            nic.drops[pool, DROP_DMA_FAULT] += 1
            return RX_DROPPED
        if not strip:
            good = write_frame(nic, r.rid, load64(at), head, body, length)
            tci = 0
        else:
            good = write_stripped(nic, r.rid, load64(at), head, body, length)
        complete(nic, q, at, q0, status | RXD_DD | RXD_EOP | size << RXD_LEN_SHIFT | tci << RXD_VLAN_SHIFT)
        if not good:
            nic.drops[pool, DROP_DMA_FAULT] += 1
    else:
        if not strip:
            tci = 0
        code = receive_scattered(nic, pool, q, head, body, length, strip, tci, q0, status)
        if code != RX_DONE:
            return code
        good = True
    p.pending |= r.cause
    p.eicr |= r.cause
    if not good:
        return RX_DROPPED
    owner.gprc += 1
    owner.gorc += length + 4
    if load8(head) & 1:
        owner.mprc += 1
    return RX_DONE


@kernel
def refuse(nic: Row, pool: int, q: int) -> int:
    """There are too few descriptors: drop, or hold the line up if neither DROP_EN nor QDE lets the queue drop."""
    r = nic.rx[q]
    if not r.drop_enable and not nic.port.drop_queues >> q & 1:
        return RX_STALL
    r.drops += 1
    nic.counters.rnbc += 1
    nic.drops[pool, DROP_NO_DESCRIPTOR] += 1
    return RX_DROPPED


@kernel
def write_stripped(nic: Row, rid: int, iova: int, head: int, body: int, length: int) -> bool:
    """DMA a frame without the VLAN tag at byte 12."""
    target = nic.port.scratch + SPLIT_AREA
    strip_tag(target, head, body, length)
    return dma_copy_out(iommu_at(nic.port.iommu), rid, iova, length - 4, target) == length - 4


@kernel
def strip_tag(target: int, head: int, body: int, length: int) -> None:
    """Copy a frame to private memory, leaving out bytes 12..15."""
    copy_bytes(target, head, 12)
    if length <= HEAD_BYTES:
        copy_bytes(target + 12, head + 16, length - 16)
    else:
        copy_bytes(target + 12, head + 16, HEAD_BYTES - 16)
        copy_bytes(target + HEAD_BYTES - 4, body + HEAD_BYTES, length - HEAD_BYTES)


@kernel
def receive_scattered(
    nic: Row, pool: int, q: int, head: int, body: int, length: int, strip: bool, tci: int, q0: int, status: int
) -> int:
    """Receive into several descriptors, with header split, or in the legacy layout: all of a frame or nothing."""
    r = nic.rx[q]
    frame = nic.port.scratch + SPLIT_AREA
    if strip:
        strip_tag(frame, head, body, length)
        length -= 4
    else:
        copy_frame(frame, head, body, length)
    split = 0
    if r.layout >= 2 and r.header_bytes > 0:
        split = split_point(frame, length, r.header_bytes, r.layout == SRRCTL_SPLIT_ALWAYS)
    if r.packet_bytes == 0:
        nic.drops[pool, DROP_OVERSIZE] += 1
        return RX_DROPPED
    rest = length - split
    needed = max(1, (rest + r.packet_bytes - 1) // r.packet_bytes)
    if needed > ring_count(r):
        return refuse(nic, pool, q)
    good = True
    done = split
    for i in range(needed):
        at = window(nic, r)
        if at == 0:
            nic.drops[pool, DROP_DMA_FAULT] += 1
            return RX_DROPPED
        packet = load64(at)
        header = load64(at + 8)
        word0 = q0
        if split and i == 0:
            good = dma_copy_out(iommu_at(nic.port.iommu), r.rid, header, split, frame) == split and good
            word0 |= split << RXD_HDRLEN_SHIFT | RXD_SPH
        size = min(r.packet_bytes, length - done)
        if size > 0:
            good = dma_copy_out(iommu_at(nic.port.iommu), r.rid, packet, size, frame + done) == size and good
        done += size
        last = i == needed - 1
        word1 = RXD_DD | (RXD_EOP if last else 0)
        if r.layout == SRRCTL_LEGACY:
            word1 |= status & (RXD_VP | RXD_IPCS | RXD_L4CS) | (status >> 24 & 0xFF) << 8
            complete(nic, q, at, packet, legacy_word(size, word1, tci))
        else:
            word1 |= status | size << RXD_LEN_SHIFT | tci << RXD_VLAN_SHIFT
            complete(nic, q, at, word0, word1)
    if not good:
        nic.drops[pool, DROP_DMA_FAULT] += 1
        return RX_DROPPED
    return RX_DONE


@kernel
def legacy_word(size: int, status: int, tci: int) -> int:
    """Second word of a legacy write-back: length, status, errors, VLAN."""
    return size | (status & 0xFFFF) << 32 | tci << 48


@kernel
def split_point(frame: int, length: int, room: int, always: bool) -> int:
    """Bytes for the header buffer: the headers of an IP frame if they fit; else, if `always`, as much as fits."""
    ethertype = load16(frame + 12)
    start = 14
    if ethertype == 0x0081:
        ethertype = load16(frame + 16)
        start = 18
    end = 0
    if ethertype == 0x0008 and length >= start + 20:
        end = start + ((load8(frame + start) & 15) << 2)
        protocol = load8(frame + start + 9)
    elif ethertype == 0xDD86 and length >= start + 40:
        end = start + 40
        protocol = load8(frame + start + 6)
    if end and end + 20 <= length:
        if protocol == 6:
            end += (load8(frame + end + 12) >> 4) << 2
        elif protocol == 17:
            end += 8
    if 0 < end <= min(room, length):
        return end
    return min(room, length) if always else 0
