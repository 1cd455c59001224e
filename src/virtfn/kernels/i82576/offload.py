"""Transmit offloads: gather a descriptor chain, insert VLAN tags and checksums, cut large sends into segments.

The device does what the context descriptor says (MACLEN, IPLEN, L4LEN, MSS), it does not look for headers itself.
Nothing a driver writes is trusted: lengths are bounded by the gathered bytes before any is used.

    chain   [context]  data ... data EOP       ->  the queue's area: four bytes of room for a VLAN tag, a private frame
Spec: 82576 datasheet, chapter "Transmit Functionality", sections on checksum offload and TCP segmentation.
"""

from __future__ import annotations

from virtfn.hw.eth import MIN_FRAME
from virtfn.hw.i82576.desc import (
    MAX_FRAME,
    TXC_L4LEN_SHIFT,
    TXC_L4T_SCTP,
    TXC_L4T_TCP,
    TXC_L4T_UDP,
    TXC_MACLEN_SHIFT,
    TXC_MSS_SHIFT,
    TXC_TUCMD_IPV4,
    TXC_VLAN_SHIFT,
    TXD_DEXT,
    TXD_DTYP_CONTEXT,
    TXD_DTYP_DATA,
    TXD_DTYP_MASK,
    TXD_EOP,
    TXD_IC,
    TXD_IDX_SHIFT,
    TXD_IXSM,
    TXD_LEN_MASK,
    TXD_PAYLEN_SHIFT,
    TXD_TSE,
    TXD_TXSM,
    TXD_VLE,
    TXL_CSO_SHIFT,
    TXL_CSS_SHIFT,
    TXL_VLAN_SHIFT,
)  # fmt: skip
from virtfn.kernels._jit import (
    Row,
    apart,
    copy_bytes,
    kernel,
    load16,
    load32,
    load64,
    part,
    store8,
    store16,
    store32,
    store64,
)
from virtfn.kernels.csum import crc32c, fold, sum_bytes, swap16
from virtfn.kernels.i82576.ring import advance, forget_chain, ring_count, window
from virtfn.kernels.i82576.state import GATHER_AREA, GATHER_BYTES, NIC, PLAIN_TAG_AT
from virtfn.kernels.i82576.work import CHAIN_WORK, DESCRIPTOR_WORK, copy_work, sum_work
from virtfn.kernels.segments import number_segment, put_ip_checksum
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import dma_copy_in
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = [
    "CHAIN_BAD",
    "CHAIN_CONTEXT",
    "CHAIN_DONE",
    "CHAIN_FAULT",
    "CHAIN_OPEN",
    "CHAIN_PAGE",
    "TAG_BYTES",
    "area_of",
    "context_of",
    "finish_advanced",
    "gather",
    "is_context",
    "keep_context",
    "segment",
]

CHAIN_DONE, CHAIN_OPEN, CHAIN_BAD, CHAIN_FAULT, CHAIN_CONTEXT, CHAIN_PAGE = range(6)

TAG_BYTES = 4


@part
def area_of(nic: Row, q: int) -> int:
    """Address of the area that transmit queue `q` gathers into."""
    area: int = nic.port.scratch + GATHER_AREA + q * GATHER_BYTES
    return area


@part
def is_context(q1: int) -> bool:
    """Tell whether a descriptor is a context."""
    return q1 & (TXD_DEXT | TXD_DTYP_MASK) == TXD_DEXT | TXD_DTYP_CONTEXT


@part
def keep_context(r: Row, q0: int, q1: int) -> None:
    """Keep a context for the chains that come after it."""
    if q1 >> TXD_IDX_SHIFT & 1:
        r.context1_q0 = q0
        r.context1_q1 = q1
    else:
        r.context0_q0 = q0
        r.context0_q1 = q1


@part
def context_of(r: Row, q1: int) -> tuple[int, int]:
    """Return the context, as two words, that the data descriptor with the second word `q1` goes by."""
    if q1 >> TXD_IDX_SHIFT & 1:
        return r.context1_q0, r.context1_q1
    return r.context0_q0, r.context0_q1


