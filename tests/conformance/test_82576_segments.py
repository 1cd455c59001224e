"""Large sends: what differs from segment to segment. Spec: 82576 datasheet, section "TCP/UDP Segmentation"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.pooled import DATA, Pooled, mac
from reference.csum import ones_sum
from unit.nicrig import IXSM, TCP, TSE, TXSM, UDP, VLE, context, data
from unit.packets import ipv4, ipv6, pseudo, wrap
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import DTXTCPFLGH, DTXTCPFLGL

MSS = 100
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, NS = (1 << bit for bit in range(9))
ALL = 0xFFF  # the reserved ones included


@pytest.fixture
def rig() -> Iterator[Pooled]:
    made = Pooled(2)
    yield made
    made.close()


def cut(rig: Pooled, frame: bytes, header: int, *, l4t: int = TCP, v4: bool = True, vlan: int | None = None) -> None:
    """Have a frame of VF 0 cut into segments; IXSM and TXSM ask for all checksums."""
    iplen, l4len = 20 if v4 else 40, header - 14 - (20 if v4 else 40)
    flags = 0x2B << 24 | TSE | TXSM | IXSM * v4 | VLE * (vlan is not None)
    rig.store(rig.bases[0] + DATA, frame)
    rig.post(
        0,
        context(iplen=iplen, l4len=l4len, mss=MSS, l4t=l4t, v4=v4, vlan=vlan or 0),
        data(DATA, len(frame), flags, len(frame) - header),
    )


def large(packet: bytes, protocol: int, l4: int, place: int) -> bytes:
    """Make a frame to VF 1 as drivers prepare large sends: the pseudo-header's sum, without length, as checksum."""
    frame = bytearray(wrap(packet, src=int.from_bytes(mac(0), "little")))
    frame[:6] = mac(1)
    addresses = bytes(frame[26:34]) if l4 == 34 else bytes(frame[22:54])
    frame[l4 + place : l4 + place + 2] = ones_sum(pseudo(addresses, protocol, 0)).to_bytes(2, "big")
    return bytes(frame)


def tcp_frame(flags: int, size: int = 300) -> bytes:
    frame = bytearray(large(ipv4(6, bytes(range(250)) + bytes(size - 250), ident=0xFFFE), 6, 34, 16))
    frame[46:48] = (5 << 12 | flags).to_bytes(2, "big")
    return bytes(frame)


def sums_hold(frame: bytes, l4: int, protocol: int) -> bool:
    addresses = frame[26:34] if l4 == 34 else frame[22:54]
    whole = pseudo(addresses, protocol, len(frame) - l4) + frame[l4:]
    return ones_sum(whole) == 0xFFFF and (l4 != 34 or ones_sum(frame[14:34]) == 0xFFFF)


def flags_of(rig: Pooled) -> list[int]:
    words = [int.from_bytes(f.body[46:48], "big") for f in rig.got(1)]
    assert all(word >> 12 == 5 for word in words)
    return [word & ALL for word in words]


def test_at_reset_cwr_goes_first_and_fin_and_psh_go_last(rig: Pooled) -> None:
    assert (rig.get(Regs.DTXTCPFLGL), rig.get(Regs.DTXTCPFLGH)) == (0x0F760FF6, 0x00000F7F)
    cut(rig, tcp_frame(ALL), 54)
    assert flags_of(rig) == [ALL & ~(FIN | PSH), ALL & ~(FIN | PSH | CWR), ALL & ~CWR]


@pytest.mark.parametrize("flag", [1 << bit for bit in range(12)])
def test_each_flag_by_itself(rig: Pooled, flag: int) -> None:
    cut(rig, tcp_frame(flag), 54)
    first, last, always = flag == CWR, flag in (FIN, PSH), flag not in (CWR, FIN, PSH)
    assert flags_of(rig) == [flag * (first or always), flag * always, flag * (last or always)]


