"""Headers that ask for what cannot be, and what front ends with each set of features get of the same frame."""

from __future__ import annotations

import pytest

from reference.csum import ones_sum
from reference.virtio import ECN, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, MRG, TCP4, TCP6, Header, delivered
from unit.packets import TCP, UDP, ipv4, ipv6, pseudo
from unit.virtiorig import FrontEnd, ether, mac
from virtfn.devices.virtio import OFFERED, Bridge

A, B = mac(0), mac(1)


def partial(packet: bytes, kind: int, protocol: int = TCP, tag: bytes = b"") -> tuple[bytes, int]:
    """Make a frame whose transport checksum is still to be finished; return it, and where that header begins."""
    l4 = 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4
    addresses = packet[8:40] if packet[0] >> 4 == 6 else packet[12:20]
    field = l4 + (16 if protocol == TCP else 6)
    value = ones_sum(pseudo(addresses, protocol, len(packet) - l4))
    packet = packet[:field] + value.to_bytes(2, "big") + packet[field + 2 :]
    whole = B.to_bytes(6, "little") + A.to_bytes(6, "little") + tag + kind.to_bytes(2, "big") + packet
    return whole, 14 + len(tag) + l4


def large(
    size: int = 4000, six: bool = False, tag: bytes = b"", ecn: bool = False, mss: int = 1000
) -> tuple[bytes, Header]:
    payload = bytes(i * 7 & 0xFF for i in range(size))
    packet = ipv6(TCP, payload) if six else ipv4(TCP, payload, options=b"\x01" * 4, tcp_options=b"\x01" * 8)
    frame, l4 = partial(packet, 0x86DD if six else 0x0800, tag=tag)
    frame = frame[: l4 + 13] + bytes([frame[l4 + 13] | (0x80 if ecn else 0)]) + frame[l4 + 14 :]
    kind = (TCP6 if six else TCP4) | (ECN if ecn else 0)
    return frame, Header(1, kind, 200, mss, l4, 16)


class Trio:
    """A sender, and a receiver with given features."""

    def __init__(self, features: int = OFFERED, sender: int = OFFERED) -> None:
        self.bridge = Bridge()
        self.a, self.b = FrontEnd(self.bridge, features=sender), FrontEnd(self.bridge, features=features)
        self.bridge.pin(self.b.port, B)
        for i in range(60):
            self.b.receive_into([(0x1_0000_0000 + 4096 * i, 4096)])

    def send(self, frame: bytes, header: Header) -> list[tuple[Header, bytes]]:
        at = 0x1_0000_0000
        raw = header.pack() + frame
        self.a.memory.write(at, raw)
        self.a.tx.offer(self.a.tx.chain([(at, 7), (at + 7, 50), (at + 57, len(raw) - 57)]))
        self.a.kick()
        self.bridge.serve()
        assert self.a.memory.sound()
        assert self.b.memory.sound()
        return self.b.received()


TSO = 1 << GUEST_TSO4 | 1 << GUEST_TSO6 | 1 << GUEST_ECN
WITHOUT = [0, 1 << GUEST_CSUM | TSO, TSO, 1 << GUEST_ECN, 1 << MRG]


@pytest.mark.parametrize("without", WITHOUT)
@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("tag", [b"", b"\x81\x00\x60\x05", b"\x88\xa8\x00\x01\x81\x00\x60\x05"])
@pytest.mark.parametrize("ecn", [False, True])
def test_a_large_send_goes_whole_or_in_segments(without: int, six: bool, tag: bytes, ecn: bool) -> None:
    features = OFFERED & ~without
    frame, header = large(2900, six, tag, ecn)
    got = Trio(features).send(frame, header)
    assert got == delivered(frame, header, features)
    assert len(got) == (1 if not without or without == 1 << MRG or (without == 1 << GUEST_ECN and not ecn) else 3)


@pytest.mark.parametrize("bears", [False, True])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_checksum_is_finished_only_for_who_does_not_bear_it_open(bears: bool, protocol: int) -> None:
    features = OFFERED if bears else OFFERED & ~WITHOUT[1]
    frame, l4 = partial(ipv4(protocol, b"odd payload"), 0x0800, protocol)
    header = Header(1, 0, 0, 0, l4, 16 if protocol == TCP else 6)
    t = Trio(features)
    ((got, content),) = t.send(frame, header)
    assert [(got, content)] == delivered(frame, header, features)
    assert got.flags == int(bears)
    assert content == frame if bears else content != frame
    copies = t.a.back.costs()["copies"], t.b.back.costs()["copies"]
    assert copies == (0 if bears else 1, 1)


