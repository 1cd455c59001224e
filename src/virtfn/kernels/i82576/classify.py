"""Classify a received frame once: what it carries, its RSS hash, whether its checksums hold, where its headers end.

Everything but the sum over the payload is read from the frame's head, a private copy.
Spec: 82576 datasheet, sections on packet type, receive checksum offload, RSS and header split.
"""

from __future__ import annotations

from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED
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
from virtfn.kernels._jit import Row, apart, kernel, load8, load16, part
from virtfn.kernels.csum import adds_up, sum_bytes, sum_words, swap16, toeplitz
from virtfn.kernels.i82576.state import NIC, PLAIN_TAG_AT

__all__ = [
    "HEAD_BYTES",
    "classify",
    "hash_kind",
    "is_summed",
    "judge_header",
    "judge_payload",
    "look_at_ip",
    "look_at_payload",
    "split_point",
    "sum_pseudo",
]

HEAD_BYTES = 128


@part
def look_at_ipv4(head: int, length: int, start: int) -> tuple[int, int, int, int]:
    """Read an IPv4 header. Returns (packet type, protocol, where the payload begins, and ends).

    Packet type 0: it is none. Payload at 0: its lengths make no sense. Protocol -1: a fragment, not looked into.
    """
    if length < start + 20 or load8(head + start) >> 4 != 4:
        return 0, -1, 0, 0
    l4 = start + ((load8(head + start) & 15) << 2)
    end = start + swap16(load16(head + start + 2))
    if l4 < start + 20 or end < l4 or end > length:
        return RXD_PT_IPV4, -1, 0, 0
    packet = RXD_PT_IPV4 if l4 == start + 20 else RXD_PT_IPV4 | RXD_PT_IPV4EXT
    fragment = swap16(load16(head + start + 6)) & 0x3FFF
    return packet, -1 if fragment else load8(head + start + 9), l4, end


@part
def look_at_ipv6(head: int, length: int, start: int) -> tuple[int, int, int, int]:
    """Read an IPv6 header, as `look_at_ipv4` does; what follows extension headers is not looked at."""
    if length < start + 40 or load8(head + start) >> 4 != 6:
        return 0, -1, 0, 0
    end = start + 40 + swap16(load16(head + start + 4))
    if end > length:
        return RXD_PT_IPV6, -1, 0, 0
    protocol = load8(head + start + 6)
    extended = protocol == 0 or protocol == 43 or protocol == 44 or protocol == 60
    return RXD_PT_IPV6 | RXD_PT_IPV6EXT if extended else RXD_PT_IPV6, protocol, start + 40, end


@part
def look_at_ip(head: int, length: int, start: int) -> tuple[int, int, int, int]:
    """Read the IP header of a frame at `start`, as `look_at_ipv4` does; packet type 0 for anything else."""
    kind = load16(head + start - 2)
    if kind == IPV4_LOADED:
        return look_at_ipv4(head, length, start)
    if kind == IPV6_LOADED:
        return look_at_ipv6(head, length, start)
    return 0, -1, 0, 0


@part
def look_at_payload(protocol: int, payload: int, field: int) -> tuple[int, int]:
    """Tell what an IP packet carries, as a packet type, and how many bytes its checksum covers, 0: none is known.

    payload: its bytes behind the header. field: bytes 4 and 5 of them, as loaded.
    """
    if protocol == 6 and payload >= 20:
        return RXD_PT_TCP, payload
    if protocol == 17 and payload >= 8:
        covered = swap16(field)
        return RXD_PT_UDP, covered if 8 <= covered <= payload else 0
    if protocol == 132 and payload >= 12:
        return RXD_PT_SCTP, 0
    return 0, 0


@part
def is_summed(head: int, carried: int, l4: int) -> bool:
    """Tell whether a checksum is there; UDP may leave it out."""
    return carried != RXD_PT_UDP or load16(head + l4 + 6) != 0


