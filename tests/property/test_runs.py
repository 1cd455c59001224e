"""Runs of like frames do what the general path does: same bytes in memory, same registers, same counters."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.nicrig import EOP, IFCS, POOLS, RS, Rig, data, ether, mac, snapshot, tagged
from virtfn.machine.memory import CHUNK

SENDER, RECEIVERS = 0, (1, 2)
TARGETS = {"a": mac(1), "b": mac(2), "self": mac(0), "group": (1 << 48) - 1, "stranger": mac(15)}


@dataclass(frozen=True)
class Sent:
    target: str
    spoofed: bool
    kind: int
    size: int
    report: bool
    lie: bool
    nowhere: bool


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Rig, Rig]]:
    short, general = Rig(seed=3), Rig(seed=3)
    yield short, general
    short.close()
    general.close()


frames = st.lists(
    st.builds(
        Sent,
        st.sampled_from(["a", "a", "a", "b", "self", "group", "stranger"]),
        st.sampled_from([False] * 7 + [True]),
        st.sampled_from([0x88B5] * 5 + [0x8100, 0x0800]),
        st.sampled_from([14, 59, 60, 61, 128, 129, 500, 1514, 1519, 3000]),
        st.booleans(),
        st.sampled_from([False] * 15 + [True]),
        st.sampled_from([False] * 15 + [True]),
    ),
    min_size=1,
    max_size=40,
)


def memory_of(rig: Rig, pool: int) -> npt.NDArray[np.uint8]:
    """Look at a pool's memory as it lies in the host's; two rigs of one seed lay it out alike."""
    start = rig.chunks[pool] - int(rig.memory.base)
    return rig.memory.bytes[start : start + CHUNK]


def set_up(
    rig: Rig, *, rings: int, drop: bool, spoof: bool, blocking: bool, head_wb: bool, wire: bool, hole: bool
) -> None:
    rig.reset()
    for pool in (SENDER, *RECEIVERS):
        memory_of(rig, pool)[:] = 0
    rig.set(mac_spoof_pools=0xFF if spoof else 0, vlan_spoof_pools=0, mdp=int(blocking), wire_up=int(wire))
    rig.open_tx(SENDER, 64, head_wb=head_wb)
    for n in RECEIVERS:
        rig.open_rx(n, rings, drop=drop)
    rig.protect(1, rig.places(1, 1)[0], 0 if hole else 3)


def post(rig: Rig, sent: list[Sent]) -> None:
    for i, s in enumerate(sent):
        source = mac(7) if s.spoofed else mac(SENDER)
        frame = ether(TARGETS[s.target], source, 0x88B5 if s.kind == 0x8100 else s.kind, bytes([i]), s.size)
        frame = tagged(frame, 5)[: s.size] if s.kind == 0x8100 and s.size >= 18 else frame
        flags = EOP | IFCS | (RS if s.report else 0)
        at = rig.store(SENDER, frame) if not s.nowhere else 0x7000_0000 + i * 4096
        rig.post(SENDER, data(at, len(frame), flags, len(frame) + s.lie))


def state(rig: Rig) -> dict[str, object]:
    transient = {"epoch", "win_lo", "win_hi", "win_hpa", "regs", "iommu", "scratch", "captured", "mirror"}
    rows = {"port": rig.port, "counters": rig.nic["counters"]}
    rows |= {f"pool {n}": rig.nic["pools"][n] for n in range(POOLS)}
    rows |= {"tx": rig.nic["tx"][SENDER]}
    found: dict[str, object] = {
        name: {k: v for k, v in snapshot(row).items() if k not in transient} for name, row in rows.items()
    }
    # One path may latch a receive queue's registers one frame before the other: heads and drops tell what it did.
    found["rx"] = [(int(rig.nic["rx"][n]["head"]), int(rig.nic["rx"][n]["drops"])) for n in RECEIVERS]
    found["drops"] = rig.drops()
    found["registers"] = rig.regs[:, :, 4:].tolist()
    found["faults"] = rig.faults
    found["memory"] = [zlib.crc32(memory_of(rig, n)) for n in (SENDER, *RECEIVERS)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    sent=frames, rings=st.sampled_from([8, 16, 48]), drop=st.booleans(), spoof=st.booleans(), blocking=st.booleans(),
    head_wb=st.booleans(), wire=st.booleans(), budget=st.sampled_from([1, 3, 64]), hole=st.booleans(),
)  # fmt: skip
def test_a_run_equals_the_general_path(
    pair: tuple[Rig, Rig],
    sent: list[Sent],
    rings: int,
    drop: bool,
    spoof: bool,
    blocking: bool,
    head_wb: bool,
    wire: bool,
    budget: int,
    hole: bool,
) -> None:
    short, general = pair
    for rig in pair:
        set_up(rig, rings=rings, drop=drop, spoof=spoof, blocking=blocking, head_wb=head_wb, wire=wire, hole=hole)
        post(rig, sent)
    general.set(mirror=1)  # mirroring, with no rule: nothing is mirrored, but no frame is ordinary any more
    for _ in range(4):
        assert short.serve(budget=budget) == general.serve(budget=budget)
        assert state(short) == state(general)
        for rig in pair:
            rig.refill(1, 2)


def test_runs_are_taken(pair: tuple[Rig, Rig]) -> None:
    # The property above would hold of a short path that never ran. The general path copies heads to the scratch area.
    short, _ = pair
    set_up(short, rings=16, drop=True, spoof=True, blocking=False, head_wb=False, wire=False, hole=False)
    short.nic["scratch"][:64] = 0xCC
    post(short, [Sent("a", False, 0x88B5, 60, True, False, False)] * 5)
    assert short.serve()[0] == 5
    assert len(short.frames(1)) == 5
    assert (short.nic["scratch"][:64] == 0xCC).all()