@pytest.mark.parametrize("kept", [(0, 0, 0), (ALL, ALL, ALL), (SYN, RST, URG | NS), (ACK, FIN, 0x800 | CWR | ECE)])
def test_the_mask_registers_rule_first_middle_and_last(rig: Pooled, kept: tuple[int, int, int]) -> None:
    first, middle, last = kept
    rig.set(Regs.DTXTCPFLGL, DTXTCPFLGL.of(FIRST=first, MIDDLE=middle).value)
    rig.set(Regs.DTXTCPFLGH, DTXTCPFLGH.of(LAST=last).value)
    cut(rig, tcp_frame(ALL, 450), 54)
    assert flags_of(rig) == [first, middle, middle, middle, last]


def test_one_segment_is_first_and_last(rig: Pooled) -> None:
    frame = bytearray(large(ipv4(6, bytes(MSS)), 6, 34, 16))
    frame[47] = 0xFF
    cut(rig, bytes(frame), 54)
    assert [f.body[47] for f in rig.got(1)] == [0xFF]


def test_two_segments_have_no_middle(rig: Pooled) -> None:
    frame = bytearray(large(ipv4(6, bytes(MSS + 1)), 6, 34, 16))
    frame[47] = 0xFF
    cut(rig, bytes(frame), 54)
    assert [f.body[47] for f in rig.got(1)] == [0xFF & ~(FIN | PSH), 0xFF & ~CWR]


def test_what_else_differs_between_segments_of_tcp_over_ipv4(rig: Pooled) -> None:
    cut(rig, tcp_frame(ACK | PSH, 300), 54)
    got = [f.body for f in rig.got(1)]
    # Total length, identification over its wrap, sequence number; all sums right.
    assert [int.from_bytes(b[16:18], "big") for b in got] == [140, 140, 140]
    assert [int.from_bytes(b[18:20], "big") for b in got] == [0xFFFE, 0xFFFF, 0]
    assert [int.from_bytes(b[38:42], "big") - 0x01020304 for b in got] == [0, 100, 200]
    assert b"".join(b[54:] for b in got) == bytes(range(250)) + bytes(50)
    assert all(sums_hold(b, 34, 6) for b in got)


def test_segments_of_tcp_over_ipv6(rig: Pooled) -> None:
    frame = large(ipv6(6, bytes(range(250))), 6, 54, 16)
    cut(rig, frame, 74, v4=False)
    got = [f.body for f in rig.got(1)]
    assert [int.from_bytes(b[18:20], "big") for b in got] == [120, 120, 70]
    assert all(sums_hold(b, 54, 6) for b in got)
    assert b"".join(b[74:] for b in got) == bytes(range(250))


@pytest.mark.parametrize("v4", [True, False])
def test_segments_of_udp_are_datagrams(rig: Pooled, v4: bool) -> None:
    packet, l4 = (ipv4(17, bytes(range(250)), ident=5), 34) if v4 else (ipv6(17, bytes(range(250))), 54)
    cut(rig, large(packet, 17, l4, 6), l4 + 8, l4t=UDP, v4=v4)
    got = [f.body for f in rig.got(1)]
    assert [int.from_bytes(b[l4 + 4 : l4 + 6], "big") for b in got] == [108, 108, 58]
    assert not v4 or [int.from_bytes(b[18:20], "big") for b in got] == [5, 6, 7]
    assert all(sums_hold(b, l4, 17) for b in got)
    # UDP has no flags: what lies where TCP has them is payload.
    assert b"".join(b[l4 + 8 :] for b in got) == bytes(range(250))


def test_every_segment_has_the_tag(rig: Pooled) -> None:
    cut(rig, tcp_frame(ACK), 54, vlan=0x6005)
    got = [f.body for f in rig.got(1)]
    assert [b[12:16].hex() for b in got] == ["81006005"] * 3
    assert [int.from_bytes(b[20:22], "big") for b in got] == [140, 140, 140]