@part
def judge_header(total: int) -> int:
    """Verdict on the checksum of an IPv4 header, by its sum: status and errors."""
    return RXD_IPCS if adds_up(total) else RXD_IPCS | RXD_ERR_IPE


@part
def judge_payload(carried: int, total: int) -> int:
    """Verdict on a transport checksum, by the sum of all that it covers and the pseudo header: status and errors."""
    status = RXD_L4CS | RXD_UDPCS if carried == RXD_PT_UDP else RXD_L4CS
    return status if adds_up(total) else status | RXD_ERR_L4E


@part
def sum_pseudo(head: int, six: bool, start: int, protocol: int, covered: int) -> int:
    """Sum of the pseudo header of TCP or UDP."""
    addresses = sum_words(head, start + 8, start + 40) if six else sum_words(head, start + 12, start + 20)
    return addresses + swap16(protocol) + swap16(covered)


@part
def hash_kind(nic: Row, carried: int, six: bool) -> int:
    """Tell what of a frame is hashed, as an RSS type; 0: nothing."""
    fields = nic.port.rss_fields
    if carried == RXD_PT_TCP and fields & (0x20 if six else 1):
        return RSS_TCP6 if six else RSS_TCP4
    if carried == RXD_PT_UDP and fields & (0x80 if six else 0x40):
        return RSS_UDP6 if six else RSS_UDP4
    if fields & (0x10 if six else 2):
        return RSS_IPV6 if six else RSS_IPV4
    return 0


@part
def hash_flow(nic: Row, head: int, carried: int, six: bool, start: int, l4: int) -> int:
    """Hash a frame's addresses, and ports where MRQC says so: RSS type and hash, as in Q0; 0 for frames without."""
    kind = hash_kind(nic, carried, six)
    if kind == 0:
        return 0
    size = 32 if six else 8
    key = nic.port.rss_key
    digest = toeplitz(key, head + start + (8 if six else 12), size, 0)
    if kind != RSS_IPV6 and kind != RSS_IPV4:
        digest ^= toeplitz(key, head + l4, 4, size)
    return kind | digest << 32


@apart(NIC, int, int, int, int, gives=2)
def classify(nic: Row, head: int, body: int, length: int, start: int) -> tuple[int, int]:
    """Look into an IP frame whose network header begins at `start`: packet type, RSS hash, checksum verdicts.

    Returns (Q0, status and errors) to merge into a write-back; (0, 0) for anything but IP.
    """
    p = nic.port
    six = load16(head + start - 2) == IPV6_LOADED
    packet, protocol, l4, end = look_at_ip(head, length, start)
    if l4 == 0:
        return packet, 0
    status = judge_header(sum_words(head, start, l4)) if p.rx_ip_checksum and not six else 0
    carried, covered = look_at_payload(protocol, end - l4, load16(head + l4 + 4))
    if covered and p.rx_l4_checksum and is_summed(head, carried, l4):
        end = l4 + covered
        total = sum_pseudo(head, six, start, protocol, covered) + sum_words(head, l4, min(end, HEAD_BYTES))
        if end > HEAD_BYTES:
            total += sum_bytes(body + HEAD_BYTES, end - HEAD_BYTES)
        status |= judge_payload(carried, total)
    q0 = packet | carried
    if p.rss:
        q0 |= hash_flow(nic, head, carried, six, start, l4)
    return q0, status


@kernel
def split_point(nic: Row, frame: int, length: int, room: int, always: bool) -> int:
    """Bytes for the header buffer: the headers of an IP frame if they fit; else, if `always`, as much as fits."""
    p = nic.port
    ethertype = load16(frame + 12)
    start = 14
    if ethertype == p.tag_kind:
        ethertype = load16(frame + 16)
        start = 18
        if p.tag_at != PLAIN_TAG_AT and ethertype == p.inner_kind:
            ethertype = load16(frame + 20)
            start = 22
    elif p.tag_at != PLAIN_TAG_AT:
        ethertype = 0
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
