"""Checksums, hash and packet type of IP frames that `local.py` moves: those asked for, and those that are judged.

What it does not know goes the general way: options, fragments with offloads, offloads for other headers than are there.
Spec: 82576 datasheet, sections on packet type, checksum offloads, and RSS.
"""

from __future__ import annotations

from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED
from virtfn.hw.i82576.desc import (
    RXD_PT_TCP,
    RXD_PT_UDP,
    TXC_L4T_SHIFT,
    TXC_L4T_TCP,
    TXC_L4T_UDP,
    TXC_MACLEN_SHIFT,
    TXD_IXSM,
    TXD_TXSM,
)
from virtfn.kernels._jit import Row, inlined, load16, load64, store16, store64
from virtfn.kernels.csum import fold, sum_words, swap16
from virtfn.kernels.i82576.classify import (
    is_summed,
    judge_header,
    judge_payload,
    look_at_ip,
    look_at_payload,
)
from virtfn.kernels.i82576.head import (
    hash_head,
    sum_addresses,
    sum_header,
    sum_payload,
)
from virtfn.kernels.i82576.offload import context_of

__all__ = ["IP_START", "look", "settle_sums"]

IP_START = 14  # where an IP header begins
_L4_OF_IPV4, _L4_OF_IPV6 = 34, 54  # where the payload begins, without options


@inlined
def agrees(t: Row, q1: int, six: bool, cut: int, carried: int, l4: int, end: int, length: int) -> bool:
    """Tell whether the offloads of a frame are for the headers that it has, and its checksum for all of the rest.

    l4, end: where its payload begins and ends; length: its bytes. Without the tag of `cut` bytes.
    """
    c0, c1 = context_of(t, q1)
    kind = c1 >> TXC_L4T_SHIFT & 3
    l3 = (c0 >> TXC_MACLEN_SHIFT & 0x7F) - cut
    if l3 + (c0 & 0x1FF) != l4 or (q1 & TXD_IXSM and (six or l3 != IP_START)):
        return False
    if q1 & TXD_TXSM == 0:
        return True
    known = (carried == RXD_PT_TCP and kind == TXC_L4T_TCP) or (carried == RXD_PT_UDP and kind == TXC_L4T_UDP)
    return known and end == length


@inlined
def look(nic: Row, t: Row, q1: int, head: int, size: int, cut: int, length: int) -> tuple[int, int, int, int, int, int]:
    """Look into a frame of `size` bytes, `length` before it was filled up.

    Returns (Q0, status, where its payload begins, and ends, protocol, sum of its addresses). Protocol 0: nothing has to
    be summed; -1: it needs the general path.
    """
    p = nic.port
    kind = load64(head + 8) >> 32 & 0xFFFF
    asked = q1 & (TXD_IXSM | TXD_TXSM) != 0
    six = kind == IPV6_LOADED
    if kind != IPV4_LOADED and not six:
        return 0, 0, 0, 0, -1 if asked else 0, 0
    packet, protocol, l4, end = look_at_ip(head, size, IP_START)
    if l4 == 0:
        return packet, 0, 0, 0, -1 if asked else 0, 0
    if l4 != (_L4_OF_IPV6 if six else _L4_OF_IPV4):
        return 0, 0, 0, 0, -1, 0  # options
    carried, covered = look_at_payload(head, protocol, l4, end)
    if asked and not agrees(t, q1, six, cut, carried, l4, l4 + covered, length):
        return 0, 0, 0, 0, -1, 0
    addresses = sum_addresses(head, six)
    status = 0
    if not six:
        if q1 & TXD_IXSM:
            word = load64(head + 24) & ~0xFFFF
            store64(head + 24, word)
            store64(head + 24, word | fold(sum_header(head, addresses)) ^ 0xFFFF)
        if p.rx_ip_checksum:
            status = judge_header(sum_header(head, addresses))
    q0 = packet | carried
    if p.rss:
        q0 |= hash_head(nic, head, carried, six)
    if covered == 0 or not (q1 & TXD_TXSM or (p.rx_l4_checksum and is_summed(head, carried, l4))):
        protocol = 0
    return q0, status, l4, l4 + covered, protocol, addresses


@inlined
def settle_sums(
    nic: Row, q1: int, head: int, held: int, target: int, length: int, looked: tuple[int, int, int, int, int, int],
    rest: int,
) -> int:  # fmt: skip
    """Insert the checksum that was asked for, and judge the one that is there. Returns status and errors.

    target: where the head begins in the receiver's buffer, less the tag. length: bytes before it was filled up. rest:
    sum of what is not in the head.
    """
    q0, _, l4, end, protocol, addresses = looked
    carried = q0 & (RXD_PT_TCP | RXD_PT_UDP)
    # Behind the frame the head is zero: only a trailer has to be left out.
    if end >= held or end == length:
        total = sum_payload(head, l4 == _L4_OF_IPV6) + rest
    else:
        total = sum_words(head, l4, end)
    pseudo = addresses + swap16(protocol) + swap16(end - l4)
    if q1 & TXD_TXSM:
        field = l4 + (16 if carried == RXD_PT_TCP else 6)
        inserted = fold(total) ^ 0xFFFF
        if inserted == 0 and carried == RXD_PT_UDP:
            inserted = 0xFFFF
        store16(target + field, inserted)
        total = load16(head + field) ^ 0xFFFF  # it holds what the driver takes for the sum of the pseudo header
    return judge_payload(carried, total + pseudo) if nic.port.rx_l4_checksum else 0
