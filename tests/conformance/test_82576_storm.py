"""Storm control: SCCRL, BSCTRH, MSCTRH, against frames to everybody, to groups, and to addresses that nobody has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.pooled import DATA, ROPE, VMOLR, Pooled, mac
from conformance.rig import data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import CTRL
from virtfn.hw.i82576.rxtx import RCTL, SCCRL, STORM_THRESHOLD, VMRCTL

EVERYBODY, GROUP, NOBODY = b"\xff" * 6, b"\x01\0\x5e\0\0\1", b"\x02\0\0\0\0\x99"
SIZE = 124  # 128 bytes with the check sequence: two chunks
FRAMES = 8


@pytest.fixture
def pools() -> Iterator[Pooled]:
    made = Pooled(3)
    for n in (0, 1):
        made.set(Regs.VMOLR, VMOLR | 1 << 28, n)  # every group
    yield made
    made.close()


def limit(pools: Pooled, drops: SCCRL, chunks: int = 4, interval: int = 100) -> None:
    """Limit both kinds to so many chunks of a window: 1 ms a unit at 1000 Mb/s."""
    pools.set(Regs.BSCTRH, STORM_THRESHOLD.of(UTRESH=chunks).value)
    pools.set(Regs.MSCTRH, STORM_THRESHOLD.of(UTRESH=chunks).value)
    pools.set(Regs.SCCRL, drops.replace(INTERVAL=interval).value)


def passed(pools: Pooled, target: bytes) -> int:
    """Send eight frames from VF 0 at once, and count those that VF 1 gets; 10 ms pass."""
    pools.store(pools.bases[0] + DATA, ethernet(target, SIZE, mac(0)))
    pools.post(0, *[tuple(data_descriptor(DATA, SIZE))] * FRAMES)
    return len(pools.got(1))


@pytest.mark.parametrize(
    ("drops", "target", "other"), [(SCCRL.of(BDICW=1), EVERYBODY, GROUP), (SCCRL.of(MDICW=1), GROUP, EVERYBODY)]
)
def test_what_is_too_much_of_a_window_is_dropped_and_counted(
    pools: Pooled, drops: SCCRL, target: bytes, other: bytes
) -> None:
    limit(pools, drops)
    assert passed(pools, target) == 2
    assert passed(pools, other) == FRAMES, "the other kind has no limit"
    assert pools.nic.drops(0) == {"storm": FRAMES - 2}
    pools.pass_time(100_000)
    assert passed(pools, target) == 2, "a new window"


@pytest.mark.parametrize(("drops", "target"), [(SCCRL.of(BDIPW=1), EVERYBODY), (SCCRL.of(MDIPW=1), GROUP)])
def test_what_was_too_much_is_made_up_for_in_the_next_window(pools: Pooled, drops: SCCRL, target: bytes) -> None:
    limit(pools, drops)
    assert passed(pools, target) == FRAMES
    pools.pass_time(100_000)
    assert passed(pools, target) == 0
    pools.pass_time(200_000)
    assert passed(pools, target) == FRAMES, "a window without any was between"


def test_an_interval_is_as_long_as_the_link_takes_for_so_many_bits(pools: Pooled) -> None:
    pools.nic.set_wire(True, 100)
    limit(pools, SCCRL.of(BDICW=1))
    assert passed(pools, EVERYBODY) == 2
    pools.pass_time(100_000)
    assert passed(pools, EVERYBODY) == 0
    pools.pass_time(900_000)
    assert passed(pools, EVERYBODY) == 2


@pytest.mark.parametrize("bidu", [0, 1])
def test_bidu_counts_what_only_promiscuous_pools_take(pools: Pooled, bidu: int) -> None:
    for i in range(128):
        pools.set(Regs.UTA, 0xFFFFFFFF, i)
    pools.set(Regs.VMOLR, VMOLR | ROPE, 1)
    limit(pools, SCCRL.of(BDICW=1, BIDU=bidu))
    assert passed(pools, NOBODY) == (2 if bidu else FRAMES)
    assert passed(pools, mac(1)) == FRAMES, "an address that somebody has"


def test_the_wire_is_a_sender_like_others(pools: Pooled) -> None:
    limit(pools, SCCRL.of(BDICW=1))
    frame = ethernet(EVERYBODY, SIZE, mac(7))
    assert pools.receive(*[frame] * FRAMES) == FRAMES
    assert [len(pools.got(n)) for n in (0, 1)] == [2, 2]
    assert pools.nic.drops(None) == {"storm": FRAMES - 2}
    assert passed(pools, EVERYBODY) == 0, "all senders together"


def test_without_an_interval_or_a_drop_there_is_no_limit(pools: Pooled) -> None:
    limit(pools, SCCRL.of(BDICW=1, MDICW=1), interval=0)
    assert passed(pools, EVERYBODY) == FRAMES
    limit(pools, SCCRL.of(), chunks=0)
    assert passed(pools, EVERYBODY) == FRAMES


def test_unicast_of_the_wire_that_nobody_has_is_counted_too(pools: Pooled) -> None:
    for i in range(128):
        pools.set(Regs.UTA, 0xFFFFFFFF, i)
    pools.set(Regs.VMOLR, VMOLR | ROPE, 1)
    pools.nic.set_wire(True, 0)
    limit(pools, SCCRL.of(BDICW=1, BIDU=1))
    pools.receive(*[ethernet(NOBODY, SIZE, mac(7))] * FRAMES)
    pools.receive(*[ethernet(mac(1), SIZE, mac(7))] * 2)
    assert len(pools.got(1)) == 2 + 2
    assert pools.nic.drops(None) == {"storm": FRAMES - 2}


def test_resets_of_a_vf_begin_no_new_window(pools: Pooled) -> None:
    limit(pools, SCCRL.of(BDICW=1))
    assert passed(pools, EVERYBODY) == 2
    for _ in range(3):
        pools.set(VfRegs.VTCTRL, CTRL.of(RST=1).value, vf=2)
        assert passed(pools, EVERYBODY) == 0


@pytest.mark.parametrize("wire", [False, True])
def test_a_mirror_makes_no_frame_one_that_nobody_has(pools: Pooled, wire: bool) -> None:
    pools.nic.set_wire(True, 0)
    rule = VMRCTL.of(UPME=1, MP=1) if wire else VMRCTL.of(DPME=1, MP=1)
    pools.set(Regs.VMRCTL, rule.value)
    limit(pools, SCCRL.of(BDICW=1, BIDU=1))
    if wire:
        pools.receive(*[ethernet(NOBODY, SIZE, mac(7))] * FRAMES)
        assert len(pools.got(1)) == FRAMES
    else:
        assert passed(pools, NOBODY) == FRAMES
    assert "storm" not in pools.nic.drops(None) | pools.nic.drops(0)


def test_a_local_vlan_is_no_way_around_a_limit(pools: Pooled) -> None:
    for i in range(128):
        pools.set(Regs.UTA, 0xFFFFFFFF, i)
    pools.set(Regs.VMOLR, VMOLR | ROPE, 1)
    pools.set(Regs.RCTL, pools.get(Regs.RCTL) | RCTL.VFE.mask)
    pools.vlan(0, 5, 0b11, local=True)
    limit(pools, SCCRL.of(BDICW=1, BIDU=1))
    tagged = ethernet(NOBODY, SIZE, mac(0))
    tagged = tagged[:12] + b"\x81\0\0\5" + tagged[12 : SIZE - 4]
    pools.store(pools.bases[0] + DATA, tagged)
    pools.post(0, *[tuple(data_descriptor(DATA, SIZE))] * FRAMES)
    assert len(pools.got(1)) == 2
    assert pools.nic.drops(0) == {"storm": FRAMES - 2}
