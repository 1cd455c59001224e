import pytest

from virtfn.hw.pci import (
    SURVIVES_FLR,
    Acs,
    Aer,
    Ari,
    DevCap,
    Dsn,
    Location,
    Msi,
    MsiX,
    Pcie,
    Pm,
    SrIov,
    SrIovControl,
    Type0,
    Type1,
)


@pytest.mark.parametrize(
    ("regs", "number"), [(Pm, 1), (Msi, 5), (Pcie, 0x10), (MsiX, 0x11)], ids=lambda v: getattr(v, "__name__", str(v))
)
def test_standard_capabilities_carry_their_id(regs, number):
    assert regs.ID.reset == number


@pytest.mark.parametrize(("regs", "number"), [(Aer, 1), (Dsn, 3), (Acs, 0xD), (Ari, 0xE), (SrIov, 0x10)])
def test_extended_capabilities_carry_their_id_and_version(regs, number):
    assert regs.HEADER.reset == 0x10000 | number


def test_both_headers_share_what_both_have():
    assert Type1.COMMAND is Type0.COMMAND
    assert Type1.INTERRUPT_LINE is Type0.INTERRUPT_LINE


def test_fields_are_where_silicon_has_them():
    assert DevCap(0x10008CC2).FLR == 1
    assert Location(0x2003).BIR == 3
    assert Location(0x2003).OFFSET * 8 == 0x2000
    assert str(SrIovControl(9)) == "VFE=1, MSE=1"
    assert Type0.describe(4, 0x0407) == "COMMAND = 0x0407 (IO=1, MEM=1, BME=1, INTX_DISABLE=1)"


def test_what_survives_a_reset_is_writable_or_latched():
    for decl, bits in SURVIVES_FLR.items():
        assert 0 < bits < 1 << decl.width
