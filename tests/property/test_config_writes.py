"""Configuration writes of any value to any offset of any function: nothing raises, and read-only bits stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.slotrig import PlainCard, Rig, build
from virtfn.devices.nic82576.config import Card, build_endpoint
from virtfn.devices.pci.endpoint import Physical, Place
from virtfn.hw.types import Mac, Rid, make_rid
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.machine.ports import Reset

PORT = make_rid(0, 1, 0)
OTHER_PORT = make_rid(0, 2, 0)
BRIDGE, PF, VF, VIRTUAL = "bridge", "PF", "VF", "virtual"

# Bits that no write may change, as (offset, size, mask): identity, kind, list structure, facts of the capabilities.
FIXED: dict[str, list[tuple[int, int, int]]] = {
    BRIDGE: [
        (0x000, 4, ~0), (0x006, 2, 0x10), (0x008, 4, ~0), (0x00E, 1, ~0), (0x034, 1, ~0), (0x040, 4, ~0),
        (0x044, 4, ~0), (0x064, 4, ~0), (0x080, 4, ~0), (0x100, 4, ~0), (0x104, 2, ~0),
    ],
    PF: [
        (0x000, 4, ~0), (0x006, 2, 0x10), (0x008, 4, ~0), (0x00E, 1, ~0), (0x010, 4, 0x1FFFF), (0x018, 4, 0x1F),
        (0x02C, 4, ~0), (0x034, 1, ~0), (0x040, 4, ~0), (0x050, 4, ~0x10000), (0x070, 4, ~0xC0000000), (0x074, 4, ~0),
        (0x078, 4, ~0), (0x0A0, 4, ~0), (0x0A4, 4, ~0), (0x0E0, 4, ~0), (0x100, 4, ~0), (0x140, 4, ~0),
        (0x144, 4, ~0), (0x148, 4, ~0), (0x150, 4, ~0), (0x154, 4, ~0), (0x160, 4, ~0), (0x164, 4, ~0),
        (0x16C, 4, ~0), (0x172, 1, ~0), (0x176, 2, ~0), (0x17A, 2, ~0), (0x17C, 4, ~0), (0x184, 4, 0x3FFF),
        (0x18C, 4, ~0), (0x190, 4, 0x3FFF), (0x19C, 4, ~0),
    ],
    VF: [
        (0x000, 4, ~0), (0x004, 2, ~0x4), (0x008, 4, ~0), (0x010, 4, ~0), (0x014, 4, ~0), (0x018, 4, ~0),
        (0x01C, 4, ~0), (0x020, 4, ~0), (0x024, 4, ~0), (0x030, 4, ~0), (0x034, 1, ~0), (0x03C, 4, ~0),
        (0x070, 4, ~0xC0000000), (0x074, 4, ~0), (0x078, 4, ~0), (0x0A0, 4, ~0), (0x0A4, 4, ~0), (0x0A8, 2, ~0),
        (0x0AC, 4, ~0), (0x100, 4, ~0), (0x10C, 4, ~0), (0x150, 4, ~0), (0x154, 4, ~0),
    ],
    VIRTUAL: [
        (0x000, 4, ~0), (0x004, 2, ~0x406), (0x006, 2, 0x10), (0x008, 4, ~0), (0x00E, 1, ~0), (0x010, 4, 0x3FFF),
        (0x018, 4, ~0), (0x01C, 4, 0x3FFF), (0x024, 4, ~0), (0x02C, 4, ~0), (0x030, 4, ~0), (0x034, 1, ~0),
        (0x03D, 1, ~0), (0x070, 4, ~0xC0000000), (0x074, 4, ~0), (0x078, 4, ~0), (0x0A0, 4, ~0), (0x100, 4, ~0),
    ],
}  # fmt: skip

writes = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x1A0), st.integers(-8, 4104)),
        st.sampled_from([1, 2, 4]),
        st.one_of(st.sampled_from([0, 1, 3, 8, 9, 0x8000, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF)),
        st.integers(0, 200),
    ),
    max_size=40,
)

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]


def access(rig: Rig, kind: str) -> tuple[Read, Write]:
    vf = rig.pcim.functions[rig.pf].vfs[1]
    if kind == VIRTUAL:
        config = VirtualConfig(rig.root, vf)
        return config.read, config.write
    rid: Rid = {BRIDGE: PORT, PF: rig.pf, VF: vf.rid}[kind]
    return (
        lambda offset, size: rig.root.config_read(rid, offset, size),
        lambda offset, size, value: rig.root.config_write(rid, offset, size, value),
    )


@pytest.mark.parametrize("kind", [BRIDGE, PF, VF, VIRTUAL])
@pytest.mark.parametrize("ari", [False, True])
@settings(max_examples=40, deadline=None)
@given(sequence=writes)
def test_any_write_is_safe_and_read_only_bits_stay(kind, ari, sequence):
    rig = build(ari=ari)
    rig.pcim.enable_vfs(rig.pf, 2)
    read, write = access(rig, kind)
    before = [read(offset, size) & mask for offset, size, mask in FIXED[kind]]
    for offset, size, value, pause_ms in sequence:
        write(offset, size, value)
        rig.clock.sleep(pause_ms * 1_000_000_000)
        assert 0 <= read(offset, size) < 1 << 8 * size
        assert rig.card.rids()[0] >> 8 == rig.card.bus
        rig.root.decode(value)
        rig.root.decode(value, io=True)
    assert [read(offset, size) & mask for offset, size, mask in FIXED[kind]] == before


@settings(max_examples=60, deadline=None)
@given(sequence=writes)
def test_the_sriov_rules_hold_under_any_writes_to_the_pf(sequence):
    rig = build()
    pf, unit = rig.card.pfs[0].function, rig.card.pfs[0].sriov
    for offset, size, value, _ in sequence:
        was = (unit.count, pf.config_read(0x170, 2), pf.config_read(0x174, 2), pf.config_read(0x180, 4))
        pf.config_write(offset, size, value)
        enabled = pf.config_read(0x168, 2) & 1
        now = (unit.count, pf.config_read(0x170, 2), pf.config_read(0x174, 2), pf.config_read(0x180, 4))
        assert now[0] == (now[1] if enabled else 0)
        assert now[0] <= 8
        assert now[2] in (0x80, 0x180)
        assert now[3].bit_count() == 1
        if enabled and was[0]:
            assert now == was
        assert unit.bars.size(0) == max(0x4000, now[3] << 12)


@settings(max_examples=60, deadline=None)
@given(sequence=writes)
def test_a_vfs_writes_reach_no_other_function(sequence):
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 3)
    _, write = access(rig, VIRTUAL)
    others = [rig.card.pfs[0].function, rig.card.pfs[0].vfs[0], rig.card.pfs[0].vfs[2], rig.root.ports[0]]
    before = [bytes(f.bytes) for f in others]
    for offset, size, value, _ in sequence:
        write(offset, size, value)
    assert [bytes(f.bytes) for f in others] == before


# Who claims an address: the root complex keeps what it has read of bridges and BARs; here registers are read each time.

BRIDGE_ROUTES = [0x04, 0x18, 0x1C, 0x1D, 0x20, 0x22, 0x24, 0x26, 0x28, 0x2C, 0x84]
PF_ROUTES = [0x04, 0x10, 0x14, 0x18, 0x1C, 0x30, 0x44, 0xA8, 0x168, 0x170, 0x180, 0x184, 0x188, 0x190, 0x194]
changes = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.integers(0, 4),
            st.one_of(st.integers(0, 14), st.integers(0x100, 0x1A0)),
            st.sampled_from([1, 2, 4]),
            st.one_of(st.sampled_from([0, 1, 2, 3, 7, 9, 0x8000, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF), st.none()),
            st.integers(0, 60),
        ),
        st.tuples(st.just("reset"), st.integers(0, 4), st.sampled_from(list(Reset))),
        st.tuples(st.just("pause"), st.sampled_from([1, 99, 100])),
        st.tuples(st.just("pull"), st.integers(0, 1)),
        st.tuples(st.just("plug"), st.integers(0, 1)),
    ),
    max_size=12,
)


def bridge_windows(read: Read, io: bool) -> list[range]:
    """List what a bridge lets through, by its registers."""
    if read(0x84, 2) & 3 or not read(4, 2) & (1 if io else 2):
        return []
    if io:
        return [range(read(0x1C, 1) >> 4 << 12, (read(0x1D, 1) >> 4) + 1 << 12)]
    low = range(read(0x20, 2) >> 4 << 20, (read(0x22, 2) >> 4) + 1 << 20)
    base, limit = (read(at, 2) >> 4 << 20 | read(at + more, 4) << 32 for at, more in ((0x24, 4), (0x26, 6)))
    return [low, range(base, limit + (1 << 20))]


def own_claim(pf: Physical, address: int, io: bool) -> tuple[int, int] | None:
    """Find the BAR of a PF that has an address, and where in it, by its registers."""
    read = pf.function.config_read
    if read(0x44, 2) & 3 or not read(4, 2) & (1 if io else 2):
        return None
    bars = [(n, read(0x10 + 4 * n, 4) & (~3 if io else ~15), shape) for n, shape in pf.function.bars.shapes.items()]
    places = [(n, base, shape.size) for n, base, shape in bars if shape.io == io]
    if not io and read(0x30, 4) & 1:
        places.append((6, read(0x30, 4) & ~0x7FF, pf.function.rom_size))
    return next(((n, address - base) for n, base, size in places if base <= address < base + size), None)


def vf_claim(pf: Physical, address: int) -> tuple[int, int, int] | None:
    """Find the VF and its BAR that have an address, and where in it, by the registers of the PF."""
    read, unit = pf.function.config_read, pf.sriov
    if unit is None or read(0x44, 2) & 3 or read(0x168, 2) & 9 != 9 or not unit.ready:
        return None
    size = max(0x4000, read(0x180, 4) << 12)
    for number, at in ((0, 0x184), (3, 0x190)):
        offset = address - (read(at, 4) & ~15 | read(at + 4, 4) << 32)
        if 0 <= offset < size * read(0x170, 2):
            return offset // size, number, offset % size
    return None


def claimed(rig: Rig, address: int, io: bool) -> tuple[PlainCard, Rid, int, int] | None:
    for port in rig.root.ports:
        card = port.device
        if not isinstance(card, PlainCard) or not any(address in w for w in bridge_windows(port.config_read, io)):
            continue
        for f, pf in enumerate(card.pfs):
            if own := own_claim(pf, address, io):
                return card, card.rid(Place(f)), *own
            if not io and (virtual := vf_claim(pf, address)):
                return card, card.rid(Place(f, virtual[0])), *virtual[1:]
    return None


@settings(max_examples=40, deadline=None)
@given(sequence=changes)
def test_an_address_is_whose_the_registers_say_after_any_change(sequence):
    rig = build(scan=False, ports=2)
    other = PlainCard(build_endpoint(Card(Mac(0x02), ports=1, total_vfs=2), rig.clock.now).pfs)
    rig.root.attach(other)
    rig.pcim.scan()
    cards = [rig.card, other]
    for pf in rig.pcim.pfs():
        rig.pcim.enable_vfs(pf.rid, 2)
        rig.pcim.enable_function(pf.rid)
    functions = [*rig.root.ports, *(pf.function for card in cards for pf in card.pfs)]
    bars = [bar for pf in rig.pcim.pfs() for owner in (pf, *pf.vfs) for bar in owner.bars]
    edges = sorted({at for bar in bars for at in (bar.address - 1, bar.address, bar.address + bar.size)})
    for change in [("pause", 0), *sequence]:
        match change:
            case ("write", which, place, size, value, edge):
                routes = BRIDGE_ROUTES if which < 2 else PF_ROUTES
                offset = routes[place % len(routes)] if place < 0x100 else place
                at = edges[edge % len(edges)]  # where something is
                near = {0x1C: at >> 8, 0x1D: at >> 8, 0x20: at >> 16, 0x22: at >> 16, 0x24: at >> 16, 0x26: at >> 16}
                value = near.get(offset, at & 0xFFFFFFFF) if value is None else value
                functions[which].config_write(offset, size, value)
                edges += [value, value & ~0xFFF]
            case ("reset", which, kind):
                functions[which].reset(kind)
            case ("pause", ms):
                rig.clock.sleep(ms * 1_000_000_000)
            case ("pull", slot):
                rig.root.detach(slot)
            case ("plug", slot) if rig.root.ports[slot].device is None:
                rig.root.attach(cards[slot], slot)
        for address in edges:
            for io in (False, True):
                found = rig.root.decode(address, io=io)
                told = None if found is None else (found.device, found.rid, found.bar, found.offset)
                assert told == claimed(rig, address, io), (hex(address), io)
