"""A limit of what a VF sends is kept over a second, by the world's clock, whatever its frames are and where they go."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from unit.rig import Rig, frame
from unit.saturation import Saturating, Sink
from virtfn.hw.types import Mac, parse_mac
from virtfn.machine.clock import MS_PS, S_PS

ELSEWHERE = parse_mac("02:00:00:00:00:77")
IPV4 = bytes.fromhex("0800 4500 0028 0000 0000 4011 0000 0a000001 0a000002")
IPV6 = bytes.fromhex("86dd 6000 0000 0014 0640") + bytes(31) + b"\x01"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig(ring=1024, memory_mib=16) as made:
        yield made


def frames(to: Mac, source: Mac) -> list[bytes]:
    """Make frames of all sizes, some of which are IP's."""
    sizes = random.Random(1)
    made = []
    for i in range(64):
        size = (60, 1514, sizes.randrange(60, 1515), sizes.randrange(60, 200))[i % 4]
        plain = frame(to, source, length=size)
        made.append((plain[:12] + (plain[12:14], IPV4, IPV6)[i % 3])[:size].ljust(size, b"\0"))
    return made


@pytest.mark.parametrize("way", ["to a VF", "to the wire"])
@pytest.mark.parametrize(("mbps", "late_ms"), [(10, 1), (100, 1), (1000, 1), (10, 10), (100, 10)])
def test_a_rate_is_kept_to_two_hundredths_over_a_second(rig: Rig, mbps: int, way: str, late_ms: int) -> None:
    """late_ms: from one service to the next, as on a machine that others use, too."""
    a, b = rig.driver(0), rig.driver(1)
    sink = Sink(b)
    rig.nic.set_wire(way == "to the wire", 0)
    rig.igb.set_rate(0, mbps)
    sender = Saturating(a, *frames(ELSEWHERE if way == "to the wire" else b.mac, a.mac))
    pool = rig.nic.port.nic["pools"][0]

    def go(until: int) -> int:
        while rig.clock.now() < until:
            sender.go_on()
            sink.open()
            rig.nic.serve(512)
            rig.clock.sleep(late_ms * MS_PS)
        return int(pool["gotc"])

    before, received = go(rig.clock.now() + 20 * MS_PS), int(rig.nic.port.nic["pools"][1]["gorc"])
    nbytes = go(rig.clock.now() + S_PS) - before
    assert nbytes * 8 / 1e6 == pytest.approx(mbps, rel=0.02)
    if way == "to a VF":
        assert int(rig.nic.port.nic["pools"][1]["gorc"]) - received == nbytes, "and nothing is lost"
    else:
        assert rig.nic.tally()[0].ways.tx_wire_bytes > 0


@pytest.mark.parametrize(("pause_ms", "worth_ms"), [(40, 15), (200, 2), (60_000, 2)])
def test_what_a_limited_sender_catches_up_on_is_bounded(rig: Rig, pause_ms: int, worth_ms: int) -> None:
    """Nobody serves it for a while: of that time it has a little left, more if it was waiting just before."""
    a, b = rig.driver(0), rig.driver(1)
    sink = Sink(b)
    rig.igb.set_rate(0, 10)
    sender = Saturating(a, *frames(b.mac, a.mac))
    pool = rig.nic.port.nic["pools"][0]

    def serve() -> int:
        for _ in range(20):
            sender.go_on()
            sink.open()
            rig.nic.serve(512)
        return int(pool["gotc"])

    serve()
    rig.clock.sleep(MS_PS)
    before = serve()
    rig.clock.sleep(pause_ms * MS_PS)
    nbytes = serve() - before
    assert worth_ms - 2 <= nbytes * 8 / 10e3 <= worth_ms + 2
