"""The register test of Linux's driver (`ethtool -t`), and registers through the I/O BAR.

The test writes patterns with queues enabled and every bit of their ring addresses set, and ends with the receiver on:
frames come meanwhile, nothing may be touched, nothing may stop for good.
"""

from __future__ import annotations

import zlib

import pytest

from conformance.rig import BROADCAST, PF, Rig, ethernet
from virtfn.hw.i82576 import Regs

PATTERNS = (0x5A5A5A5A, 0xA5A5A5A5, 0x00000000, 0xFFFFFFFF)
M32 = 0xFFFFFFFF
TOGGLE = 0x7FFFF3FF
# (kind, first offset, count, step, mask of what counts, what is written)
TABLE = [
    ("pattern", 0x0028, 1, 4, M32, M32),  # FCAL
    ("pattern", 0x0038, 1, 4, M32, M32),  # VET
    ("pattern", 0x002C, 1, 4, 0xFFFF, M32),  # FCAH
    ("pattern", 0x0030, 1, 4, 0xFFFF, M32),  # FCT
    ("pattern", 0x2800, 4, 0x100, 0xFFFFFF80, M32),  # RDBAL
    ("pattern", 0x2804, 4, 0x100, M32, M32),  # RDBAH
    ("pattern", 0x2808, 4, 0x100, 0x000FFFF0, 0x000FFFFF),  # RDLEN
    ("pattern", 0xC100, 12, 0x40, 0xFFFFFF80, M32),
    ("pattern", 0xC104, 12, 0x40, M32, M32),
    ("pattern", 0xC108, 12, 0x40, 0x000FFFF0, 0x000FFFFF),
    ("enable", 0x2828, 4, 0x100, 0, 1 << 25),  # RXDCTL
    ("enable", 0xC128, 12, 0x40, 0, 1 << 25),
    ("pattern", 0x2818, 4, 0x100, 0x0000FFFF, 0x0000FFFF),  # RDT
    ("pattern", 0xC118, 12, 0x40, 0x0000FFFF, 0x0000FFFF),
    ("enable", 0x2828, 4, 0x100, 0, 0),
    ("enable", 0xC128, 12, 0x40, 0, 0),
    ("pattern", 0x2168, 1, 4, 0x0000FFF0, 0x0000FFF0),  # FCRTH
    ("pattern", 0x0170, 1, 4, 0x0000FFFF, 0x0000FFFF),  # FCTTV
    ("pattern", 0x0410, 1, 4, 0x3FFFFFFF, 0x3FFFFFFF),  # TIPG
    ("pattern", 0x3800, 4, 0x100, 0xFFFFFF80, M32),  # TDBAL
    ("pattern", 0x3804, 4, 0x100, M32, M32),
    ("pattern", 0x3808, 4, 0x100, 0x000FFFF0, 0x000FFFFF),
    ("pattern", 0xE100, 12, 0x40, 0xFFFFFF80, M32),
    ("pattern", 0xE104, 12, 0x40, M32, M32),
    ("pattern", 0xE108, 12, 0x40, 0x000FFFF0, 0x000FFFFF),
    ("check", 0x0100, 1, 4, M32, 0),  # RCTL
    ("check", 0x0100, 1, 4, 0x04CFB0FE, 0x003FFFFB),
    ("check", 0x0100, 1, 4, 0x04CFB0FE, M32),
    ("check", 0x0400, 1, 4, M32, 0),  # TCTL
    ("pattern", 0x5400, 16, 8, M32, M32),  # RAL
    ("pattern", 0x5404, 16, 8, 0x83FFFFFF, M32),  # RAH
    ("pattern", 0x54E0, 8, 8, M32, M32),
    ("pattern", 0x54E4, 8, 8, 0x83FFFFFF, M32),
    ("pattern", 0x5200, 128, 4, M32, M32),  # MTA
]


@pytest.fixture
def rig():
    rig = Rig(connected=True)
    rig.link_up()
    yield rig
    rig.close()


def register_test(rig: Rig, between) -> list[str]:
    """Run the test as the driver does; return what failed. between: called after each write."""
    rid = rig.rid(PF)
    failed = []

    def read(at: int) -> int:
        return rig.nic.bar_read(rid, 0, at, 4)

    def write(at: int, value: int) -> None:
        rig.nic.bar_write(rid, 0, at, 4, value)
        between()

    before = read(8) & TOGGLE
    write(8, TOGGLE)
    if read(8) & TOGGLE != before:
        failed.append("STATUS")
    for kind, first, count, step, mask, wanted in TABLE:
        for at in range(first, first + count * step, step):
            if kind == "enable":
                write(at, wanted)
            elif kind == "check":
                write(at, wanted & mask)
                if (read(at) ^ wanted) & mask:
                    failed.append(f"{at:#x} {wanted:#x}: {read(at):#x}")
            else:
                for pattern in PATTERNS:
                    write(at, pattern & wanted)
                    if read(at) != pattern & wanted & mask:
                        failed.append(f"{at:#x} {pattern:#x}: {read(at):#x}")
    return failed


def test_every_pattern_reads_back(rig):
    assert register_test(rig, lambda: None) == []


