"""IP packets in Ethernet frames, and Hypothesis strategies for good, broken and hostile ones."""

from __future__ import annotations

from hypothesis import strategies as st

from reference.csum import checksum, crc32c
from unit.nicrig import ether, mac, tagged

TCP, UDP, SCTP, ICMP = 6, 17, 132, 1


def pseudo(addresses: bytes, protocol: int, length: int) -> bytes:
    return addresses + bytes([0, protocol]) + length.to_bytes(2, "big")


def segment(protocol: int, payload: bytes, addresses: bytes, options: bytes = b"") -> bytes:
    """Make a transport segment with a right checksum. options: of TCP, a multiple of 4 bytes."""
    ports = b"\x12\x34\x00\x50"
    if protocol == TCP:
        words = 5 + len(options) // 4
        raw = (
            ports
            + b"\x01\x02\x03\x04"
            + bytes(4)
            + bytes([words << 4, 0x19])
            + b"\x20\x00"
            + bytes(4)
            + options
            + payload
        )
        value = checksum(pseudo(addresses, TCP, len(raw)) + raw)
        return raw[:16] + value.to_bytes(2, "big") + raw[18:]
    if protocol == UDP:
        raw = ports + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
        value = checksum(pseudo(addresses, UDP, len(raw)) + raw) or 0xFFFF
        return raw[:6] + value.to_bytes(2, "big") + raw[8:]
    if protocol == SCTP:
        raw = ports + bytes(8) + payload
        return raw[:8] + crc32c(raw).to_bytes(4, "little") + raw[12:]
    return payload


def ipv4(
    protocol: int, payload: bytes, *, options: bytes = b"", tcp_options: bytes = b"", fragment: int = 0, ident: int = 7
) -> bytes:
    addresses = bytes([10, 0, 0, 1, 192, 168, 7, 9])
    body = segment(protocol, payload, addresses, tcp_options)
    size = 20 + len(options)
    head = bytes([0x40 | size // 4, 0]) + (size + len(body)).to_bytes(2, "big") + ident.to_bytes(2, "big")
    head += fragment.to_bytes(2, "big") + bytes([64, protocol]) + bytes(2) + addresses + options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def ipv6(protocol: int, payload: bytes, *, tcp_options: bytes = b"") -> bytes:
    addresses = bytes(range(0x20, 0x30)) + bytes(range(0xA0, 0xB0))
    body = segment(protocol, payload, addresses, tcp_options)
    return b"\x60\x00\x00\x00" + len(body).to_bytes(2, "big") + bytes([protocol, 64]) + addresses + body


def wrap(packet: bytes, dst: int = mac(1), src: int = mac(0)) -> bytes:
    return ether(dst, src, 0x0800 if packet[:1] and packet[0] >> 4 == 4 else 0x86DD, packet)


_protocols = st.sampled_from([TCP, UDP, SCTP, ICMP])
_words = st.integers(0, 10).map(lambda n: bytes([1]) * (4 * n))
_payloads = st.one_of(
    st.binary(max_size=80), st.integers(0, 1200).map(lambda n: bytes(i * 31 & 0xFF for i in range(n)))
)

packets = st.one_of(
    st.builds(
        lambda p, b, o, t, f: ipv4(p, b, options=o, tcp_options=t, fragment=f),
        _protocols,
        _payloads,
        _words,
        _words,
        st.sampled_from([0, 0, 0x4000, 0x2000, 0x00B9]),
    ),
    st.builds(
        lambda p, b, t: ipv6(p, b, tcp_options=t), st.sampled_from([TCP, UDP, SCTP, ICMP, 0, 44]), _payloads, _words
    ),
)


@st.composite
def frames(draw: st.DrawFn, dst: int = mac(1), src: int = mac(0)) -> bytes:
    """Frames for pool 1: most are sound IP, some are padded, cut, altered, tagged, or noise."""
    packet = draw(packets)
    frame = wrap(packet, dst, src) + bytes(draw(st.sampled_from([0, 0, 0, 1, 6, 60])))
    if draw(st.integers(0, 3)) == 0 and len(frame) > 14:
        raw = bytearray(frame)
        for _ in range(draw(st.integers(1, 3))):
            raw[draw(st.integers(12, min(len(raw) - 1, 80)))] = draw(st.integers(0, 255))
        frame = bytes(raw)
    if draw(st.integers(0, 5)) == 0:
        frame = frame[: draw(st.integers(14, len(frame)))]
    if draw(st.integers(0, 9)) == 0:
        frame = frame[:12] + draw(st.binary(min_size=2, max_size=80))
    if draw(st.integers(0, 3)) == 0:
        frame = tagged(frame, draw(st.sampled_from([0x0005, 0xE005, 0xFFFF])))
    return frame[:1518]
