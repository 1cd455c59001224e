"""What a virtio network device makes of frames and chains, in plain Python, by virtio 1.3 alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from reference.csum import checksum, ones_sum

CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 0, 1, 7, 8, 9
HOST_TSO4, HOST_TSO6, HOST_ECN, MRG, INDIRECT, EVENT = 11, 12, 13, 15, 28, 29
NEEDS_CSUM, TCP4, TCP6, ECN = 1, 1, 4, 0x80
LONGEST, MOST_SEGMENTS = 65550, 1400


def has(features: int, bit: int) -> bool:
    return bool(features >> bit & 1)


@dataclass(frozen=True)
class Header:
    """The header in front of a frame; without the number of buffers, which is a matter of the receiver's buffers."""

    flags: int = 0
    gso: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self, buffers: int = 0) -> bytes:
        return struct.pack(
            "<BBHHHHH", self.flags, self.gso, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, buffers
        )

    @classmethod
    def unpack(cls, raw: bytes) -> tuple[Header, int]:
        *fields, buffers = struct.unpack("<BBHHHHH", raw[:12])
        return cls(*fields), buffers


def l3_of(frame: bytes) -> tuple[int, int]:
    """Find the network header behind up to two tags: (type, where it is)."""
    at = 12
    for _ in range(2):
        if frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
    return int.from_bytes(frame[at : at + 2], "big"), at + 2


def wrong(frame: bytes, header: Header, features: int) -> str | None:
    """Name what is wrong with a frame that a driver sends, None if nothing."""
    if len(frame) < 14:
        return "short"
    start, place = header.csum_start, header.csum_start + header.csum_offset
    if header.flags & NEEDS_CSUM:
        if not has(features, CSUM):
            return "not-negotiated"
        if place + 2 > len(frame):
            return "checksum"
    elif header.gso:
        return "segmentation"
    if not header.gso:
        return None
    kind = header.gso & 0x7F
    if kind not in (TCP4, TCP6) or not has(features, HOST_TSO4 if kind == TCP4 else HOST_TSO6):
        return "not-negotiated"
    if header.gso & ECN and not has(features, HOST_ECN):
        return "not-negotiated"
    ethertype, l3 = l3_of(frame)
    most = min(256, len(frame))
    if start + 20 > most or header.csum_offset != 16:
        return "segmentation"
    if kind == TCP4:
        size = (frame[l3] & 15) * 4
        if ethertype != 0x0800 or frame[l3] >> 4 != 4 or size < 20 or start != l3 + size or frame[l3 + 9] != 6:
            return "segmentation"
    elif ethertype != 0x86DD or frame[l3] >> 4 != 6 or start < l3 + 40:
        return "segmentation"
    size = (frame[start + 12] >> 4) * 4
    payload = len(frame) - start - size
    if size < 20 or start + size > most or header.gso_size == 0 or payload > header.gso_size * MOST_SEGMENTS:
        return "segmentation"
    return None


def complete(frame: bytes, header: Header) -> bytes:
    """Store the checksum that was left open."""
    at = header.csum_start + header.csum_offset
    value = checksum(frame[header.csum_start :])
    if value == 0 and header.csum_offset == 6:
        value = 0xFFFF
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


