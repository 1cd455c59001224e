"""Configuration writes of any value to any offset of any function: nothing raises, and read-only bits stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.slotrig import Rig, build
from virtfn.hw.types import Rid, make_rid
from virtfn.iovm.vconfig import VirtualConfig

PORT = make_rid(0, 1, 0)
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