@pytest.mark.parametrize("remapped", [True, False])
def test_junk_rings_under_fire_touch_no_memory(rig, remapped):
    """As above, and frames come in all the time, from before the first pattern to after the last."""
    if remapped:
        rig.domain(1, PF)
    else:
        rig.host.remapping.pass_through(rig.rid(PF))
    rig.set(Regs.RCTL, 0x8002 | 1 << 3)
    frames = [ethernet(BROADCAST, 60), ethernet(b"\x02\0\0\0\0\x10", 1500), ethernet(b"\x01\0\x5e\0\0\1", 300)]
    before = zlib.crc32(rig.host.memory.bytes)
    writes = [0]

    def fire() -> None:
        writes[0] += 1
        if writes[0] % 8 == 0:
            rig.receive(*frames)
            rig.nic.serve()

    assert register_test(rig, fire) == []
    assert writes[0] > 1000
    # The last pattern set RCTL.RXEN with all ring registers full of ones: switch the queues on once more.
    for queue in range(16):
        rig.set(Regs.RDBAL, M32, queue)
        rig.set(Regs.RDBAH, M32, queue)
        rig.set(Regs.RDLEN, M32, queue)
        rig.set(Regs.RXDCTL, 1 << 25, queue)
        rig.set(Regs.RDT, 0x7FFF, queue)
        rig.set(Regs.TDBAL, M32, queue)
        rig.set(Regs.TDBAH, M32, queue)
        rig.set(Regs.TDLEN, M32, queue)
        rig.set(Regs.TXDCTL, 1 << 25, queue)
        rig.set(Regs.TDT, 0x7FFF, queue)
    rig.set(Regs.RCTL, M32 & ~0xC0)
    rig.set(Regs.TCTL, M32)
    for _ in range(8):
        rig.receive(*frames)
        rig.nic.serve()
    assert zlib.crc32(rig.host.memory.bytes) == before
    drops = rig.nic.drops(0)
    assert drops.get("dma-fault", 0) > 0, "the frames went nowhere, and it is known why"


def test_after_the_test_a_reset_makes_all_well(rig):
    register_test(rig, lambda: None)
    rig.set(Regs.CTRL, 1 << 26)
    base = rig.domain(1, PF)
    for i in range(8):
        rig.words(base + 0x1000 + 16 * i, 0x10000 + 2048 * i, 0)
    rig.link_up()
    for decl, value in (
        (Regs.RDBAL, 0x1000), (Regs.RDLEN, 128), (Regs.SRRCTL, 0x02000002), (Regs.RDT, 7), (Regs.RCTL, 0x8002),
    ):  # fmt: skip
        rig.set(decl, value)
    rig.receive(ethernet(BROADCAST))
    assert rig.load(base + 0x10000, 60) == ethernet(BROADCAST)


# IOADDR and IODATA.

IO = 2


def io(rig: Rig, offset: int, value: int | None = None, size: int = 4) -> int:
    if value is None:
        return rig.nic.bar_read(rig.rid(PF), IO, offset, size)
    rig.nic.bar_write(rig.rid(PF), IO, offset, size, value)
    return 0


def test_registers_are_reached_through_the_io_bar(rig):
    io(rig, 0, Regs.LEDCTL.offset)
    assert io(rig, 0) == Regs.LEDCTL.offset
    assert io(rig, 4) == 0x07068302
    io(rig, 4, 0x12345678)
    assert rig.get(Regs.LEDCTL) == 0x12345678
    io(rig, 0, Regs.GPRC.offset)
    rig.nic.port.nic["counters"]["gprc"] += 3
    assert [io(rig, 4), io(rig, 4)] == [3, 0], "side effects too"


def test_an_address_beyond_the_registers_reaches_nothing(rig):
    led = rig.get(Regs.LEDCTL)
    for address in (0x20000 + Regs.LEDCTL.offset, 0x80000000 + Regs.LEDCTL.offset, 0xFFFFFFFC):
        io(rig, 0, address)
        io(rig, 4, 0x55)
        assert io(rig, 4) == M32
    assert rig.get(Regs.LEDCTL) == led


def test_only_whole_words_are_io_registers(rig):
    io(rig, 0, Regs.LEDCTL.offset)
    for offset, size in ((0, 1), (0, 2), (4, 1), (4, 2), (6, 2), (8, 4), (28, 4)):
        io(rig, offset, 0, size)
        assert io(rig, offset, size=size) == (1 << 8 * size) - 1
    assert io(rig, 4) == 0x07068302


def test_the_io_bar_answers_on_the_bus(rig):
    rig.config(PF, 0x04, 0x0007)
    bar = next(b for b in rig.pcim.functions[rig.nic.pf_rid].bars if b.io)
    rig.host.root.io_write(bar.address, 4, Regs.STATUS.offset)
    assert rig.host.root.io_read(bar.address + 4, 4) == rig.get(Regs.STATUS)


def test_unaligned_and_odd_sized_accesses_of_registers(rig):
    rid = rig.rid(PF)
    rig.set(Regs.LEDCTL, 0x44332211)
    assert [rig.nic.bar_read(rid, 0, Regs.LEDCTL.offset + i, 1) for i in range(4)] == [0x11, 0x22, 0x33, 0x44]
    assert rig.nic.bar_read(rid, 0, Regs.LEDCTL.offset + 2, 2) == 0x4433
    assert rig.nic.bar_read(rid, 0, Regs.LEDCTL.offset, 8) == 0x44332211
    rig.nic.bar_write(rid, 0, Regs.LEDCTL.offset + 1, 1, 0xAA)
    assert rig.get(Regs.LEDCTL) == 0x4433AA11
    for offset, size in ((1, 2), (1, 4), (2, 4), (3, 2), (4, 8), (0, 3), (0, 5), (-4, 4)):
        rig.nic.bar_write(rid, 0, Regs.LEDCTL.offset + offset if offset >= 0 else offset, size, 0)
        rig.nic.bar_read(rid, 0, Regs.LEDCTL.offset + offset if offset >= 0 else offset, size)
    assert rig.get(Regs.LEDCTL) == 0x4433AA11
    assert rig.nic.bar_read(rid, 0, 0x20000, 4) == M32
