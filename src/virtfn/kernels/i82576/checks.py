"""Checksums, hash and packet type of IP frames that `local.py` moves: those asked for, and those that are judged.

What it does not know goes the general way: options, lengths that make no sense, offloads for other headers than are
there. Spec: 82576 datasheet, sections on packet type, checksum offloads, and RSS.
"""

from __future__ import annotations

from virtfn.hw.i82576.desc import (
    RXD_IPCS,
    RXD_PT_IPV4,
    RXD_PT_IPV6,
    RXD_PT_IPV6EXT,
    RXD_PT_TCP,
    RXD_PT_UDP,
    TXC_L4T_SHIFT,
    TXC_L4T_TCP,
    TXC_L4T_UDP,
    TXC_MACLEN_SHIFT,
    TXD_IXSM,
    TXD_TXSM,
)
from virtfn.kernels._jit import Row, inlined, store16, unlikely
from virtfn.kernels.csum import add_words, fold, swap16
from virtfn.kernels.i82576.classify import judge_header, judge_payload, look_at_payload
from virtfn.kernels.i82576.head import (
    copy_rest,
    first_bytes,
    hash_head,
    held_bytes,
    put_ip,
    sum_addresses,
    sum_header,
)
from virtfn.kernels.i82576.offload import context_of

__all__ = ["look", "put_packet"]

IP_START = 14  # where an IP header begins
_L4_OF_IPV4, _L4_OF_IPV6 = 34, 54  # where the payload begins, without options


@inlined
def agrees(t: Row, q1: int, six: bool, cut: int, carried: int, whole: bool) -> bool:
    """Tell whether the offloads of a frame are for the headers that it has.

    cut: bytes of the tag that it had. whole: whether the checksum is one of all that follows.
    """
    c0, c1 = context_of(t, q1)
    if c0 & 0xFFFF != (IP_START + cut) << TXC_MACLEN_SHIFT | (40 if six else 20) or (six and q1 & TXD_IXSM):
        return False
    if q1 & TXD_TXSM == 0:
        return True
    kind = c1 >> TXC_L4T_SHIFT & 3
    return whole and kind == (TXC_L4T_TCP if carried == RXD_PT_TCP else TXC_L4T_UDP)


@inlined
def look(
    nic: Row, t: Row, q1: int, six: bool, high: int, words: tuple[int, int, int, int, int, int], size: int, cut: int,
    length: int,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Look into a frame of `size` bytes, `length` before it was filled up.

    Returns (Q0, status, bytes that its checksum covers, sum of its addresses). Bytes -1: it needs the general path.
    """
    p = nic.port
    first = words[0]
    if six:
        packet, l4, field = RXD_PT_IPV6, _L4_OF_IPV6, words[5] >> 16 & 0xFFFF
        payload = swap16(first >> 16 & 0xFFFF)
        protocol = first >> 32 & 0xFF
        if unlikely(high >> 52 & 15 != 6) or unlikely(payload > size - l4):
            return 0, 0, -1, 0
        if protocol == 0 or protocol == 43 or protocol == 44 or protocol == 60:
            packet |= RXD_PT_IPV6EXT
    else:
        packet, l4, field = RXD_PT_IPV4, _L4_OF_IPV4, words[2] >> 48 & 0xFFFF
        payload = swap16(first & 0xFFFF) - 20
        protocol = first >> 56 & 0xFF | (first >> 32 & 0xFF3F) << 8  # of a fragment: none that there is
        if unlikely(high >> 48 & 0xFF != 0x45) or unlikely(payload < 0) or unlikely(payload > size - l4):
            return 0, 0, -1, 0
    carried, covered = look_at_payload(protocol, payload, field)
    whole = covered != 0 and l4 + covered == length
    offloads = q1 & (TXD_IXSM | TXD_TXSM)
    if offloads and (unlikely(l4 > length) or unlikely(not agrees(t, q1, six, cut, carried, whole))):
        return 0, 0, -1, 0
    addresses = sum_addresses(six, words)
    status = 0
    if p.rx_ip_checksum and not six:
        status = RXD_IPCS if q1 & TXD_IXSM else judge_header(sum_header(high, addresses, words))
    q0 = packet | carried
    if p.rss:
        q0 |= hash_head(nic, carried, six, words)
    return q0, status, covered, addresses


@inlined
def with_checksum(
    high: int, addresses: int, words: tuple[int, int, int, int, int, int]
) -> tuple[int, int, int, int, int, int]:
    """Insert the checksum of an IPv4 header into its words."""
    second = words[1] & ~0xFFFF
    total = sum_header(high, addresses, (words[0], second, words[2], 0, 0, 0))
    return words[0], second | fold(total) ^ 0xFFFF, words[2], 0, 0, 0


@inlined
def put_packet(
    nic: Row, q1: int, six: bool, high: int, words: tuple[int, int, int, int, int, int], frame: int, target: int,
    size: int, looked: tuple[int, int, int, int],
) -> int:  # fmt: skip
    """Write what follows the first words of an IP frame of `size` bytes, with the checksums that were asked for.

    frame: where the rest of it is read. target: where it begins, less its tag. Returns the verdict on its checksum.
    """
    q0, _, covered, addresses = looked
    if q1 & TXD_IXSM and not six:
        words = with_checksum(high, addresses, words)
    first, last = put_ip(target, frame, six, words)
    held = held_bytes(six)
    judged = nic.port.rx_l4_checksum
    if covered == 0 or (q1 & TXD_TXSM == 0 and judged == 0):
        copy_rest(target + held, frame + held, size - held, 0)
        return 0
    l4 = _L4_OF_IPV6 if six else _L4_OF_IPV4
    behind = l4 + covered - held
    total = copy_rest(target + held, frame + held, size - held, behind)
    if unlikely(behind < 0):
        last = first_bytes(last, behind + 8)
        first = first_bytes(first, behind + 16)
    total += words[4] >> 48 & 0xFFFF if six else words[2] >> 16 & (1 << 48) - 1
    total = add_words(add_words(total, first), last)
    carried = q0 & (RXD_PT_TCP | RXD_PT_UDP)
    udp = carried == RXD_PT_UDP
    field = (first >> 32 if six else first) if udp else (last >> 48 if six else last >> 16)
    field &= 0xFFFF
    if q1 & TXD_TXSM:
        inserted = fold(total) ^ 0xFFFF
        if inserted == 0 and udp:
            inserted = 0xFFFF
        store16(target + l4 + (6 if udp else 16), inserted)
        total = field ^ 0xFFFF  # it holds what the driver takes for the sum of the pseudo header
    elif udp and field == 0:
        return 0
    pseudo = (17 << 8 if udp else 6 << 8) + swap16(covered)
    return judge_payload(carried, add_words(add_words(total, addresses), pseudo)) if judged else 0