@part
def take_piece(nic: Row, q: int, q0: int, q1: int, number: int) -> int:
    """Take descriptor `number`, from 1, of the chain at the head of transmit queue `q`: a context, or bytes to collect.

    Returns CHAIN_OPEN if the chain goes on, or how it ends here.
    """
    r = nic.tx[q]
    if is_context(q1):
        if number > 1:
            return CHAIN_BAD
        keep_context(r, q0, q1)
        return CHAIN_CONTEXT
    if q1 & TXD_DEXT and q1 & TXD_DTYP_MASK != TXD_DTYP_DATA:
        return CHAIN_BAD
    if number == 1:
        r.first_word = q1
    elif (q1 ^ r.first_word) & TXD_DEXT:
        return CHAIN_BAD
    size = q1 & TXD_LEN_MASK
    if r.gathered + size > GATHER_BYTES - 64:
        return CHAIN_BAD
    iommu = iommu_at(nic.port.iommu)
    if dma_copy_in(iommu, r.rid, q0, size, area_of(nic, q) + TAG_BYTES + r.gathered) != size:
        return CHAIN_PAGE if awaits_page(iommu, r.rid) else CHAIN_FAULT
    r.gathered += size
    if not q1 & TXD_EOP:
        return CHAIN_OPEN
    if not q1 & TXD_DEXT:
        r.first_word = q1  # a legacy chain's last descriptor says what to do with it
    return CHAIN_DONE