def test_the_largest_frame_crosses_by_one_copy() -> None:
    frame, header = large(65000, mss=1448)
    t = Trio()
    assert t.send(frame, header) == delivered(frame, header, OFFERED)
    assert t.a.back.costs()["copies"] + t.b.back.costs()["copies"] == 1


def test_what_is_not_longer_than_a_segment_is_not_cut() -> None:
    frame, header = large(900)
    assert Trio().send(frame, header) == [(Header(1, 0, 0, 0, header.csum_start, 16), frame)]


SMALL, L4 = partial(ipv4(TCP, bytes(100)), 0x0800)
LARGE, GOOD = large()
BAD = {
    "place behind the end": (SMALL, Header(1, 0, 0, 0, len(SMALL) - 17, 16), "checksum"),
    "start 65535": (SMALL, Header(1, 0, 0, 0, 65535, 65535), "checksum"),
    "offset 65535": (SMALL, Header(1, 0, 0, 0, 34, 65535), "checksum"),
    "no MSS": (LARGE, Header(1, TCP4, 0, 0, GOOD.csum_start, 16), "segmentation"),
    "MSS 1": (LARGE, Header(1, TCP4, 0, 1, GOOD.csum_start, 16), "segmentation"),
    "no open checksum": (LARGE, Header(0, TCP4, 0, 1000, GOOD.csum_start, 16), "segmentation"),
    "other family": (LARGE, Header(1, TCP6, 0, 1000, GOOD.csum_start, 16), "segmentation"),
    "UDP's place": (LARGE, Header(1, TCP4, 0, 1000, GOOD.csum_start, 6), "segmentation"),
    "start elsewhere": (LARGE, Header(1, TCP4, 0, 1000, GOOD.csum_start + 4, 16), "segmentation"),
    "start far away": (LARGE, Header(1, TCP4, 0, 1000, 3000, 16), "segmentation"),
    "kind 2": (LARGE, Header(1, 2, 0, 1000, GOOD.csum_start, 16), "not-negotiated"),
    "UFO": (LARGE, Header(1, 3, 0, 1000, GOOD.csum_start, 16), "not-negotiated"),
    "USO": (LARGE, Header(1, 5, 0, 1000, GOOD.csum_start, 16), "not-negotiated"),
    "ECN alone": (LARGE, Header(1, ECN, 0, 1000, GOOD.csum_start, 16), "not-negotiated"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_asks_for_what_cannot_be_is_dropped_and_counted(name: str) -> None:
    frame, header, error = BAD[name]
    t = Trio()
    assert t.send(frame, header) == []
    assert t.a.back.errors() == {error: 1}
    assert t.send(LARGE, GOOD) == delivered(LARGE, GOOD, OFFERED)


@pytest.mark.parametrize("offset", [0, 1, 4, 15])
def test_a_data_offset_that_leads_nowhere_is_dropped(offset: int) -> None:
    l4 = GOOD.csum_start
    frame = LARGE[: l4 + 12] + bytes([offset << 4]) + LARGE[l4 + 13 :]
    t = Trio()
    got = t.send(frame, GOOD)
    assert t.a.back.errors() == ({} if offset == 15 else {"segmentation": 1})
    assert len(got) == (offset == 15)


@pytest.mark.parametrize(("sender", "error"), [(1 << 0, "not-negotiated"), (1 << 11, "not-negotiated")])
def test_an_offload_that_was_not_agreed_on_is_refused(sender: int, error: str) -> None:
    keep = OFFERED & ~sender & ~((1 << 11 | 1 << 12 | 1 << 13) if sender == 1 else 0)
    t = Trio(sender=keep)
    assert t.send(LARGE, GOOD) == []
    assert t.a.back.errors() == {error: 1}


def test_other_flags_of_the_header_are_not_looked_at() -> None:
    frame = ether(B, A, bytes(100))
    assert Trio().send(frame, Header(0xFE, 0, 77, 88, 0xFFFF, 0xFFFF)) == [(Header(), frame)]


def test_segments_without_room_are_dropped_with_the_rest_of_the_frame() -> None:
    bridge = Bridge()
    a, b = FrontEnd(bridge), FrontEnd(bridge, features=OFFERED & ~WITHOUT[1])
    bridge.pin(b.port, B)
    b.fill(2, 1200)
    frame, header = large(4000)
    a.send(frame, header)
    bridge.serve()
    assert b.received() == delivered(frame, header, b.features)[:2]
    assert bridge.drops(b.port) == {"no-buffer": 1}
