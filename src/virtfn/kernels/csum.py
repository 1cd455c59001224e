"""Checksums and hashes over raw memory: Internet checksum, SCTP's CRC-32c, the Toeplitz hash of RSS."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import (
    copy_blocks,
    hash_words,
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
    "KEY_START",
    "add_words",
    "adds_up",
    "copy_sum",
    "crc32c",
    "fold",
    "run_through",
    "sum_bytes",
    "sum_words",
    "swap16",
    "swap32",
    "toeplitz",
    "toeplitz_key",
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
KEY_START = 8  # where the first byte of a key lies in what `toeplitz_key` makes
_LOW = 0xFFFFFFFF
_SWAP32_MASK = 0xFF00FF
_ONES = 0x0001000100010001  # times 0xFFFF that is -1


@kernel
def swap16(value: int) -> int:
    """Exchange the two bytes of a 16-bit number."""
    return (value & 0xFF) << 8 | value >> 8 & 0xFF


@kernel
def fold(total: int) -> int:
    """Fold a one's complement sum, of 64 bits without a sign, into 16."""
    total = total + (total << 32 | total >> 32 & 0xFFFFFFFF) >> 32 & 0xFFFFFFFF
    return (total + (total << 16 & 0xFFFFFFFF | total >> 16) & 0xFFFFFFFF) >> 16


@inlined
def adds_up(total: int) -> bool:
    """Tell whether a one's complement sum, which is not 0, is as checksums make it: a multiple of 0xFFFF."""
    return bool(np.uint64(-total * _ONES) <= np.uint64(_ONES))


@inlined
def add_words(first: int, second: int) -> int:
    """Add two 64-bit words in one's complement: what is carried out at the top comes in at the bottom."""
    total = first + second
    return total + int(np.uint64(total) < np.uint64(first))


@inlined
def run_through(target: int, source: int, size: int, copy: bool) -> int:
    """Add up to 31 bytes at `source` as `sum_bytes` does, and copy them if that is asked for."""
    total = i = 0
    while i + 8 <= size:
        word = load64(source + i)
        if copy:
            store64(target + i, word)
        total += (word & _LOW) + (word >> 32 & _LOW)
        i += 8
    if size & 4:
        word = load32(source + i)
        if copy:
            store32(target + i, word)
        total += word
        i += 4
    if size & 2:
        word = load16(source + i)
        if copy:
            store16(target + i, word)
        total += word
        i += 2
    if size & 1:
        word = load8(source + i)
        if copy:
            store8(target + i, word)
        total += word
    return total


@kernel
def sum_bytes(address: int, size: int) -> int:
    """Add `size` bytes at `address` as little-endian 16-bit words, unfolded; the last odd byte counts as low."""
    whole = size & ~31
    total = sum_blocks(address, size >> 5) if whole else 0
    return total + run_through(0, address + whole, size & 31, False)


@kernel
def copy_sum(target: int, source: int, size: int) -> int:
    """Copy `size` bytes, 32 at least, each read once, and add them as `sum_bytes` does; the regions do not overlap."""
    lead = -target & 12  # blocks are written faster where addresses are multiples of 16
    total = run_through(target, source, lead, True)
    target += lead
    source += lead
    size -= lead
    whole = size & ~31
    total += copy_blocks(target, source, size >> 5)
    return total + run_through(target + whole, source + whole, size & 31, True)


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
        total += (word & _LOW) + (word >> 32 & _LOW)
        at += 8
        left -= 8
        word = load64(at)
    word &= (2 << (left << 3) - 1) - 1
    return total + (word & _LOW) + (word >> 32 & _LOW)


@kernel
def crc32c(address: int, size: int, skip: int) -> int:
    """CRC-32c over `size` bytes, the four at offset `skip` taken as zero. Spec: RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for i in range(size):
        byte = 0 if skip <= i < skip + 4 else load8(address + i)
        value = value >> 8 ^ int(CRC32C[(value ^ byte) & 0xFF])
    return value ^ 0xFFFFFFFF


@inlined
def toeplitz(key: int, address: int, size: int, first: int) -> int:
    """Contribution to the RSS hash of `size` bytes at `address`, a multiple of 4: its input bytes `first`...

    key: address in what `toeplitz_key` makes. Spec: "Verifying the RSS hash calculation", Microsoft.
    """
    value = 0
    for i in range(0, size & ~7, 8):
        value ^= hash_words(key + first + i, (load64(address + i),))
    if size & 4:
        value ^= hash_words(key + first + (size & ~7), (load32(address + (size & ~7)),))
    return value


def toeplitz_key(key: bytes) -> npt.NDArray[np.uint8]:
    """Lay a 40-byte key out for `hash_words`, as (64,) uint8, from byte `KEY_START`, with zeros around it.

    What is the highest bit of a byte comes first: here it is the lowest, and all are one bit further.
    """
    bits = np.zeros(64 * 8, np.uint8)
    begin = KEY_START * 8 + 1
    bits[begin : begin + 320] = np.unpackbits(np.frombuffer(key, np.uint8))
    return np.packbits(bits, bitorder="little")


@kernel
def swap32(value: int) -> int:
    """Exchange the bytes of a 32-bit number."""
    value = (value & _SWAP32_MASK) << 8 | value >> 8 & _SWAP32_MASK
    return (value << 16 | value >> 16) & 0xFFFFFFFF
