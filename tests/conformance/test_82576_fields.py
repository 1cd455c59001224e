"""Fields one by one, from the register to the frame: each test fails if its field is not looked at.

Spec: 82576 datasheet, chapter "Programming Interface", receive registers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.pooled import LPE, ONE_BUFFER, RSSE, VMOLR, Pooled, mac
from conformance.rig import ethernet
from conformance.whole import ENABLE, Whole
from unit.packets import ipv4, ipv6, wrap
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.desc import (
    RSS_IPV4,
    RSS_IPV6,
    RSS_TCP4,
    RSS_TCP6,
    RSS_UDP4,
    RSS_UDP6,
    RXD_ERR_IPE,
    RXD_ERR_L4E,
    RXD_IPCS,
    RXD_L4CS,
    RXD_UDPCS,
)
from virtfn.hw.i82576.fields import CTRL, RxMode
from virtfn.hw.i82576.rxtx import MRQC, RCTL, RETA, RXCSUM, SRRCTL

GROUP = b"\x01\x00\x5e\x01\x02\x03"
PACKETS = {
    "TCP4": ipv4(6, b"x"), "UDP4": ipv4(17, b"x"), "IPV4": ipv4(1, bytes(8)),
    "TCP6": ipv6(6, b"x"), "UDP6": ipv6(17, b"x"), "IPV6": ipv6(58, bytes(8)),
}  # fmt: skip


@pytest.fixture
def whole() -> Iterator[Whole]:
    made = Whole(CTRL.of())
    yield made
    made.close()


@pytest.fixture
def pools() -> Iterator[Pooled]:
    made = Pooled(2)
    yield made
    made.close()


def carrying(packet: bytes) -> bytes:
    return mac(1) + mac(0) + wrap(packet)[12:]


@pytest.mark.parametrize(("ip", "l4"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_rxcsum_asks_for_each_sum(pools: Pooled, ip: int, l4: int) -> None:
    pools.set(Regs.RXCSUM, RXCSUM.of(IPOFLD=ip, TUOFLD=l4).value)
    bad = bytearray(carrying(PACKETS["UDP4"]))
    bad[24] ^= 1  # of the network header's sum
    bad[-1] ^= 1
    pools.send(0, carrying(PACKETS["TCP4"]), bytes(bad))
    good, wrong = (f.status & (RXD_IPCS | RXD_L4CS | RXD_UDPCS | RXD_ERR_IPE | RXD_ERR_L4E) for f in pools.got(1))
    assert good == RXD_IPCS * ip | RXD_L4CS * l4
    assert wrong == (RXD_IPCS | RXD_ERR_IPE) * ip | (RXD_L4CS | RXD_UDPCS | RXD_ERR_L4E) * l4


@pytest.mark.parametrize("pcsd", [0, 1])
def test_rxcsum_pcsd_puts_the_hash_into_the_descriptor(pools: Pooled, pcsd: int) -> None:
    pools.set(Regs.RXCSUM, RXCSUM.of(PCSD=pcsd).value)
    pools.set(Regs.MRQC, MRQC.of(MODE=RxMode.VMDQ_RSS, RSS_TCP4=1).value)
    pools.set(Regs.RSSRK, 0x01020304)
    pools.send(0, carrying(PACKETS["TCP4"]))
    (got,) = pools.got(1)
    assert (got.q0 & 15, got.q0 >> 32 != 0) == (RSS_TCP4, bool(pcsd))


@pytest.mark.parametrize(
    ("field", "kinds"),
    [
        ("RSS_TCP4", {"TCP4": RSS_TCP4}), ("RSS_UDP4", {"UDP4": RSS_UDP4}),
        ("RSS_IPV4", dict.fromkeys(("TCP4", "UDP4", "IPV4"), RSS_IPV4)),
        ("RSS_TCP6", {"TCP6": RSS_TCP6}), ("RSS_UDP6", {"UDP6": RSS_UDP6}),
        ("RSS_IPV6", dict.fromkeys(("TCP6", "UDP6", "IPV6"), RSS_IPV6)),
    ],
)  # fmt: skip
def test_mrqc_names_what_is_hashed(pools: Pooled, field: str, kinds: dict[str, int]) -> None:
    pools.set(Regs.MRQC, MRQC.of(MODE=RxMode.VMDQ_RSS, **{field: 1}).value)
    pools.send(0, *(carrying(packet) for packet in PACKETS.values()))
    assert [f.q0 & 15 for f in pools.got(1)] == [kinds.get(kind, 0) for kind in PACKETS]


@pytest.mark.parametrize("rsse", [0, 1])
@pytest.mark.parametrize("entry", range(4))
def test_reta_and_vmolr_rsse_choose_the_queue(pools: Pooled, entry: int, rsse: int) -> None:
    pools.set(Regs.MRQC, MRQC.of(MODE=RxMode.VMDQ_RSS, RSS_IPV4=1).value)
    pools.set(Regs.VMOLR, VMOLR | RSSE * rsse, 1)
    # The key makes a hash that is the last byte of the packet's destination, which thus is the entry.
    pools.set(Regs.RXCSUM, RXCSUM.of(PCSD=1).value)
    pools.send(0, carrying(PACKETS["IPV4"]))
    pools.got(1)
    pools.set(Regs.RSSRK, 0x80 >> entry, 1)
    pools.send(0, carrying(PACKETS["IPV4"]))
    (got,) = pools.got(1)
    index = got.q0 >> 32 & 0x7F
    name = f"ENTRY{index % 4}"
    pools.set(Regs.RETA, RETA.of(**{name: 1}).value, index // 4)
    pools.send(0, carrying(PACKETS["IPV4"]))
    assert [len(pools.got(1, queue)) for queue in (0, 1)] == [1 - rsse, rsse]


@pytest.mark.parametrize(("code", "size"), [(0, 2048), (1, 1024), (2, 512), (3, 256)])
def test_rctl_bsize_is_the_buffer_where_srrctl_has_none(whole: Whole, code: int, size: int) -> None:
    whole.set(Regs.SRRCTL, ONE_BUFFER & ~SRRCTL.BSIZEPACKET.mask)
    whole.set(Regs.RCTL, RCTL.of(RXEN=1, UPE=1, BSIZE=code).value)
    whole.receive(ethernet(mac(1), 1500))
    lengths = [len(whole.got()[0]) for _ in range(-(-1500 // size))]
    assert lengths == [min(size, 1500 - done) for done in range(0, 1500, size)]


@pytest.mark.parametrize("lpe", [0, 1])
def test_rctl_lpe_and_rlpml_say_how_long_frames_are(whole: Whole, lpe: int) -> None:
    whole.set(Regs.RCTL, RCTL.of(RXEN=1, UPE=1, LPE=lpe).value)
    whole.set(Regs.RLPML, 1604)
    for size in (1601, 1600, 1515, 1514):
        whole.receive(ethernet(mac(1), size))
    assert [len(whole.got()[0]) for _ in range(3)] == ([1600, 1515, 1514] if lpe else [1514, 0, 0])


@pytest.mark.parametrize("lpe", [0, 1])
def test_vmolr_lpe_and_rlpml_say_how_long_a_pools_frames_are(pools: Pooled, lpe: int) -> None:
    pools.set(Regs.VMOLR, VMOLR & ~LPE & ~0x3FFF | LPE * lpe | 1004, 1)
    pools.send(0, *(ethernet(mac(1), size) for size in (1000, 1001, 1514, 1515)))
    assert [len(f.body) for f in pools.got(1)] == ([1000] if lpe else [1000, 1001, 1514])


@pytest.mark.parametrize(("field", "frames"), [("UPE", 1), ("MPE", 2), ("BAM", 3)])
def test_rctl_takes_what_no_address_names(whole: Whole, field: str, frames: int) -> None:
    whole.set(Regs.RCTL, RCTL.of(RXEN=1, **{field: 1}).value)
    whole.receive(ethernet(mac(1)), ethernet(GROUP), ethernet(b"\xff" * 6))
    first = {1: mac(1), 2: GROUP, 3: b"\xff" * 6}[frames]
    assert whole.got()[0][:6] == first
    # Promiscuous for groups takes broadcasts as well.
    assert (whole.got()[0] != b"") == (field == "MPE")


@pytest.mark.parametrize(("mo", "shift"), [(0, 36), (1, 35), (2, 34), (3, 32)])
def test_rctl_mo_says_which_bits_of_an_address_are_its_hash(whole: Whole, mo: int, shift: int) -> None:
    number = int.from_bytes(GROUP, "little") >> shift & 0xFFF
    whole.set(Regs.RCTL, RCTL.of(RXEN=1, MO=mo).value)
    whole.receive(ethernet(GROUP))
    assert whole.got()[0] == b""
    whole.used = 0
    whole.set(Regs.MTA, 1 << (number & 31), number >> 5)
    whole.receive(ethernet(GROUP))
    assert whole.got()[0][:6] == GROUP


def test_a_queue_that_is_off_gets_nothing(whole: Whole) -> None:
    whole.set(Regs.RXDCTL, 0)
    whole.receive(ethernet(mac(1)))
    assert whole.got()[0] == b""
    whole.set(Regs.RXDCTL, ENABLE)
    whole.used = 0
    whole.receive(ethernet(mac(1)))
    assert whole.got()[0] != b""
