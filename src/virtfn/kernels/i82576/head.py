"""The head of a frame for `local.py`: its first bytes, without their VLAN tag, as 64-bit words in local variables.

    low  +0 destination  +6 source        high  +8 source  +12 ether type  +14 IP
    words of IPv4   +16 to +39: lengths and protocol, checksum, addresses at +26, ports at +34
    words of IPv6   +16 to +63: lengths and protocol, addresses at +22, ports at +54

What follows the words of IP, up to `held_bytes`, is read when it is given on; it ends behind the checksum of TCP.
"""

from __future__ import annotations

from virtfn.hw.eth import VLAN_BYTES
from virtfn.hw.i82576.desc import RSS_IPV4, RSS_IPV6
from virtfn.kernels._jit import Row, copy_32, copy_bytes, hash_words, inlined, kernel, load64, store32, store64
from virtfn.kernels.csum import add_words, copy_sum, run_through, swap16
from virtfn.kernels.i82576.classify import hash_kind

__all__ = [
    "SHORTEST",
    "copy_rest",
    "copy_short",
    "first_bytes",
    "hash_head",
    "held_bytes",
    "put_ip",
    "put_start",
    "sum_addresses",
    "sum_header",
    "take_short",
    "take_words",
]

SHORTEST = 16  # bytes of a frame that are looked at before anything else
_LONGEST = 80
_LOW = 0xFFFFFFFF
_48 = (1 << 48) - 1


@inlined
def held_bytes(six: bool) -> int:
    """Tell how many bytes of an IP frame are read by words, whether it has them or not."""
    return 72 if six else 56


@kernel
def take_short(area: int, frame: int, length: int) -> int:
    """Copy a frame that is shorter than its words, but for the first two, to private memory, with zeros behind it.

    Returns where it is. By 64-bit words: a processor gives a word on at once, but waits for one that two stores made.
    """
    whole = length >> 3
    for i in range(SHORTEST // 8, _LONGEST // 8):
        store64(area + i * 8, load64(frame + i * 8) if i < whole else 0)
    if length & 7:
        last = load64(frame + length - 8) >> ((8 - (length & 7)) << 3)
        store64(area + (whole << 3), last & (1 << ((length & 7) << 3)) - 1)
    return area


@inlined
def take_words(frame: int, six: bool) -> tuple[int, int, int, int, int, int]:
    """Read the words of an IP packet in a frame."""
    first, second, third = load64(frame + 16), load64(frame + 24), load64(frame + 32)
    if six:
        return first, second, third, load64(frame + 40), load64(frame + 48), load64(frame + 56)
    return first, second, third, 0, 0, 0


@inlined
def put_start(target: int, low: int, high: int, kind: int, tci: int) -> int:
    """Write the first words of a frame, with a tag of type `kind` unless it is -1.

    Returns where the frame would begin if it had no tag.
    """
    store64(target, low)
    if tci < 0:
        store64(target + 8, high)
        return target
    store64(target + 8, high & _LOW | kind << 32 | swap16(tci) << 48)
    store32(target + 16, high >> 32)
    return target + VLAN_BYTES


@inlined
def put_ip(target: int, frame: int, six: bool, words: tuple[int, int, int, int, int, int]) -> tuple[int, int]:
    """Write the words of IP and the two behind IPv4's, the one behind IPv6's. Returns the last two."""
    store64(target + 16, words[0])
    store64(target + 24, words[1])
    store64(target + 32, words[2])
    if six:
        last = load64(frame + 64)
        store64(target + 40, words[3])
        store64(target + 48, words[4])
        store64(target + 56, words[5])
        store64(target + 64, last)
        return words[5], last
    first, last = load64(frame + 40), load64(frame + 48)
    store64(target + 40, first)
    store64(target + 48, last)
    return first, last


@inlined
def copy_short(target: int, source: int, size: int) -> None:
    """Copy bytes as `copy_bytes` does, without a call where they are those of a short frame behind its first words."""
    if 32 <= size <= 64:
        copy_32(target, source)
        copy_32(target + size - 32, source + size - 32)
    else:
        copy_bytes(target, source, size)


@inlined
def copy_rest(target: int, source: int, size: int, covered: int) -> int:
    """Copy the rest of a frame; return the sum of its first `covered` bytes."""
    total = 0
    if covered > 0:
        total = copy_sum(target, source, covered) if covered >= 32 else run_through(target, source, covered, True)
    done = max(covered, 0)
    if size > done:
        copy_bytes(target + done, source + done, size - done)
    return total


@inlined
def first_bytes(word: int, count: int) -> int:
    """Return the lowest `count` bytes of a word: none if it is negative, all from 8."""
    if count >= 8:
        return word
    return word & (1 << (count << 3)) - 1 if count > 0 else 0


@inlined
def sum_addresses(six: bool, words: tuple[int, int, int, int, int, int]) -> int:
    """Sum of the addresses of an IP packet without options."""
    if six:
        front = add_words((words[0] >> 48 & 0xFFFF) + (words[4] & _48), words[1])
        return add_words(add_words(front, words[2]), words[3])
    return (words[1] >> 16 & _48) + (words[2] & 0xFFFF)


@inlined
def sum_header(high: int, addresses: int, words: tuple[int, int, int, int, int, int]) -> int:
    """Sum of an IPv4 header without options; addresses: the sum of its addresses."""
    return add_words((high >> 48 & 0xFFFF) + (words[1] & 0xFFFF) + addresses, words[0])


@inlined
def hash_head(nic: Row, carried: int, six: bool, words: tuple[int, int, int, int, int, int]) -> int:
    """Hash an IP packet without options, as `hash_flow` does."""
    kind = hash_kind(nic, carried, six)
    if kind == 0:
        return 0
    key = nic.port.rss_key
    first, second, third, fourth, fifth, last = words
    if six:
        if kind == RSS_IPV6:
            fifth, last = fifth & _48, 0
        return kind | hash_words(key - 6, (first & ~_48, second, third, fourth, fifth, last & 0xFFFF)) << 32
    return kind | hash_words(key - 2, (second & ~0xFFFF, third & (0xFFFF if kind == RSS_IPV4 else _48))) << 32
