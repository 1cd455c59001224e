"""Checksums and hashes over raw memory: Internet checksum, SCTP's CRC-32c, the Toeplitz hash of RSS."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import kernel, load8, load16, load32

__all__ = ["CRC32C", "crc32c", "fold", "sum_bytes", "swap16", "swap32", "toeplitz", "toeplitz_table"]


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


@kernel
def sum_bytes(address: int, size: int) -> int:
    """Add `size` bytes at `address` as little-endian 16-bit words, unfolded; the last odd byte counts as low."""
    total = 0
    i = 0
    while i + 4 <= size:
        total += load32(address + i)
        i += 4
    if i + 2 <= size:
        total += load16(address + i)
        i += 2
    if i < size:
        total += load8(address + i)
    return total


@kernel
def crc32c(address: int, size: int, skip: int) -> int:
    """CRC-32c over `size` bytes, the four at offset `skip` taken as zero. Spec: RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for i in range(size):
        byte = 0 if skip <= i < skip + 4 else load8(address + i)
        value = value >> 8 ^ int(CRC32C[(value ^ byte) & 0xFF])
    return value ^ 0xFFFFFFFF


@kernel
def toeplitz(table: npt.NDArray[np.uint32], address: int, size: int, first: int) -> int:
    """Contribution to the RSS hash of `size` bytes at `address` that are input bytes `first`... of the hash."""
    value = 0
    for i in range(size):
        value ^= int(table[first + i, load8(address + i)])
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
