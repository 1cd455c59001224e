"""The slow, obvious twin of transmit: descriptors in, frames out, by the letter of the datasheet.

Spec: 82576 datasheet, sections on transmit descriptors, checksum offload, segmentation and VLAN insertion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from reference.csum import checksum, crc32c, ones_sum

LONGEST = 9724
GATHERED = (272 << 10) - 64  # no chain is longer
UDP, TCP, SCTP = 0, 1, 2
Words = tuple[int, int]


@dataclass
class Sent:
    """What became of a chain: descriptors used, frames, or why there are none."""

    used: int
    frames: list[bytes] = field(default_factory=list)
    why: str = ""


class MalformedError(Exception):
    """The descriptors make no sense."""


@dataclass
class Queue:
    """A transmit queue. read: bytes of the sender's memory, None if it may not be read; insert: VMVIR's mode."""

    read: Callable[[int, int], bytes | None]
    pad: bool = True
    insert: int = 0
    port_vlan: int = 0
    vet: int = 0x8100
    contexts: list[Words] = field(default_factory=lambda: [(0, 0), (0, 0)])

    def send(self, ring: list[Words]) -> list[Sent]:
        """Take every whole chain there is."""
        out = []
        while ring:
            sent = self.chain(ring)
            if sent is None:
                break
            out.append(sent)
            ring = ring[sent.used :]
        return out

    def chain(self, ring: list[Words]) -> Sent | None:
        """Take the first chain; None if its end has not been posted yet."""
        content, advanced = b"", _bit(ring[0][1], 29)
        for k, (address, q1) in enumerate(ring):
            kind = q1 >> 20 & 15
            ends = _bit(q1, 24)
            if _bit(q1, 29) and kind == 2:
                if k == 0:
                    self.contexts[q1 >> 36 & 1] = ring[0]
                    return Sent(1)
                return Sent(_skip(ring, k), why="malformed")
            size = q1 & 0xFFFF
            strange = (_bit(q1, 29) and kind != 3) or _bit(q1, 29) != advanced or len(content) + size > GATHERED
            piece = None if strange else self.read(address, size)
            if piece is None:
                return Sent(k + 1 if ends else _skip(ring, k), why="malformed" if strange else "dma-fault")
            content += piece
            if ends:
                try:
                    frames = self.advanced(ring[0][1], content) if advanced else self.legacy(q1, content)
                except MalformedError:
                    return Sent(k + 1, why="malformed")
                if len(frames) == 1 and len(frames[0]) < 14:
                    return Sent(k + 1, why="undersize")
                if len(frames) == 1 and len(frames[0]) > LONGEST:
                    return Sent(k + 1, why="oversize")
                return Sent(k + 1, frames)
        return None

    def finish(self, frame: bytes, asked: bool, tci: int) -> bytes:
        """Insert a tag as descriptor and port say, and pad."""
        if self.insert == 1:
            asked, tci = True, self.port_vlan
        elif self.insert == 2:
            asked = False
        if len(frame) < 14:
            return frame
        if asked:
            frame = frame[:12] + self.vet.to_bytes(2, "big") + tci.to_bytes(2, "big") + frame[12:]
        return frame.ljust(60, b"\0") if self.pad else frame

    def advanced(self, q1: int, frame: bytes) -> list[bytes]:
        c0, c1 = self.contexts[q1 >> 36 & 1]
        l3 = c0 >> 9 & 0x7F
        l4 = l3 + (c0 & 0x1FF)
        l4t, v4 = c1 >> 11 & 3, _bit(c1, 10)
        paylen = q1 >> 46 & 0x3FFFF
        tag = _bit(q1, 30), c0 >> 16 & 0xFFFF
        if _bit(q1, 31):
            return [
                self.finish(s, *tag) for s in _segments(frame, q1, l3, l4, l4t, v4, c1 >> 40 & 0xFF, c1 >> 48, paylen)
            ]
        if paylen != len(frame):
            raise MalformedError
        if _bit(q1, 41):
            frame = _transport(frame, l4, l4t)
        if _bit(q1, 40):
            frame = _network(frame, l3, l4)
        return [self.finish(frame, *tag)]

    def legacy(self, q1: int, frame: bytes) -> list[bytes]:
        if _bit(q1, 26):
            start, place = q1 >> 40 & 0xFF, q1 >> 16 & 0xFF
            if start >= len(frame) or place + 2 > len(frame):
                raise MalformedError
            frame = _put(frame, place, checksum(frame[start:]))
        return [self.finish(frame, _bit(q1, 30), q1 >> 48 & 0xFFFF)]


def _bit(word: int, bit: int) -> bool:
    return bool(word >> bit & 1)


def _skip(ring: list[Words], k: int) -> int:
    """Count the descriptors up to the next end of a chain behind descriptor `k`."""
    for i in range(k + 1, len(ring)):
        if _bit(ring[i][1], 24):
            return i + 1
    return len(ring)


def _put(frame: bytes, at: int, value: int, size: int = 2) -> bytes:
    return frame[:at] + value.to_bytes(size, "big") + frame[at + size :]


def _transport(frame: bytes, l4: int, l4t: int) -> bytes:
    """Insert the checksum of bytes from `l4` on; its field holds the pseudo-header's sum."""
    if l4t > SCTP:
        raise MalformedError
    at = l4 + {UDP: 6, TCP: 16, SCTP: 8}[l4t]
    if at + (4 if l4t == SCTP else 2) > len(frame):
        raise MalformedError
    if l4t == SCTP:
        value = crc32c(frame[l4:at] + bytes(4) + frame[at + 4 :])
        return frame[:at] + value.to_bytes(4, "little") + frame[at + 4 :]
    value = checksum(frame[l4:])
    return _put(frame, at, 0xFFFF if l4t == UDP and value == 0 else value)


