"""Checksums and hashes over raw memory: Internet checksum, SCTP's CRC-32c, the Toeplitz hash of RSS."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import (
    copy_blocks,
    inlined,
    kernel,
    load8,
    load16,
    load32,
    load64,
    store8,
    store16,
    store32,
    store64,
    sum_blocks,
)

__all__ = [
    "CRC32C",
    "copy_sum",
    "crc32c",
    "fold",
    "halves",
    "sum_bytes",
    "sum_words",
    "swap16",
    "swap32",
    "toeplitz",
    "toeplitz_table",
    "toeplitz_word",
]


def _crc_table() -> npt.NDArray[np.uint32]:
    table = np.zeros(256, np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table[byte] = value
    return table


CRC32C = _crc_table()
_SWAP32_MASK = 0xFF00FF


@kernel
def swap16(value: int) -> int:
    """Exchange the two bytes of a 16-bit number."""
    return (value & 0xFF) << 8 | value >> 8 & 0xFF


@kernel
def fold(total: int) -> int:
    """Fold a one's complement sum into 16 bits."""
    total = (total & 0xFFFFFFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@inlined
def halves(word: int) -> int:
    """Add the two halves of a 64-bit word."""
    return (word & 0xFFFFFFFF) + (word >> 32 & 0xFFFFFFFF)


@kernel
def sum_bytes(address: int, size: int) -> int:
    """Add `size` bytes at `address` as little-endian 16-bit words, unfolded; the last odd byte counts as low."""
    i = size & ~31
    total = sum_blocks(address, size >> 5)
    while i + 8 <= size:
        total += halves(load64(address + i))
        i += 8
    if size & 4:
        total += load32(address + i)
        i += 4
    if size & 2:
        total += load16(address + i)
        i += 2
    if size & 1:
        total += load8(address + i)
    return total


@kernel
def copy_sum(target: int, source: int, size: int) -> int:
    """Copy `size` bytes, each read once, and add them as `sum_bytes` does; the regions do not overlap."""
    i = size & ~31
    total = copy_blocks(target, source, size >> 5)
    while i + 8 <= size:
        word = load64(source + i)
        store64(target + i, word)
        total += halves(word)
        i += 8
    if size & 4:
        word = load32(source + i)
        store32(target + i, word)
        total += word
        i += 4
    if size & 2:
        word = load16(source + i)
        store16(target + i, word)
        total += word
        i += 2
    if size & 1:
        word = load8(source + i)
        store8(target + i, word)
        total += word
    return total


@kernel
def sum_words(address: int, start: int, end: int) -> int:
    """Add bytes start..end-1 at `address` as `sum_bytes` does, by 64-bit words from `address`; `start` is even.

    What was stored by such words is had back without a wait. The words are read whole.
    """
    if end <= start:
        return 0
    at = address + (start & ~7)
    left = end - (start & ~7)
    word = load64(at) & -1 << ((start & 7) << 3)
    total = 0
    while left > 8:
        total += halves(word)
        at += 8
        left -= 8
        word = load64(at)
    return total + halves(word & (2 << (left << 3) - 1) - 1)


@kernel
def crc32c(address: int, size: int, skip: int) -> int:
    """CRC-32c over `size` bytes, the four at offset `skip` taken as zero. Spec: RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for i in range(size):
        byte = 0 if skip <= i < skip + 4 else load8(address + i)
        value = value >> 8 ^ int(CRC32C[(value ^ byte) & 0xFF])
    return value ^ 0xFFFFFFFF


@inlined
def toeplitz_word(table: int, word: int, skip: int, size: int, first: int) -> int:
    """Contribution to the RSS hash of `size` bytes of a 64-bit word, after its lowest `skip`.

    table: address of what `toeplitz_table` makes. They are input bytes `first`... of the hash.
    """
    value = 0
    word >>= skip << 3
    for i in range(size):
        value ^= load32(table + (first + i << 10) + ((word >> (i << 3) & 0xFF) << 2))
    return value


@inlined
def toeplitz(table: int, address: int, size: int, first: int) -> int:
    """Contribution of `size` bytes at `address`, as `toeplitz_word` has it. size: a multiple of 4."""
    value = 0
    for i in range(0, size, 4):
        value ^= toeplitz_word(table, load32(address + i), 0, 4, first + i)
    return value


def toeplitz_table(key: bytes) -> npt.NDArray[np.uint32]:
    """Tabulate what each value of each of 36 input bytes adds to the hash under a 40-byte key, as (36, 256) uint32."""
    bits = int.from_bytes(key, "big")
    table = np.zeros((36, 256), np.uint32)
    for position in range(36):
        window = [bits >> (320 - 32 - position * 8 - bit) & 0xFFFFFFFF for bit in range(8)]
        for value in range(256):
            total = 0
            for bit in range(8):
                if value & 0x80 >> bit:
                    total ^= window[bit]
            table[position, value] = total
    return table


@kernel
def swap32(value: int) -> int:
    """Exchange the bytes of a 32-bit number."""
    value = (value & _SWAP32_MASK) << 8 | value >> 8 & _SWAP32_MASK
    return (value << 16 | value >> 16) & 0xFFFFFFFF