def cut(frame: bytes, header: Header, partial: bool) -> list[bytes]:
    """Cut a large TCP send into segments."""
    start = header.csum_start
    _, l3 = l3_of(frame)
    size = start + (frame[start + 12] >> 4) * 4
    payload = frame[size:]
    pieces = [payload[i : i + header.gso_size] for i in range(0, len(payload), header.gso_size)]
    field = int.from_bytes(frame[start + 16 : start + 18], "big")
    segments = []
    for i, piece in enumerate(pieces):
        head = bytearray(frame[:size])
        total = size + len(piece)
        if header.gso & 0x7F == TCP4:
            head[l3 + 2 : l3 + 4] = (total - l3).to_bytes(2, "big")
            ident = (int.from_bytes(head[l3 + 4 : l3 + 6], "big") + i) & 0xFFFF
            head[l3 + 4 : l3 + 6] = ident.to_bytes(2, "big")
            head[l3 + 10 : l3 + 12] = bytes(2)
            head[l3 + 10 : l3 + 12] = checksum(bytes(head[l3:start])).to_bytes(2, "big")
        else:
            head[l3 + 4 : l3 + 6] = (total - l3 - 40).to_bytes(2, "big")
        sequence = (int.from_bytes(head[start + 4 : start + 8], "big") + i * header.gso_size) & 0xFFFFFFFF
        head[start + 4 : start + 8] = sequence.to_bytes(4, "big")
        if i < len(pieces) - 1:
            head[start + 13] &= ~0x09
        if i:
            head[start + 13] &= ~0x80
        lengths = [((len(frame) - start & 0xFFFF) ^ 0xFFFF), total - start, field]
        pseudo = ones_sum(b"".join(value.to_bytes(2, "big") for value in lengths))
        head[start + 16 : start + 18] = pseudo.to_bytes(2, "big")
        segment = bytes(head) + piece
        segments.append(segment if partial else complete(segment, header))
    return segments


def delivered(frame: bytes, header: Header, features: int) -> list[tuple[Header, bytes]]:
    """Tell what a receiver that agreed on `features` gets of a frame that is in order."""
    bears = has(features, GUEST_CSUM)
    if not header.flags & NEEDS_CSUM:
        return [(Header(), frame)]
    plain = Header(NEEDS_CSUM, 0, 0, 0, header.csum_start, header.csum_offset)
    if header.gso:
        size = header.csum_start + (frame[header.csum_start + 12] >> 4) * 4
        if len(frame) - size > header.gso_size:
            takes = has(features, GUEST_TSO4 if header.gso & 0x7F == TCP4 else GUEST_TSO6)
            if takes and (not header.gso & ECN or has(features, GUEST_ECN)):
                whole = Header(NEEDS_CSUM, header.gso, size, header.gso_size, header.csum_start, header.csum_offset)
                return [(whole, frame)]
            return [(plain if bears else Header(), segment) for segment in cut(frame, header, bears)]
    return [(plain, frame)] if bears else [(Header(), complete(frame, header))]


# Chains.

Descriptor = tuple[int, int, int, int]  # address, length, flags, next
NEXT, WRITE, INDIRECT_FLAG = 1, 2, 4


def walk(
    table: list[Descriptor],
    head: int,
    write: bool,
    features: int,
    read: Callable[[int, int], bytes | None],
    enough: float = float("inf"),
    limit: int = (1 << 32) - 1,
) -> tuple[str | None, list[tuple[int, int]]]:
    """Follow a chain: what is wrong with it, or None; the parts that it names, by address and length."""
    size = len(table)
    at, steps, written, inner = head, 0, False, False
    parts: list[tuple[int, int]] = []
    while True:
        if at >= len(table):
            return "next", parts
        if steps == len(table):
            return "loop", parts
        steps += 1
        address, length, flags, following = table[at]
        if flags & INDIRECT_FLAG:
            if inner or flags & NEXT or not has(features, INDIRECT) or length % 16 or not 0 < length // 16 <= size:
                return "indirect", parts
            rows = [read(address + 16 * i, 16) for i in range(length // 16)]
            table = [struct.unpack("<QIHH", row) if row is not None else (-1, 0, 0, 0) for row in rows]
            at, steps, inner = 0, 0, True
            continue
        if address < 0:
            return "indirect", parts
        if bool(flags & WRITE) != write:
            return "order" if written and write else "direction", parts
        written |= bool(flags & WRITE)
        parts.append((address, length))
        total = sum(length for _, length in parts)
        if total > limit:
            return "too-long", parts
        if length and read(address, length) is None:
            return "unmapped", parts
        if not flags & NEXT or total >= enough:
            return None, parts
        at = following
