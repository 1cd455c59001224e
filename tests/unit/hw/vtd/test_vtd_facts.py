"""The declarations of VT-d against the specification's own bit numbers, and plain integers against declarations."""

from __future__ import annotations

import pytest

from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd import regs, tables
from virtfn.hw.vtd.regs import Fault, Regs, decode_fault, encode_fault
from virtfn.hw.vtd.tables import ContextEntry, FaultReason, RootEntry, SecondStageEntry, level_shift


def test_context_entry() -> None:
    entry = ContextEntry(0x0000_0000_0004_5602 << 64 | 0x0000_1234_5678_900B)
    assert (entry.P, entry.FPD, entry.T, entry.SSPTPTR) == (1, 1, 2, 0x1_2345_6789)
    assert (entry.AW, entry.IGN, entry.DID) == (2, 0, 0x456)


def test_plain_integers_are_the_declarations() -> None:
    assert tables.ROOT_RESERVED_LOW == 0xFFE
    assert tables.CTX_RESERVED_LOW == 0xFF0
    assert tables.CTX_RESERVED_HIGH & (1 << 64) - 1 == 0xFFFF_FFFF_FF00_0080
    assert (tables.CTX_AW_LSB, tables.CTX_AW_MASK) == (0, 7)
    assert (tables.CTX_DID_LSB, tables.CTX_DID_MASK) == (8, 0xFFFF)
    assert (tables.CTX_T_LSB, tables.CTX_T_MASK) == (2, 3)
    assert tables.SS_ADDR == 0x0000_FFFF_FFFF_F000
    assert tables.SS_RESERVED == 0x000F_0000_0000_0000
    assert tables.SS_RESERVED_LEAF == 0x400F_0000_0000_0800
    assert (tables.SS_R, tables.SS_W, tables.SS_PS, tables.ROOT_P, tables.CTX_P, tables.CTX_FPD) == (1, 2, 128, 1, 1, 2)
    assert RootEntry.CTP.mask == SecondStageEntry.ADDR.mask | SecondStageEntry.HIGH.mask | 0xFFF << 52


def test_levels() -> None:
    assert [level_shift(level) for level in (1, 2, 3, 4)] == [12, 21, 30, 39]


@pytest.mark.parametrize(
    ("name", "offset", "size"),
    [
        ("VER", 0x00, 4),
        ("CAP", 0x08, 8),
        ("ECAP", 0x10, 8),
        ("GCMD", 0x18, 4),
        ("GSTS", 0x1C, 4),
        ("RTADDR", 0x20, 8),
        ("CCMD", 0x28, 8),
        ("FSTS", 0x34, 4),
        ("FECTL", 0x38, 4),
        ("PMEN", 0x64, 4),
        ("IQH", 0x80, 8),
        ("IQA", 0x90, 8),
        ("ICS", 0x9C, 4),
        ("IECTL", 0xA0, 4),
        ("IRTA", 0xB8, 8),
        ("PQA", 0xD0, 8),
        ("PRS", 0xDC, 4),
    ],
)
def test_offsets(name: str, offset: int, size: int) -> None:
    decl = getattr(Regs, name)
    assert (decl.offset, decl.size) == (offset, size)


def test_command_and_status_agree() -> None:
    for command, status in (("TE", "TES"), ("SRTP", "RTPS"), ("QIE", "QIES"), ("IRE", "IRES"), ("SIRTP", "IRTPS")):
        assert regs.GCMD.field(command).lsb == regs.GSTS.field(status).lsb


def test_registers_speak() -> None:
    command = regs.CCMD.of(ICC=1, CIRG=regs.Granularity.DOMAIN, DID=7)
    assert Regs.describe(0x28, command.value) == "CCMD = 0xc000000000000007 (DID=7, CIRG=DOMAIN, ICC=1)"
    assert Regs.lookup(0x238) == (Regs.FRCD_HIGH, 1)


@pytest.mark.parametrize("write", [False, True])
def test_fault_record(write: bool) -> None:
    fault = Fault(Rid(0x0182), Iova(0x7FFF_F123), FaultReason.PAGING_ENTRY_RESERVED, write)
    low, high = encode_fault(fault)
    assert (low.value, high.value >> 62, high.value & 0xFFFF) == (0x7FFF_F000, 2 if write else 3, 0x0182)
    assert decode_fault(low.value, high.value) == fault._replace(iova=Iova(0x7FFF_F000))
    with pytest.raises(ValueError, match="is not a valid FaultReason"):
        decode_fault(0, regs.FRCD_HIGH.of(F=1, FR=0xEE).value)
