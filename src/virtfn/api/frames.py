"""What the frames of a bench look like, by kind of traffic.

like        one local ether type, one receiver
receivers   the same, to four receivers in turn
ipv4-udp    IPv4 and UDP in 64 flows, one receiver; checksums asked for and judged, flows hashed
ipv6-tcp    the same with IPv6 and TCP
tagged      as ipv4-udp, in a VLAN whose tag the card inserts
imix        as ipv4-udp, 64, 594 and 1518 bytes at 7:4:1, 256 flows, four receivers
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from virtfn.hw.eth import FCS_BYTES, HEADER_BYTES, IPV4, IPV6, LOCAL_EXPERIMENT, MIN_FRAME, VLAN, VLAN_BYTES
from virtfn.hw.types import Mac

__all__ = ["IMIX", "TCP", "TRAFFIC", "Frame", "Traffic", "make_frame"]

_UDP, TCP = 17, 6
IMIX = (64, 594, 64, 64, 594, 64, 64, 594, 64, 64, 594, 1518)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A kind of traffic. words: for people. protocol: of IP, 0 for none. tag: of a VLAN, 0 for none."""

    name: str
    words: str
    receivers: int = 1
    flows: int = 1
    ip: int = 0
    protocol: int = 0
    tag: int = 0

    @property
    def least(self) -> int:
        """Bytes of the shortest frame, with frame check sequence."""
        return max(MIN_FRAME, self.start + (20 if self.protocol == TCP else 8)) + FCS_BYTES

    @property
    def start(self) -> int:
        """Bytes before the transport header, without a tag."""
        return HEADER_BYTES + (40 if self.ip == IPV6 else 20 if self.ip else 0)

    @property
    def arrives(self) -> int:
        """Ether type of what arrives."""
        return VLAN if self.tag else self.ip or LOCAL_EXPERIMENT


TRAFFIC = {
    traffic.name: traffic
    for traffic in (
        Traffic("like", "one local ether type, one receiver"),
        Traffic("receivers", "the same, to 4 receivers in turn", receivers=4),
        Traffic("ipv4-udp", "IPv4/UDP, 64 flows, checksums and hash", flows=64, ip=IPV4, protocol=_UDP),
        Traffic("ipv6-tcp", "IPv6/TCP, 64 flows, checksums and hash", flows=64, ip=IPV6, protocol=TCP),
        Traffic("tagged", "IPv4/UDP in a VLAN, the card inserts tags", flows=64, ip=IPV4, protocol=_UDP, tag=0xA005),
        Traffic(
            "imix", "IPv4/UDP, 64 to 1518 bytes, 256 flows, 4 receivers", receivers=4, flows=256, ip=IPV4, protocol=_UDP
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as its driver gives it to the card, and as it arrives, both without frame check sequence."""

    given: bytes
    arrives: bytes


def _sum(content: bytes) -> int:
    """Internet checksum, not yet complemented. Spec: RFC 1071."""
    total = int.from_bytes(content + bytes(len(content) & 1), "big")
    return total % 0xFFFF or 0xFFFF


def make_frame(traffic: Traffic, size: int, flow: int, source: Mac, target: Mac, rng: random.Random) -> Frame:
    """Make a frame of `size` bytes, with frame check sequence and tag, that belongs to flow number `flow`."""
    length = size - FCS_BYTES - (VLAN_BYTES if traffic.tag else 0)
    addresses = target.to_bytes(6, "little") + source.to_bytes(6, "little")
    start = addresses + (traffic.ip or LOCAL_EXPERIMENT).to_bytes(2, "big")
    if not traffic.ip:
        frame = start + rng.randbytes(length - len(start))
        return Frame(frame, frame)
    bytes_of_segment = length - traffic.start
    ends = [(10 << 24 | host).to_bytes(4, "big") for host in (1, 256 + flow)]
    if traffic.ip == IPV6:
        ends = [bytes((0xFD,)) + bytes(11) + end for end in ends]
    pair = b"".join(ends)
    ports = (1024 + flow).to_bytes(2, "big") + (5201).to_bytes(2, "big")
    pseudo = pair + traffic.protocol.to_bytes(2, "big") + bytes_of_segment.to_bytes(2, "big")
    if traffic.protocol == TCP:
        header = ports + rng.randbytes(8) + bytes((0x50, 0x10, 0xFF, 0xFF)), bytes(2)
    else:
        header = ports + bytes_of_segment.to_bytes(2, "big"), b""
    rest = header[1] + rng.randbytes(bytes_of_segment - len(header[0]) - 2 - len(header[1]))
    asked = _sum(pseudo).to_bytes(2, "big")
    done = (_sum(pseudo + header[0] + bytes(2) + rest) ^ 0xFFFF or 0xFFFF).to_bytes(2, "big")
    ip = _ip_header(traffic, bytes_of_segment, pair)
    tag = VLAN.to_bytes(2, "big") + traffic.tag.to_bytes(2, "big") if traffic.tag else b""
    return Frame(
        start + ip + header[0] + asked + rest,
        addresses + tag + start[12:] + ip + header[0] + done + rest,
    )


def _ip_header(traffic: Traffic, size: int, pair: bytes) -> bytes:
    """Make the header of an IP packet with `size` bytes in it, from and to a `pair` of addresses."""
    if traffic.ip == IPV6:
        return bytes((0x60, 0, 0, 0)) + size.to_bytes(2, "big") + bytes((traffic.protocol, 64)) + pair
    start = bytes((0x45, 0)) + (size + 20).to_bytes(2, "big") + bytes((0, 0, 0x40, 0, 64, traffic.protocol))
    return start + (_sum(start + pair) ^ 0xFFFF).to_bytes(2, "big") + pair
