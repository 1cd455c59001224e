"""The PHY's registers and how register 31 pages those above 15."""

from __future__ import annotations

import numpy as np
import pytest

from virtfn.hw.i82576 import PhyRegs, phy_address
from virtfn.machine.regfile import RegFile

SIZE = 0x4000


@pytest.fixture
def registers() -> RegFile:
    return RegFile(PhyRegs, np.zeros(SIZE, np.uint8), SIZE)


@pytest.mark.parametrize(
    ("number", "value"),
    [(0, 0x1140), (1, 0x796D), (2, 0x02A8), (3, 0x0391), (4, 0x01E1), (5, 0x45E1), (6, 1), (9, 0x0300), (10, 0x3C00)],
)
def test_reset_values_by_register_number(registers: RegFile, number: int, value: int) -> None:
    assert registers.read(2 * number, 2) == value


@pytest.mark.parametrize(
    ("selected", "number", "address"),
    [
        (0x0000, 2, 2),
        (0x11B1, 2, 2),  # 0 to 15 are on every page
        (0x0011, 17, 0x0011),
        (0x11B1, 17, 0x11B1),
        (0x18B1, 17, 0x18B1),
        (0x00B4, 20, 0x00B4),
        (0x0019, 25, 0x0019),
        (0x18B1, 31, 31),
    ],
)
def test_paging(selected: int, number: int, address: int) -> None:
    assert phy_address(selected, number) == address


def test_every_paged_register_is_reached_by_selecting_its_own_address() -> None:
    for _, _, at in PhyRegs.elements():
        address = at // 2
        assert phy_address(address, address & 31 if address > 15 else address) == address


def test_reset_and_restart_bits_read_back_zero(registers: RegFile) -> None:
    registers.write(0, 2, 0x1140 | PhyRegs.BMCR.kind.field("RESET").mask | PhyRegs.BMCR.kind.field("AN_RESTART").mask)
    assert registers.read(0, 2) == 0x1140
    registers.write(0, 2, 0x4140)
    assert registers.read(0, 2) == 0x4140


def test_the_identifier_and_the_status_cannot_be_written(registers: RegFile) -> None:
    for number in (1, 2, 3, 5, 10):
        before = registers.read(2 * number, 2)
        registers.write(2 * number, 2, before ^ 0xFFFF)
        assert registers.read(2 * number, 2) == before
