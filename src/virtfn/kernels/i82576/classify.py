"""Classify a received frame once: what it carries, its RSS hash, whether its checksums hold, where its headers end.

Everything but the sum over the payload is read from the frame's head, a private copy.
Spec: 82576 datasheet, sections on packet type, receive checksum offload, RSS and header split.
"""

from __future__ import annotations

from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED, VLAN_LOADED
from virtfn.hw.i82576.desc import (
    RSS_IPV4,
    RSS_IPV6,
    RSS_TCP4,
    RSS_TCP6,
    RSS_UDP4,
    RSS_UDP6,
    RXD_ERR_IPE,
    RXD_ERR_L4E,
    RXD_IPCS,
    RXD_L4CS,
    RXD_PT_IPV4,
    RXD_PT_IPV4EXT,
    RXD_PT_IPV6,
    RXD_PT_IPV6EXT,
    RXD_PT_SCTP,
    RXD_PT_TCP,
    RXD_PT_UDP,
    RXD_UDPCS,
)
from virtfn.kernels._jit import Row, kernel, load8, load16, load32
from virtfn.kernels.csum import fold, sum_bytes, sum_words, swap16, toeplitz

__all__ = ["HEAD_BYTES", "classify", "split_point"]

HEAD_BYTES = 128


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
    if ethertype == IPV4_LOADED:
        if length < start + 20 or load8(head + start) >> 4 != 4:
            return 0, 0
        l4 = start + ((load8(head + start) & 15) << 2)
        total = swap16(load16(head + start + 2))
        protocol = load8(head + start + 9)
        fragment = swap16(load16(head + start + 6)) & 0x3FFF
        if l4 < start + 20 or total < l4 - start or start + total > length:
            return RXD_PT_IPV4, 0
        packet = RXD_PT_IPV4 if l4 == start + 20 else RXD_PT_IPV4 | RXD_PT_IPV4EXT
        pseudo = sum_words(load32(head + start + 12)) + sum_words(load32(head + start + 16))
        if p.rx_ip_checksum:
            status |= RXD_IPCS
            if fold(sum_bytes(head + start, l4 - start)) != 0xFFFF:
                status |= RXD_ERR_IPE
        addresses = start + 12
        address_bytes = 8
        rss = RSS_IPV4
    elif ethertype == IPV6_LOADED:
        if length < start + 40 or load8(head + start) >> 4 != 6:
            return 0, 0
        l4 = start + 40
        total = 40 + swap16(load16(head + start + 4))
        protocol = load8(head + start + 6)
        fragment = 0
        if start + total > length:
            return RXD_PT_IPV6, 0
        packet = RXD_PT_IPV6
        if protocol == 0 or protocol == 43 or protocol == 44 or protocol == 60:
            packet |= RXD_PT_IPV6EXT  # what follows the extension headers is not looked at
        pseudo = sum_bytes(head + start + 8, 32)
        addresses = start + 8
        address_bytes = 32
        rss = RSS_IPV6
    else:
        return 0, 0
    payload = start + total - l4
    covered = payload  # by the transport checksum
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
            covered = swap16(load16(head + l4 + 4))
            checked = load16(head + l4 + 6) != 0 and 8 <= covered <= payload
        elif protocol == 132 and payload >= 12:
            packet |= RXD_PT_SCTP
        if checked and p.rx_l4_checksum and l4 & 1 == 0:
            total_sum = pseudo + swap16(protocol) + swap16(covered) + sum_frame(head, body, l4, l4 + covered)
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
def split_point(frame: int, length: int, room: int, always: bool) -> int:
    """Bytes for the header buffer: the headers of an IP frame if they fit; else, if `always`, as much as fits."""
    ethertype = load16(frame + 12)
    start = 14
    if ethertype == VLAN_LOADED:
        ethertype = load16(frame + 16)
        start = 18
    end = 0
    protocol = 0
    if ethertype == IPV4_LOADED and length >= start + 20 and load8(frame + start) & 15 >= 5:
        end = start + ((load8(frame + start) & 15) << 2)
        if swap16(load16(frame + start + 6)) & 0x3FFF == 0:
            protocol = load8(frame + start + 9)
    elif ethertype == IPV6_LOADED and length >= start + 40:
        end = start + 40
        protocol = load8(frame + start + 6)
    if protocol == 6 and end + 20 <= length:
        end += (load8(frame + end + 12) >> 4) << 2
    elif protocol == 17 and end + 8 <= length:
        end += 8
    if 0 < end <= min(room, length):
        return end
    return min(room, length) if always else 0
