"""The slow, obvious twin of the workload's frames: their marks, and what a receiver makes of a stream of them."""

from __future__ import annotations

from dataclasses import dataclass, field

M64 = (1 << 64) - 1
K1, K2 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
HEADER, ETHERTYPE = 32, b"\x88\xb5"


def mix(value: int) -> int:
    """Spread a 64-bit number over all its bits; no two numbers give the same."""
    value = (value ^ value >> 32) * K1 & M64
    value = (value ^ value >> 29) * K2 & M64
    return value ^ value >> 32


def _words(content: bytes) -> tuple[list[int], bytes]:
    whole = len(content) // 8 * 8
    return [int.from_bytes(content[i : i + 8], "little") for i in range(0, whole, 8)], content[whole:]


def filler_sum(content: bytes) -> int:
    words, rest = _words(content)
    total = sum(word * (2 * i + 1) for i, word in enumerate(words))
    total += sum(byte * (2 * (len(words) * 8 + i) + 0x1000001) for i, byte in enumerate(rest))
    return total & M64


def check_value(frame: bytes) -> int:
    """Check value of a generated frame, from everything in it but the check value."""
    (first, second, third), _ = _words(frame[:24])
    total = filler_sum(frame[HEADER:]) + len(frame) & M64
    for word in (third, second, first):
        total = word + mix(total) & M64
    return mix(total)


def digest(frame: bytes) -> int:
    total = mix(len(frame))
    words, rest = _words(frame)
    for word in words:
        total = (total ^ word) * K1 & M64
        total ^= total >> 29
    for byte in rest:
        total = (total ^ byte) * K2 & M64
    return mix(total)


@dataclass
class Receiver:
    """What one guest has had. guests, frames: how many senders, and sequence numbers of each, there can be."""

    guests: int
    frames: int
    had: dict[int, list[int]] = field(default_factory=dict)
    corrupt: int = 0
    repeated: int = 0
    reordered: int = 0
    foreign: int = 0

    def take(self, frame: bytes) -> None:
        if frame[12:14] != ETHERTYPE:
            self.foreign += 1
            return
        sender, number = int.from_bytes(frame[14:16], "little"), int.from_bytes(frame[16:24], "little")
        sound = len(frame) >= 40 and int.from_bytes(frame[24:32], "little") == check_value(frame)
        if not sound or sender >= self.guests or number >= self.frames:
            self.corrupt += 1
            return
        had = self.had.setdefault(sender, [])
        if number in had:
            self.repeated += 1
            return
        self.reordered += bool(had) and number < max(had)
        had.append(number)