def _network(frame: bytes, l3: int, l4: int) -> bytes:
    """Insert the IPv4 header's checksum."""
    if l4 > len(frame) or l4 < l3 + 20:
        raise MalformedError
    frame = _put(frame, l3 + 10, 0)
    return _put(frame, l3 + 10, checksum(frame[l3:l4]))


def _segments(
    frame: bytes, q1: int, l3: int, l4: int, l4t: int, v4: bool, l4len: int, mss: int, paylen: int
) -> list[bytes]:
    """Cut a large send into frames of `mss` payload bytes, each with its own header."""
    end = l4 + l4len
    if l3 < 14 or l4 - l3 < (20 if v4 else 40) or l4t not in (UDP, TCP) or l4len < (20 if l4t == TCP else 8):
        raise MalformedError
    if mss == 0 or paylen == 0 or end + paylen != len(frame) or end + mss + 4 > LONGEST:
        raise MalformedError
    out = []
    for i, at in enumerate(range(end, len(frame), mss)):
        one = frame[:end] + frame[at : at + mss]
        if v4:
            one = _put(one, l3 + 2, len(one) - l3)
            one = _put(one, l3 + 4, int.from_bytes(frame[l3 + 4 : l3 + 6], "big") + i & 0xFFFF)
        else:
            one = _put(one, l3 + 4, len(one) - l3 - 40)
        if l4t == TCP:
            sequence = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")
            one = _put(one, l4 + 4, sequence + at - end & 0xFFFFFFFF, 4)
            first, last = i == 0, at + mss >= len(frame)
            for bit, kept in (1, last), (8, last), (0x80, first):  # FIN, PSH, CWR
                if not kept:
                    one = _put(one, l4 + 13, one[l4 + 13] & ~bit, 1)
        else:
            one = _put(one, l4 + 4, len(one) - l4)
        if _bit(q1, 41):
            place = l4 + (16 if l4t == TCP else 6)
            one = _put(one, place, ones_sum(one[place : place + 2] + (len(one) - l4).to_bytes(2, "big")))
            one = _transport(one, l4, l4t)
        out.append(_network(one, l3, l4) if _bit(q1, 40) else one)
    return out
