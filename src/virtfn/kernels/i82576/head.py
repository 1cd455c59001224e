"""The head of a frame: its first bytes, a private copy without its VLAN tag, for `local.py`.

    +0 destination  +6 source  +12 ether type  +14 IPv4: addresses at +26, payload at +34; IPv6: +22, +54; then zeros

It is written and read by 64-bit words, so that nothing waits for what was just written: a processor gives a word on
before it is in the cache, but no word that was written in two.
"""

from __future__ import annotations

from virtfn.hw.i82576.desc import RSS_IPV4, RSS_IPV6
from virtfn.kernels._jit import Row, copy_bytes, inlined, load64, store8, store16, store32, store64
from virtfn.kernels.csum import copy_sum, halves, swap16, toeplitz_word
from virtfn.kernels.i82576.classify import hash_kind

__all__ = [
    "HELD_BYTES",
    "copy_rest",
    "hash_head",
    "put_tagged",
    "put_words",
    "sum_addresses",
    "sum_header",
    "sum_payload",
    "take_head",
]

HELD_BYTES = 80  # the checksum of TCP over IPv6 in a VLAN is in it
_LOW = 0xFFFFFFFF
_48 = (1 << 48) - 1
_ADDRESSES = 12  # bytes of MAC addresses


@inlined
def take_head(head: int, source: int, length: int, low: int, high: int) -> None:
    """Copy the first bytes of a frame, `HELD_BYTES` at most, by 64-bit words, and zeros behind them.

    low, high: its first 16 bytes, as they have been read; it has no fewer.
    """
    store64(head, low)
    store64(head + 8, high)
    if length >= HELD_BYTES:
        for i in range(2, HELD_BYTES // 8):
            store64(head + i * 8, load64(source + i * 8))
        return
    # Seven words, those of the shortest frame, are unrolled: a loop of unknown length costs as much as they do.
    whole = length >> 3
    for i in range(7, HELD_BYTES // 8):
        store64(head + i * 8, 0)
    if whole >= 7:
        for i in range(2, 7):
            store64(head + i * 8, load64(source + i * 8))
        for i in range(7, whole):
            store64(head + i * 8, load64(source + i * 8))
    else:
        for i in range(2, 7):
            store64(head + i * 8, load64(source + i * 8) if i < whole else 0)
    if length & 7:
        last = load64(source + length - 8) >> ((8 - (length & 7)) << 3)
        store64(head + (whole << 3), last & (1 << ((length & 7) << 3)) - 1)


@inlined
def put_words(target: int, source: int, size: int) -> None:
    """Copy `size` bytes of a private head by 64-bit words, and what is left in smaller ones."""
    whole = size >> 3
    if whole >= 7:
        for i in range(7):
            store64(target + i * 8, load64(source + i * 8))
        for i in range(7, whole):
            store64(target + i * 8, load64(source + i * 8))
    else:
        for i in range(whole):
            store64(target + i * 8, load64(source + i * 8))
    if size & 7:
        put_last(target + (whole << 3), load64(source + (whole << 3)), size & 7)


@inlined
def put_last(target: int, word: int, size: int) -> None:
    """Write the lowest `size` bytes of a word, up to 7."""
    if size & 4:
        store32(target, word)
        target += 4
        word >>= 32
    if size & 2:
        store16(target, word)
        target += 2
        word >>= 16
    if size & 1:
        store8(target, word)


@inlined
def put_tagged(target: int, head: int, size: int, kind: int, tci: int) -> None:
    """Write `size` bytes of a private head, with a VLAN tag after the addresses."""
    word = load64(head + 8)
    store64(target, load64(head))
    store64(target + 8, word & _LOW | kind << 32 | swap16(tci) << 48)
    target += 16
    left = size - _ADDRESSES
    at = head + 16
    while left > 0:
        further = load64(at)
        both = word >> 32 & _LOW | further << 32
        if left < 8:
            put_last(target, both, left)
            break
        store64(target, both)
        word = further
        target += 8
        at += 8
        left -= 8


@inlined
def sum_addresses(head: int, six: bool) -> int:
    """Sum of the addresses of an IP packet without options, which are in front of its payload."""
    if six:
        three = halves(load64(head + 24)) + halves(load64(head + 32)) + halves(load64(head + 40))
        return (load64(head + 16) >> 48 & 0xFFFF) + three + halves(load64(head + 48) & _48)
    return halves(load64(head + 24) >> 16 & _48) + (load64(head + 32) & 0xFFFF)


@inlined
def sum_header(head: int, addresses: int) -> int:
    """Sum of an IPv4 header without options; addresses: the sum of its addresses."""
    return (load64(head + 8) >> 48 & 0xFFFF) + halves(load64(head + 16)) + (load64(head + 24) & 0xFFFF) + addresses


@inlined
def sum_payload(head: int, six: bool) -> int:
    """Sum of what a head holds behind an IP header without options."""
    last = halves(load64(head + 56)) + halves(load64(head + 64)) + halves(load64(head + 72))
    if six:
        return (load64(head + 48) >> 48 & 0xFFFF) + last
    return halves(load64(head + 32) >> 16 & _48) + halves(load64(head + 40)) + halves(load64(head + 48)) + last


@inlined
def hash_head(nic: Row, head: int, carried: int, six: bool) -> int:
    """Hash an IP packet without options, as `hash_flow` does, by words of the head."""
    kind = hash_kind(nic, carried, six)
    if kind == 0:
        return 0
    table = nic.port.rss_table
    if not six:
        last = load64(head + 32)
        digest = toeplitz_word(table, load64(head + 24), 2, 6, 0) ^ toeplitz_word(table, last, 0, 2, 6)
        if kind != RSS_IPV4:
            digest ^= toeplitz_word(table, last, 2, 4, 8)
        return kind | digest << 32
    last = load64(head + 48)
    digest = toeplitz_word(table, load64(head + 16), 6, 2, 0) ^ toeplitz_word(table, load64(head + 24), 0, 8, 2)
    digest ^= toeplitz_word(table, load64(head + 32), 0, 8, 10) ^ toeplitz_word(table, load64(head + 40), 0, 8, 18)
    digest ^= toeplitz_word(table, last, 0, 6, 26)
    if kind != RSS_IPV6:
        digest ^= toeplitz_word(table, last, 6, 2, 32) ^ toeplitz_word(table, load64(head + 56), 0, 2, 34)
    return kind | digest << 32


@inlined
def copy_rest(target: int, source: int, size: int, covered: int) -> int:
    """Copy the rest of a frame; return the sum of its first `covered` bytes."""
    if covered <= 0:
        copy_bytes(target, source, size)
        return 0
    total = copy_sum(target, source, covered)
    if covered < size:
        copy_bytes(target + covered, source + covered, size - covered)
    return total
