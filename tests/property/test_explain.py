"""An explanation ends where the card's frame ends: same registers, same frame, same pools, same drops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from property.test_switch import MACS, VIDS, Port, number, registers
from unit.nicrig import ether, mac, tagged
from virtfn.devices.nic82576.explain import explain_frame
from virtfn.devices.nic82576.sight import READ, CardState, Sight
from virtfn.devices.nic82576.stormcheck import storm_state
from virtfn.hw.bits import Decl
from virtfn.hw.types import Ps
from virtfn.kernels.i82576.state import POOLS, QUEUES, WIRE

_STORM = ("storm_end", "storm_broadcasts", "storm_multicasts", "storm_over", "storm_before")
_BOTH = st.integers(0, 3)
_BLOCK = {"RDLEN": 2, "SRRCTL": 3, "RDH": 4, "RDT": 6, "RXDCTL": 10}  # words of a queue's registers


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.rig.close()
    made.registers.close()


def state_of(port: Port) -> CardState:
    rig = port.rig

    def read(decl: Decl, i: int) -> int:
        if decl.name in _BLOCK:
            return int(rig.regs[0, i, _BLOCK[decl.name]])
        if decl.name == "TXDCTL":
            return int(rig.regs[1, i, 10])
        return port.registers.peek(decl, i)

    return {
        "vfs": 7,
        "wire_up": bool(rig.port["wire_up"]),
        "self_loop": bool(rig.port["self_loop"]),
        "blocked": int(rig.port["blocked"]),
        "driven": (1 << QUEUES) - 1,
        "storm": storm_state(rig.port, Ps(0)),
        "registers": {decl.name: [read(decl, i) for i in range(decl.count)] for decl in READ},
    }


def ip(seed: int, six: bool, tcp: bool) -> bytes:
    ports = seed.to_bytes(2, "big") + (443).to_bytes(2, "big")
    segment = ports + bytes(16) if tcp else ports + (12).to_bytes(2, "big") + bytes(6)
    if six:
        head = bytes([0x60, 0, 0, 0]) + len(segment).to_bytes(2, "big") + bytes([6 if tcp else 17, 64])
        return head + bytes(15) + bytes([seed & 0xFF]) + bytes(15) + b"\x02" + segment
    head = bytes([0x45, 0]) + (20 + len(segment)).to_bytes(2, "big") + bytes(4) + bytes([64, 6 if tcp else 17, 0, 0])
    return head + bytes([10, 0, 0, seed & 0xFF, 10, 0, 0, 2]) + segment


@st.composite
def frames(draw: st.DrawFn) -> tuple[int | None, bytes]:
    """Draw a frame and who sends it: a pool, or the wire."""
    source = draw(st.sampled_from([None, *range(POOLS)]))
    destination = number(draw(st.sampled_from(MACS)))
    sender = draw(st.sampled_from([*(number(m) for m in MACS), mac(0)]))
    size = draw(st.sampled_from([8, 13, 14, 20, 60, 64, 500, 1514, 1518, 1519, 3000, 9000, 9720, 9724]))
    kind = draw(st.sampled_from(["local", "local", "udp4", "tcp4", "udp6", "tcp6"]))
    if kind == "local":
        frame = ether(destination, sender, size=size)[:size]
    else:
        content = ip(draw(st.integers(0, 255)), kind.endswith("6"), kind.startswith("tcp"))
        frame = ether(destination, sender, 0x86DD if kind.endswith("6") else 0x0800, content, size)
    vid = draw(st.sampled_from([None, None, *VIDS]))
    return source, frame if vid is None or len(frame) < 14 else tagged(frame, vid | draw(st.integers(0, 7)) << 13)


@st.composite
def setups(draw: st.DrawFn) -> dict[tuple[str, int], int]:
    values = draw(registers())
    values["MRQC", 0] = draw(st.sampled_from([3, 3, 5, 5, 0, 2])) | draw(st.integers(0, 0xFF)) << 16
    values["TCTL", 0] = draw(st.sampled_from([2, 2, 2, 0])) | draw(st.sampled_from([0, 8]))
    values["DTXSWC", 0] |= draw(st.sampled_from([0, 0, 0xFF, 0xFF00, 0x1234]))
    values["VFTE", 0] = draw(st.sampled_from([0xFF, 0xFF, 0xFF, 0x7E]))
    values["RPLOLR", 0] = draw(st.sampled_from([0, 1 << 30]))
    values["VET", 0] = 0x8100
    for i in range(8):
        long = draw(st.sampled_from([0, 1 << 16 | 0x2600, 1 << 16 | 1600]))
        values["VMOLR", i] |= long | draw(st.sampled_from([0, 1 << 30])) | draw(st.sampled_from([0, 1 << 17]))
        values["VMVIR", i] = draw(st.sampled_from([0, 0, 1 << 30 | 0x6001, 1 << 30 | 31, 2 << 30]))
    values["SCCRL", 0] = draw(st.sampled_from([0, 0, *range(32)])) | draw(st.sampled_from([0, 1, 255])) << 17
    for name in ("BSCTRH", "MSCTRH"):
        values[name, 0] = draw(st.sampled_from([0, 1, 2, 24, 1000]))
    values["QDE", 0] = draw(st.sampled_from([0, 0, 0xFFFF]))
    for i in range(32):
        values["RETA", i] = draw(st.sampled_from([0, 0x01010101, 0x00010001]))
    for i in range(10):
        values["RSSRK", i] = 0x6D5A56DA * (i + 1) & 0xFFFFFFFF
    return values


@settings(max_examples=250, deadline=None)
@given(
    values=setups(),
    cases=st.lists(frames(), min_size=1, max_size=6),
    wire=st.booleans(),
    rings=st.lists(st.sampled_from([0, 8, 8, 8, 16]), min_size=QUEUES, max_size=QUEUES),
    fill=st.sampled_from([0, 1, 3, 7]),
    drop=st.booleans(),
    layout=st.sampled_from([0, 1, 1]),
    window=st.tuples(st.sampled_from([1, 1, 0, -1]), *[st.sampled_from([0, 64, 1500, 9000])] * 2, *[_BOTH] * 2),
)
def test_the_end_is_the_cards(
    port: Port,
    values: dict[tuple[str, int], int],
    cases: list[tuple[int | None, bytes]],
    wire: bool,
    rings: list[int],
    fill: int,
    drop: bool,
    layout: int,
    window: tuple[int, int, int, int, int],
) -> None:
    rig = port.rig
    for source, frame in cases:
        rig.reset()
        port.load(values)
        rig.set(wire_up=int(wire))
        for q, size in enumerate(rings):
            if size:
                rig.open_rx(q, size, layout=layout, drop=drop, fill=fill)
        for pool in range(POOLS):
            rig.open_tx(pool)
        port.l2switch.touch()
        port.l2switch.settle()
        end, *counts = window  # of the storm control: open; just over; and long over
        rig.set(**dict(zip(_STORM, (end if end >= 0 else -9 * int(rig.port["storm_ps"]), *counts), strict=True)))
        if end > 0:  # then what there is too much of is what the counts say
            over = (rig.port[f"storm_{kind}"] > rig.port[f"storm_most_{kind}"] for kind in ("broadcasts", "multicasts"))
            rig.set(storm_over=sum(1 << i for i, too_many in enumerate(over) if too_many))
        state = state_of(port)
        told = explain_frame(Sight(state), source, frame)
        drops = {(entry["interface"], entry["reason"]) for entry in told["dropped"]}
        to = {target["queue"]: target["descriptors"] for target in told["to"]}
        before = rig.counter("gptc")
        heads = [rig.head(0, q) for q in range(QUEUES)]
        if source is None:
            rig.wire(frame)
        else:
            rig.send(source, frame)
            rig.serve()
        had = {q: (rig.head(0, q) - heads[q]) % (rings[q] or 1) for q in range(QUEUES)}
        had = {q: count for q, count in had.items() if count}
        assert {(None if p == WIRE else p, why) for p, why in rig.drops()} == drops, told
        assert had == to, told
        pooled = values["MRQC", 0] & 7 in (3, 5)  # else every queue is the whole card's
        assert all(target["pool"] == (target["queue"] % POOLS if pooled else 0) for target in told["to"]), told
        assert (rig.counter("gptc") > before) == told["wire"], told
        held = bool(rig.port["stalled"]) or (source is not None and rig.head(1, source) == 0)
        assert held == (told["outcome"] == "waits"), told
