"""Receive, case by case: empty rings, queues, copies for several pools, descriptors that cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import pytest

from reference.csum import toeplitz
from unit.nicrig import HEADER, Rig, ether, mac, tagged
from unit.packets import UDP, ipv4, ipv6, wrap
from virtfn.kernels.csum import toeplitz_key
from virtfn.kernels.i82576.port import WIRE_STALL

ALL = (1 << 48) - 1
KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


@pytest.fixture
def b() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def to(n: int, size: int = 100, mark: int = 0) -> bytes:
    return ether(mac(n), mac(12), payload=bytes([mark]), size=size)


# Rings without descriptors.


@pytest.mark.parametrize("how", ["drop_en", "qde"])
def test_a_queue_that_may_drop_holds_nobody_up(b: Rig, how: str) -> None:
    b.set(drop_queues=0b10 if how == "qde" else 0)
    b.open_rx(1, drop=how == "drop_en", fill=1)
    b.open_rx(2)
    assert b.wire(to(1), to(1), to(2))[0] == 3
    assert [len(b.frames(q)) for q in (1, 2)] == [1, 1]
    assert (b.drops(), b.counter("rnbc"), int(b.nic["rx"][1]["drops"])) == ({(1, "no-descriptor"): 1}, 1, 1)


def test_a_queue_that_may_not_drop_holds_the_line_up(b: Rig) -> None:
    b.open_rx(1, drop=False, fill=0)
    b.open_rx(2)
    b.open_tx(3)
    b.send(3, ether(mac(2), mac(3), size=80))
    batch = to(2, mark=1), to(1), to(2, mark=2)
    assert b.wire(*batch) == (1, 1)
    assert b.port["stalled"] == WIRE_STALL
    assert b.wire(*batch, first=1)[0] == 0
    assert b.serve() == (0, 0)
    assert [f.data for f in b.frames(2)] == [to(2, mark=1)]
    b.refill(1, 1)
    assert b.wire(*batch, first=1)[0] == 2
    b.serve()
    assert [f.data for f in b.frames(1)] == [to(1)]
    assert [f.data for f in b.frames(2)] == [to(2, mark=2), ether(mac(2), mac(3), size=80)]
    assert (b.counter("gprc"), b.counter("tpr"), b.counter("rpthc"), b.drops()) == (3, 3, 4, {})


@pytest.mark.parametrize("off", [{"rx_pools": 0xFD}, {"rx_enable": 0}])
def test_a_pool_that_is_switched_off_lets_the_line_go(b: Rig, off: dict[str, int]) -> None:
    b.open_rx(1, drop=False, fill=0)
    b.wire(to(1))
    b.set(**off)
    b.refill(1, 3)
    assert b.wire(to(1))[0] == 1
    assert (int(b.port["stalled"]), b.frames(1)) == (0, [])


def test_a_broadcast_that_waits_for_one_pool_reaches_the_others_once(b: Rig) -> None:
    frame = tagged(ether(ALL, mac(12), size=100), 0xA005)
    b.set(rx_pools=0b1110, strip_replicated=1)
    b.open_rx(1)
    b.open_rx(2, drop=False, fill=0)
    b.open_rx(3)
    assert b.wire(frame)[0] == 0
    assert b.wire(frame)[0] == 0
    b.refill(2, 1)
    assert b.wire(frame)[0] == 1
    for q in (1, 2, 3):
        (got,) = b.frames(q)  # the same offload for each, though the last to wait was alone
        assert (got.data, got.first.vlan, got.status) == (frame[:12] + frame[16:], 0xA005, 0b1011)
        assert [b.stat(q, name) for name in ("gprc", "gorc", "mprc")] == [1, 108, 1]
    assert (b.counter("gprc"), b.counter("bprc"), b.counter("rpthc")) == (1, 1, 3)


def test_a_frame_that_no_ring_of_this_size_could_hold_is_dropped(b: Rig) -> None:
    b.pool(1, max_frame=16383)
    b.open_rx(1, 8, kib=1, drop=False, fill=7)
    assert b.wire(to(1, 7 * 1024))[0] == 1
    assert [len(f.descriptors) for f in b.frames(1)] == [7]
    b.refill(1, 2)
    assert b.wire(to(1, 7 * 1024 + 1), to(1))[0] == 2
    assert b.drops() == {(1, "oversize"): 1}
    assert [f.data for f in b.frames(1)] == [to(1)]


def test_a_frame_waits_until_there_is_room_for_all_of_it(b: Rig) -> None:
    b.pool(1, max_frame=16383)
    b.open_rx(1, 8, kib=1, drop=False, fill=2)
    assert b.wire(to(1, 3000))[0] == 0
    assert b.done(1) == []
    b.refill(1, 1)
    assert b.wire(to(1, 3000))[0] == 1
    (got,) = b.frames(1)
    assert (got.data, [len(d.data) for d in got.descriptors]) == (to(1, 3000), [1024, 1024, 952])


def test_the_ring_wraps(b: Rig) -> None:
    b.open_rx(1, 8, layout=5, header=64, kib=1)
    for k in range(30):
        assert b.wire(to(1, 700, k), to(1, 70, k))[0] == 2
        assert [f.data for f in b.frames(1)] == [to(1, 700, k), to(1, 70, k)]
        b.refill(1, 2)
    assert b.head(0, 1) == 60 % 8


# Which queue.


@pytest.mark.parametrize("rsse", [0, 1])
@pytest.mark.parametrize("packet", [ipv4(6, b"x"), ipv6(UDP, b"y"), ipv4(1, b"ping")], ids=["tcp4", "udp6", "icmp"])
def test_rss_chooses_among_the_two_queues_of_a_pool(b: Rig, rsse: int, packet: bytes) -> None:
    b.nic["rss_key"][:] = toeplitz_key(KEY)
    b.set(rss=1, rss_fields=0xB3, rss_in_descriptor=1)
    b.pool(1, rsse=rsse)
    b.open_rx(1)
    b.open_rx(9)
    wide = packet[0] >> 4 == 6
    addresses = packet[8:40] if wide else packet[12:20]
    ports = b"" if packet[9:10] == b"\x01" and not wide else packet[40:44] if wide else packet[20:24]
    digest = toeplitz(KEY, addresses + ports)
    for entry in (0, 1):
        b.nic["reta"][:] = 1 - entry
        b.nic["reta"][digest & 0x7F] = entry
        b.wire(wrap(packet), to(1))
        wanted = [1, 1] if rsse and entry else [2, 0]
        got = [b.frames(q) for q in (1, 9)]
        assert [len(g) for g in got] == wanted
        one = got[1][0] if rsse and entry else got[0][0]
        assert one.first.q0 >> 32 == digest
    assert b.counter("rpthc") == 4


def test_hash_stays_out_of_the_descriptor_without_pcsd(b: Rig) -> None:
    b.nic["rss_key"][:] = toeplitz_key(KEY)
    b.set(rss=1, rss_fields=0xFF)
    b.open_rx(1)
    b.wire(wrap(ipv4(6, b"x")))
    assert b.frames(1)[0].first.q0 >> 32 == 0


def test_rss_without_pools_spreads_over_sixteen_queues(b: Rig) -> None:
    b.nic["rss_key"][:] = toeplitz_key(KEY)
    b.set(vmdq=0, rss=1, rss_fields=0xFF, max_frame=1518, max_tagged=1522)
    b.set_macs({mac(1): 1})
    for q in range(16):
        b.nic["rx"][q]["pool"] = 0
        b.open_rx(q)
    digest = toeplitz(KEY, ipv4(6, b"x")[12:24])
    for entry in (0, 7, 15):
        b.nic["reta"][digest & 0x7F] = 0xF0 | entry
        b.wire(wrap(ipv4(6, b"x")))
        assert [len(b.frames(q)) for q in range(16)] == [int(q == entry) for q in range(16)]


# Tags.


@pytest.mark.parametrize(("replicate", "dst", "stripped"), [(1, ALL, True), (0, ALL, False), (1, mac(1), False)])
def test_rplolr_rules_replicated_frames_only(b: Rig, replicate: int, dst: int, stripped: bool) -> None:
    b.set(replicate=replicate, strip_replicated=1, rx_pools=0b10, bam_pools=0b10)
    b.open_rx(1)
    frame = tagged(ether(dst, mac(12), size=100), 0xE005)
    b.wire(frame)
    (got,) = b.frames(1)
    assert (len(got.data) == 100) == stripped
    assert (got.first.vlan, got.status >> 3 & 1) == ((0xE005, 1) if stripped else (0, 0))


def test_two_pools_with_one_address_are_a_replication(b: Rig) -> None:
    b.set_macs({mac(1): 0b110})
    b.set(strip_replicated=1)
    b.open_rx(1)
    b.open_rx(2)
    b.wire(tagged(to(1), 5))
    assert [len(b.frames(q)[0].data) for q in (1, 2)] == [100, 100]


def test_an_outer_tag_of_another_kind_is_no_tag(b: Rig) -> None:
    b.pool(1, strip=1)
    b.open_rx(1)
    b.wire(tagged(to(1), 5, vet=0x88A8))
    b.set(tag_kind=0xA888, inner_kind=0xA888)
    b.wire(tagged(to(1), 5, vet=0x88A8), tagged(to(1), 5))
    assert [len(f.data) for f in b.frames(1)] == [104, 100, 104]


# Oversize, undersize.


def test_roc_counts_a_frame_that_no_pool_takes_once(b: Rig) -> None:
    b.set(rx_pools=0b111)
    for q in range(3):
        b.open_rx(q)
        b.pool(q, max_frame=1000)
    frame = ether(ALL, mac(12), size=1200)
    b.wire(frame)
    assert (b.counter("roc"), b.drops()) == (1, {(q, "oversize"): 1 for q in range(3)})
    b.pool(2, max_frame=1518)
    b.wire(frame)
    assert (b.counter("roc"), len(b.frames(2))) == (1, 1)


@pytest.mark.parametrize(("size", "counter"), [(0, "ruc"), (13, "ruc"), (9725, "roc")])
def test_frames_that_are_none(b: Rig, size: int, counter: str) -> None:
    b.open_rx(1)
    b.wire(to(1, 20000)[:size], to(1))
    assert len(b.frames(1)) == 1
    assert (b.counter(counter), b.counter("gprc"), b.counter("tpr")) == (1, 1, 2)


# Memory that the IOMMU refuses.


def test_refused_buffer_uses_its_descriptor_and_harms_nobody(b: Rig) -> None:
    """A posted write has no answer: the descriptor is written back as ever, the fault is the IOMMU's to tell."""
    b.open_rx(1)
    packet, _ = b.places(1, 0)
    b.protect(1, packet, 1)
    assert b.wire(to(1, 1500), to(1))[0] == 2
    assert b.drops() == {(1, "dma-fault"): 1}
    first, second = b.done(1)
    assert set(first.data) == {0xEE}
    assert (second.data, b.stat(1, "gprc"), b.counter("rpthc")) == (to(1), 1, 1)
    assert b.faults == 1
    assert b.port["eicr"] & 2


