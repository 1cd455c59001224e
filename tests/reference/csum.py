"""The slow, obvious twins of the checksum kernels: bit by bit, byte by byte."""

from __future__ import annotations


def ones_sum(content: bytes) -> int:
    """Add 16-bit big-endian words in one's complement; an odd last byte is a high one. Spec: RFC 1071."""
    total = 0
    for i in range(0, len(content), 2):
        total += int.from_bytes(content[i : i + 2].ljust(2, b"\0"), "big")
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


def checksum(content: bytes) -> int:
    """Compute the Internet checksum."""
    return ones_sum(content) ^ 0xFFFF


def crc32c(content: bytes) -> int:
    """Divide by Castagnoli's polynomial, reflected. Spec: RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def toeplitz(key: bytes, content: bytes) -> int:
    """Hash as receive side scaling does: for each one bit of the input, a 32-bit window of the key."""
    bits = "".join(f"{byte:08b}" for byte in key)
    result = 0
    for i, bit in enumerate("".join(f"{byte:08b}" for byte in content)):
        if bit == "1":
            result ^= int(bits[i : i + 32], 2)
    return result
