"""The slow, obvious twin of receive: what a frame is, and what the driver finds in its descriptors.

Spec: 82576 datasheet, sections on receive descriptors, packet type, checksum offload, header split and RSS.
"""

from __future__ import annotations

from dataclasses import dataclass

from reference.csum import ones_sum, toeplitz

V4, V4_OPTIONS, V6, V6_EXTENDED, TCP, UDP, SCTP = 4, 5, 6, 7, 8, 9, 10  # packet type, bits of the first word
UDPCS, L4CS, IPCS, L4E, IPE = 4, 5, 6, 29, 30  # status and errors, bits of the third
EXTENSIONS = {0, 43, 44, 60}


@dataclass(frozen=True)
class Offloads:
    """What the port is asked to look at. fields: RSS fields, numbered as in MRQC from bit 16."""

    ip: bool = True
    l4: bool = True
    rss: bool = False
    fields: int = 0
    key: bytes = bytes(40)


@dataclass
class Kind:
    """What a frame is found to be."""

    packet: frozenset[int] = frozenset()
    status: frozenset[int] = frozenset()
    rss_type: int = 0
    digest: int = 0


def classify(frame: bytes, start: int, want: Offloads) -> Kind:
    """Look into a frame whose network header begins at `start`, behind its ether type."""
    ethertype = frame[start - 2 : start]
    if ethertype == b"\x08\x00":
        return _ipv4(frame[start:], want)
    if ethertype == b"\x86\xdd":
        return _ipv6(frame[start:], want)
    return Kind()


def _ipv4(packet: bytes, want: Offloads) -> Kind:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return Kind()
    header = (packet[0] & 15) * 4
    total = int.from_bytes(packet[2:4], "big")
    if header < 20 or total < header or total > len(packet):
        return Kind(frozenset({V4}))
    kind = Kind(frozenset({V4} if header == 20 else {V4, V4_OPTIONS}))
    if want.ip:
        good = ones_sum(packet[:header]) == 0xFFFF
        kind.status = frozenset({IPCS} if good else {IPCS, IPE})
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF != 0
    return _transport(kind, packet[12:20], packet[9], packet[header:total], fragment, want, (2, 1, 7), (1, 0, 6))


def _ipv6(packet: bytes, want: Offloads) -> Kind:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return Kind()
    total = 40 + int.from_bytes(packet[4:6], "big")
    if total > len(packet):
        return Kind(frozenset({V6}))
    kind = Kind(frozenset({V6, V6_EXTENDED} if packet[6] in EXTENSIONS else {V6}))
    return _transport(kind, packet[8:40], packet[6], packet[40:total], False, want, (5, 3, 8), (4, 5, 7))


def _transport(
    kind: Kind, addresses: bytes, protocol: int, payload: bytes, fragment: bool, want: Offloads,
    types: tuple[int, int, int], enables: tuple[int, int, int],
) -> Kind:  # fmt: skip
    """Look at what IP carries. types: RSS types of the network layer, TCP, UDP; enables: their bits in MRQC."""
    rss_type, hashed = types[0], addresses
    covered = 0
    if not fragment and protocol == 6 and len(payload) >= 20:
        kind.packet |= {TCP}
        covered = len(payload)
        if want.fields >> enables[1] & 1:
            rss_type, hashed = types[1], addresses + payload[:4]
    elif not fragment and protocol == 17 and len(payload) >= 8:
        kind.packet |= {UDP}
        length = int.from_bytes(payload[4:6], "big")
        if payload[6:8] != b"\0\0" and 8 <= length <= len(payload):
            covered = length
        if want.fields >> enables[2] & 1:
            rss_type, hashed = types[2], addresses + payload[:4]
    elif not fragment and protocol == 132 and len(payload) >= 12:
        kind.packet |= {SCTP}
    if covered and want.l4:
        pseudo = addresses + bytes([0, protocol]) + covered.to_bytes(2, "big")
        good = ones_sum(pseudo + payload[:covered]) == 0xFFFF
        kind.status |= {L4CS} | ({UDPCS} if protocol == 17 else set()) | (set() if good else {L4E})
    if want.rss and (rss_type != types[0] or want.fields >> enables[0] & 1):
        kind.rss_type, kind.digest = rss_type, toeplitz(want.key, hashed)
    return kind


def header_end(frame: bytes) -> int:
    """Where an IP frame's headers end, transport's included; 0 for anything else."""
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    ethertype = frame[at - 2 : at]
    rest = frame[at:]
    if ethertype == b"\x08\x00" and len(rest) >= 20 and rest[0] & 15 >= 5:
        end, protocol = (rest[0] & 15) * 4, rest[9]
        if int.from_bytes(rest[6:8], "big") & 0x3FFF:
            protocol = -1
    elif ethertype == b"\x86\xdd" and len(rest) >= 40:
        end, protocol = 40, rest[6]
    else:
        return 0
    if protocol == 6 and len(rest) >= end + 20:
        end += (rest[end + 12] >> 4) * 4
    elif protocol == 17 and len(rest) >= end + 8:
        end += 8
    return at + end


def pieces(frame: bytes, layout: int, packet_room: int, header_room: int) -> list[tuple[bytes, bytes]]:
    """Cut a frame into what each descriptor's header and packet buffer hold."""
    split = 0
    if layout >= 2 and header_room:
        end = header_end(frame)
        if 0 < end <= min(header_room, len(frame)):
            split = end
        elif layout == 5:
            split = min(header_room, len(frame))
    body = frame[split:]
    cuts = [body[i : i + packet_room] for i in range(0, len(body), packet_room)] or [b""]
    return [(frame[:split] if i == 0 else b"", cut) for i, cut in enumerate(cuts)]