@pytest.mark.parametrize("layout", [5, 0])
def test_refused_header_or_legacy_buffer(b: Rig, layout: int) -> None:
    b.open_rx(1, layout=layout, header=128 if layout else 0)
    b.protect(1, HEADER if layout else b.places(1, 0)[0], 1)
    b.wire(to(1, 1000))
    assert b.drops() == {(1, "dma-fault"): 1}
    assert (b.head(0, 1), b.stat(1, "gprc"), int(b.port["eicr"]) & 2) == (1, 0, 2)


def test_refused_ring_stops_the_queue_only(b: Rig) -> None:
    b.open_rx(1)
    b.open_rx(2)
    b.protect(1, b.ring(0, 1), 1)
    b.wire(to(1), to(1), to(2))
    assert b.drops() == {(1, "dma-fault"): 1, (1, "queue-disabled"): 1}
    assert len(b.frames(2)) == 1
    b.protect(1, b.ring(0, 1), 3)
    b.regs[0, 1, 10] = 1 << 25
    b.wire(to(1))
    assert len(b.frames(1)) == 1


def test_a_frame_is_recorded_once_at_every_interface(b: Rig) -> None:
    b.set(capture=1, rx_pools=0b110)
    b.open_rx(1)
    b.open_rx(2)
    frame = ether(ALL, mac(12), size=1400)
    b.wire(frame, to(1))
    assert b.captured(8, outbound=False) == [frame, to(1)]
    assert b.captured(1, outbound=False) == [frame, to(1)]
    assert b.captured(2, outbound=False) == [frame]


def test_what_a_descriptor_says(b: Rig) -> None:
    b.set(rx_ip_checksum=1, rx_l4_checksum=1)
    b.open_rx(1)
    b.wire(wrap(ipv4(UDP, b"hello", options=bytes([1] * 4))))
    (done,) = b.frames(1)[0].descriptors
    assert astuple(done)[:2] == (1 << 4 | 1 << 5 | 1 << 9, 51 << 32 | 0b1110011)


@pytest.mark.parametrize("general", [False, True])
def test_without_pools_all_that_is_received_is_counted_for_one(b: Rig, general: bool) -> None:
    for q in range(8):
        b.open_rx(q)
    b.set(vmdq=0, rss=1, upe=1, rss_fields=0xFFFF)
    if general:
        b.set(wire_ps_per_byte=1)
    b.nic["reta"][:] = 3
    packet = bytes([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 99, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    b.wire(ether(mac(15), mac(5), 0x0800, packet, 60), now=10**12)
    assert [q for q in range(8) if b.frames(q)] == [3]
    assert [b.stat(n, "gprc") for n in range(8)] == [1, *[0] * 7]