@part
def walk_chain(nic: Row, q: int, available: int) -> tuple[int, int]:
    """Go through the chain at the head of transmit queue `q`, on from the last call, as far as its turn goes.

    What makes no sense, or was refused, is skipped to its end. Moves the head. Returns (code, descriptors used).
    """
    r = nic.tx[q]
    begun = used = r.walked
    gathered = r.gathered
    r.head = r.head + used if r.head + used < r.size else r.head + used - r.size
    most = used + max(1, (nic.turn.work_stop - nic.turn.work) // DESCRIPTOR_WORK)  # until this turn is over
    ended = False
    code = CHAIN_OPEN
    while code == CHAIN_OPEN and used < min(available, most):
        at = window(nic, r)
        if at == 0 and r.enabled:
            code = CHAIN_PAGE
            break
        used += 1
        if at == 0:
            code = CHAIN_FAULT
            ended = True
            break
        q1 = load64(at + 8)
        advance(r)
        ended = q1 & TXD_EOP != 0 and not is_context(q1)
        code = take_piece(nic, q, load64(at), q1, used)
        if code == CHAIN_PAGE:
            used -= 1
    if used > begun:
        nic.turn.work += CHAIN_WORK + (used - begun) * DESCRIPTOR_WORK + 2 * copy_work(r.gathered - gathered)
    if (code == CHAIN_BAD or code == CHAIN_FAULT) and not ended:
        begun = used
        used = skip_chain(nic, q, used, available)
        nic.turn.work += ((used if used else available) - begun) * DESCRIPTOR_WORK
        if used == 0:
            code = CHAIN_PAGE
    return code, used


@apart(NIC, int, int, gives=2)
def gather(nic: Row, q: int, pool: int) -> tuple[int, int]:
    """Collect the chain at the head of transmit queue `q` into the queue's area and apply its offloads.

    What was collected is not looked at again: a chain without an end is continued when there is more of it, and a whole
    one stays as it is until it has been sent. Returns (code, descriptors used); CHAIN_DONE: the queue's `chain_*` tell
    the frame. A context descriptor alone is a finished chain without a frame. CHAIN_OPEN and CHAIN_PAGE: to be gathered
    further when its driver has ended it, or when the page that was asked for is there.
    """
    r = nic.tx[q]
    available = ring_count(r)
    if r.walked > available:
        forget_chain(r)
    if r.whole:
        return CHAIN_DONE, r.walked
    saved = r.head
    code, used = walk_chain(nic, q, available)
    r.head = saved
    r.win_hi = 0
    if code == CHAIN_OPEN and used == available and available == r.size - 1:
        code = CHAIN_BAD  # a frame longer than the ring would never end
    if code == CHAIN_DONE and not finish_chain(nic, q, pool):
        code = CHAIN_BAD
    if code == CHAIN_DONE or code == CHAIN_OPEN or (code == CHAIN_PAGE and used):
        r.walked = used
        r.whole = code == CHAIN_DONE
    else:
        forget_chain(r)
    return code, used


@part
def put_whole(r: Row, start: int, length: int, mss: int, header: int) -> None:
    """Note where in its area a queue's frame starts, its bytes, and how to cut it."""
    r.chain_start = start
    r.chain_bytes = length
    r.chain_mss = mss
    r.chain_header = header


@kernel
def skip_chain(nic: Row, q: int, used: int, available: int) -> int:
    """Find the end of a chain that is being dropped; returns its descriptors, 0 if their page has been asked for."""
    r = nic.tx[q]
    while used < available:
        at = window(nic, r)
        if at == 0:
            return 0 if r.enabled else available
        end = load64(at + 8) & TXD_EOP
        used += 1
        advance(r)
        if end:
            break
    return used


@kernel
def put_tag(nic: Row, q: int, pool: int, length: int, insert: bool, tci: int) -> int:
    """Tag the gathered frame as descriptor and port say; returns where in the queue's area it starts now.

    The addresses, and an outer tag behind them, move into the room in front of them; the rest of the frame stays where
    it is.
    """
    p = nic.port
    frame = area_of(nic, q) + TAG_BYTES
    owner = nic.pools[pool]
    if owner.vlan_mode == 1:
        insert = True
        tci = owner.vlan_tag
    elif owner.vlan_mode == 2:
        insert = False
    if not insert or length < 14:
        return TAG_BYTES
    low = load64(frame)
    high = load32(frame + 8)
    outer = load32(frame + 12)
    store64(frame - 4, low)
    store32(frame + 4, high)
    at = frame + 8
    if p.tag_at != PLAIN_TAG_AT and length >= 18 and outer & 0xFFFF == p.tag_kind:
        store32(at, outer)
        at += 4
    store16(at, p.inner_kind)
    store16(at + 2, swap16(tci))
    return 0


@kernel
def pad_frame(nic: Row, frame: int, length: int) -> int:
    """Fill a short frame up with zeros, if the port pads; returns its bytes."""
    if not nic.port.pad or length < 14:
        return length
    for i in range(length, MIN_FRAME):
        store8(frame + i, 0)
    return max(length, MIN_FRAME)


@kernel
def finish_frame(nic: Row, q: int, pool: int, length: int, insert: bool, tci: int) -> bool:
    """Tag and pad a gathered frame that is not segmented."""
    start = put_tag(nic, q, pool, length, insert, tci)
    length = pad_frame(nic, area_of(nic, q) + start, length + TAG_BYTES - start)
    put_whole(nic.tx[q], start, length, 0, 0)
    return True


@kernel
def finish_chain(nic: Row, q: int, pool: int) -> bool:
    """Apply the offloads of a whole chain to the gathered frame; False if they make no sense."""
    r = nic.tx[q]
    if r.first_word & TXD_DEXT:
        return finish_advanced(nic, q, pool, r.first_word, r.gathered)
    return finish_legacy(nic, q, pool, r.first_word, r.gathered)


@kernel
def finish_advanced(nic: Row, q: int, pool: int, first: int, length: int) -> bool:
    """Apply the offloads of an advanced chain, whose context says where its headers are.

    A frame that is too long to be sent gets no checksums: they would be work for nothing.
    """
    c0, c1 = context_of(nic.tx[q], first)
    frame = area_of(nic, q) + TAG_BYTES
    l3 = c0 >> TXC_MACLEN_SHIFT & 0x7F
    l4 = l3 + (c0 & 0x1FF)
    l4_type = c1 >> 11 & 3
    payload = first >> TXD_PAYLEN_SHIFT & 0x3FFFF
    tci = c0 >> TXC_VLAN_SHIFT & 0xFFFF
    if first & TXD_TSE:
        return payload != 0 and finish_large(nic, q, pool, first, length, l3, l4, c1, tci, length - payload)
    if payload != length:
        return False
    if first & TXD_TXSM:
        if l4_type > TXC_L4T_SCTP:
            return False
        field = l4 + (16 if l4_type == TXC_L4T_TCP else 8 if l4_type == TXC_L4T_SCTP else 6)
        if field + (4 if l4_type == TXC_L4T_SCTP else 2) > length:
            return False
        if length <= MAX_FRAME:
            nic.turn.work += sum_work(length - l4, l4_type == TXC_L4T_SCTP)
            put_l4_checksum(frame, l4, length, l4_type)
    if first & TXD_IXSM:
        if l4 > length or l3 + 12 > length or l4 < l3 + 20:
            return False
        put_ip_checksum(frame, l3, l4)
    return finish_frame(nic, q, pool, length, first & TXD_VLE != 0, tci)


@part
def finish_large(
    nic: Row, q: int, pool: int, first: int, length: int, l3: int, l4: int, c1: int, tci: int, header: int
) -> bool:
    """Note what the segments of a large send need: they are cut later, from the gathered frame.

    c1: second word of its context. header: bytes before its payload, which have to be those of its headers.
    """
    r = nic.tx[q]
    mss = c1 >> TXC_MSS_SHIFT & 0xFFFF
    l4_type = c1 >> 11 & 3
    l4_bytes = c1 >> TXC_L4LEN_SHIFT & 0xFF
    if l3 < 14 or l4 < l3 + (20 if c1 & TXC_TUCMD_IPV4 else 40) or header != l4 + l4_bytes:
        return False
    if (l4_type != TXC_L4T_TCP or l4_bytes < 20) and (l4_type != TXC_L4T_UDP or l4_bytes < 8):
        return False
    if mss == 0 or header + mss + TAG_BYTES > MAX_FRAME:
        return False
    start = put_tag(nic, q, pool, length, first & TXD_VLE != 0, tci)
    grown = TAG_BYTES - start
    r.seg_l3 = l3 + grown
    r.seg_l4 = l4 + grown
    r.seg_flags = first & (TXD_IXSM | TXD_TXSM)
    r.seg_kind = l4_type | (0x10 if c1 & TXC_TUCMD_IPV4 else 0)
    put_whole(r, start, length + grown, mss, header + grown)
    return True


@kernel
def put_l4_checksum(frame: int, l4: int, end: int, l4_type: int) -> None:
    """Insert the transport checksum of bytes l4..end-1; TCP and UDP fields hold the pseudo-header's sum."""
    if l4_type == TXC_L4T_SCTP:
        store32(frame + l4 + 8, crc32c(frame + l4, end - l4, 8))
        return
    total = fold(sum_bytes(frame + l4, end - l4)) ^ 0xFFFF
    if l4_type != TXC_L4T_TCP and total == 0:
        total = 0xFFFF
    store16(frame + l4 + (16 if l4_type == TXC_L4T_TCP else 6), total)


@kernel
def finish_legacy(nic: Row, q: int, pool: int, first: int, length: int) -> bool:
    """Apply the offloads of a legacy chain: one checksum from CSS to the end, put at CSO; a VLAN tag.

    False if they make no sense.
    """
    frame = area_of(nic, q) + TAG_BYTES
    if first & TXD_IC:
        start = first >> TXL_CSS_SHIFT & 0xFF
        place = first >> TXL_CSO_SHIFT & 0xFF
        if start >= length or place + 2 > length:
            return False
        if length <= MAX_FRAME:
            nic.turn.work += sum_work(length - start, False)
            store16(frame + place, fold(sum_bytes(frame + start, length - start)) ^ 0xFFFF)
    return finish_frame(nic, q, pool, length, first & TXD_VLE != 0, first >> TXL_VLAN_SHIFT & 0xFFFF)


@part
def kept_flags(nic: Row, first: bool, last: bool) -> int:
    """Tell which TCP flags a segment keeps, as DTXTCPFLG say; the only one keeps what the first or the last would."""
    p = nic.port
    if first:
        kept: int = p.tcp_only if last else p.tcp_first
    else:
        kept = p.tcp_last if last else p.tcp_middle
    return kept


@kernel
def segment(nic: Row, q: int, offset: int, target: int) -> int:
    """Build the segment whose payload starts at `offset` of queue `q`'s gathered frame; returns its bytes.

    Edits what differs from segment to segment: IP length and identification, TCP sequence number and flags, checksums.
    """
    r = nic.tx[q]
    frame = area_of(nic, q) + r.chain_start
    length = r.chain_bytes
    header = r.chain_header
    mss = r.chain_mss
    size = min(mss, length - offset)
    last = offset + size >= length
    number = (offset - header) // mss
    copy_bytes(target, frame, header)
    copy_bytes(target + header, frame + offset, size)
    total = header + size
    l3 = r.seg_l3
    l4 = r.seg_l4
    tcp = r.seg_kind & 3 == TXC_L4T_TCP
    number_segment(target, l3, l4, r.seg_kind & 0x10 != 0, tcp, total, offset - header, number)
    if tcp:
        store16(target + l4 + 12, load16(target + l4 + 12) & kept_flags(nic, number == 0, last))
    nic.turn.work += copy_work(total)
    if r.seg_flags & TXD_TXSM:
        nic.turn.work += sum_work(total - l4, False)
        # The field holds the pseudo-header without the length: add it.
        field = target + l4 + (16 if tcp else 6)
        store16(field, fold(load16(field) + swap16(total - l4)))
        put_l4_checksum(target, l4, total, r.seg_kind & 3)
    if r.seg_flags & TXD_IXSM:
        put_ip_checksum(target, l3, l4)
    return pad_frame(nic, target, total)
