"""The PF's register map against offsets, resets and bits written down here once more, from the datasheet's tables."""

from __future__ import annotations

import numpy as np
import pytest

from virtfn.hw.bits import Access, Decl, Field, Register, RegMap, Status, array, reg
from virtfn.hw.i82576 import BAR0_BYTES, QUEUES, VECTORS, VFS, Regs, fields, rxtx, vf_vector
from virtfn.machine.regfile import RegFile

OFFSETS = {
    "CTRL": 0x0000, "STATUS": 0x0008, "EECD": 0x0010, "EERD": 0x0014, "CTRL_EXT": 0x0018, "MDIC": 0x0020,
    "FCAL": 0x0028, "FCAH": 0x002C, "FCT": 0x0030, "VET": 0x0038, "RCTL": 0x0100, "FCTTV": 0x0170, "TCTL": 0x0400,
    "TIPG": 0x0410, "LEDCTL": 0x0E00, "EEMNGCTL": 0x1010, "EEWR": 0x102C, "FRTIMER": 0x1048, "TCPTIMER": 0x104C,
    "ICR": 0x1500, "ICS": 0x1504, "IMS": 0x1508, "IMC": 0x150C, "IAM": 0x1510, "GPIE": 0x1514, "EICS": 0x1520,
    "EIMS": 0x1524, "EIMC": 0x1528, "EIAC": 0x152C, "EIAM": 0x1530, "EICR": 0x1580, "IVAR_MISC": 0x1740,
    "FCRTL": 0x2160, "FCRTH": 0x2168, "RXPBS": 0x2404, "QDE": 0x2408, "SWPBS": 0x3004, "TXPBS": 0x3404,
    "DTXSWC": 0x3500, "LVMMC": 0x3548, "WVBR": 0x3554, "DTXCTL": 0x3590, "RTTDQSEL": 0x3604, "RTTBCNRM": 0x3690,
    "RTTBCNRC": 0x36B0, "CRCERRS": 0x4000, "MPC": 0x4010, "GPRC": 0x4074, "BPRC": 0x4078, "MPRC": 0x407C,
    "GPTC": 0x4080, "GORCL": 0x4088, "GORCH": 0x408C, "GOTCL": 0x4090, "GOTCH": 0x4094, "RNBC": 0x40A0,
    "RUC": 0x40A4, "ROC": 0x40AC, "TORL": 0x40C0, "TOTH": 0x40CC, "TPR": 0x40D0, "TPT": 0x40D4, "PTC64": 0x40D8,
    "MPTC": 0x40F0, "BPTC": 0x40F4, "TSCTC": 0x40F8, "IAC": 0x4100, "RPTHC": 0x4104, "HGPTC": 0x4118,
    "HTCBDPC": 0x4124, "LENERRS": 0x4138, "SSVPC": 0x41A0, "RXCSUM": 0x5000, "RLPML": 0x5004, "RFCTL": 0x5008,
    "MRQC": 0x5818, "VT_CTL": 0x581C, "MANC": 0x5820, "RPLOLR": 0x5AF0, "GCR": 0x5B00, "SWSM": 0x5B50,
    "FWSM": 0x5B54, "SW_FW_SYNC": 0x5B5C, "PBACL": 0x5B68, "IOVCTL": 0x5BBC, "SCCRL": 0x5DB0, "BSCTRH": 0x5DB8,
    "MSCTRH": 0x5DBC, "MBVFICR": 0x0C80, "MBVFIMR": 0x0C84, "VFLRE": 0x0C88, "VFRE": 0x0C8C, "VFTE": 0x0C90,
    "TIMINCA": 0xB608, "TSYNCTXCTL": 0xB614, "TSYNCRXCTL": 0xB620, "TSICR": 0xB66C,
}  # fmt: skip

# name: (first offset, stride, count)
ARRAYS = {
    "VMBMEM": (0x0800, 4, 128), "P2VMAILBOX": (0x0C00, 4, 8), "V2PMAILBOX": (0x0C40, 4, 8), "EITR": (0x1680, 4, 25),
    "IVAR": (0x1700, 4, 8), "VMVIR": (0x3700, 4, 8), "MTA": (0x5200, 4, 128), "RAL": (0x5400, 8, 16),
    "RAH": (0x5404, 8, 16), "PSRTYPE": (0x5480, 4, 8), "RALX": (0x54E0, 8, 8), "RAHX": (0x54E4, 8, 8),
    "VFTA": (0x5600, 4, 128), "VMOLR": (0x5AD0, 4, 8), "RETA": (0x5C00, 4, 32), "RSSRK": (0x5C80, 4, 10),
    "ETQF": (0x5CB0, 4, 8), "VLVF": (0x5D00, 4, 32), "VMRCTL": (0x5D80, 4, 4), "VMRVLAN": (0x5D90, 4, 4),
    "VMRVM": (0x5DA0, 4, 4), "UTA": (0xA000, 4, 128), "VTCTRL": (0x10000, 0x100, 8), "VFGPRC": (0x10010, 0x100, 8),
    "VTEICS": (0x10020, 0x100, 8), "VTEIMS": (0x10024, 0x100, 8), "VTEICR": (0x10080, 0x100, 8),
    "VTIVAR": (0x11700, 4, 8), "VTIVAR_MISC": (0x11720, 4, 8),
}  # fmt: skip

QUEUE_REGISTERS = {
    "RDBAL": 0x00, "RDBAH": 0x04, "RDLEN": 0x08, "SRRCTL": 0x0C, "RDH": 0x10, "RXCTL": 0x14, "RDT": 0x18,
    "RXDCTL": 0x28, "RQDPC": 0x30, "TDBAL": 0x00, "TDBAH": 0x04, "TDLEN": 0x08, "TDH": 0x10, "TXCTL": 0x14,
    "TDT": 0x18, "TXDCTL": 0x28, "TDWBAL": 0x38, "TDWBAH": 0x3C,
}  # fmt: skip

BITS = {
    fields.CTRL.GIO_MASTER_DISABLE: (2, 2), fields.CTRL.RST: (26, 26), fields.CTRL.PHY_RST: (31, 31),
    fields.STATUS.NUM_VFS: (17, 14), fields.STATUS.IOV_MODE: (18, 18), fields.STATUS.GIO_MASTER_EN: (19, 19),
    fields.CTRL_EXT.PFRSTD: (14, 14), fields.CTRL_EXT.DRV_LOAD: (28, 28), fields.MDIC.READY: (28, 28),
    fields.ICR.VMMB: (8, 8), fields.ICR.DOUTSYNC: (28, 28), fields.GPIE.EIAME: (30, 30),
    fields.EITR.INTERVAL: (14, 2), fields.IVAR.TX_HIGH: (28, 24), fields.V2PMAILBOX.RSTD: (7, 7),
    fields.P2VMAILBOX.RVFU: (4, 4), fields.VTIVAR.RX1: (17, 16), rxtx.SRRCTL.DESCTYPE: (27, 25),
    rxtx.SRRCTL.DROP_EN: (31, 31), rxtx.RXDCTL.ENABLE: (25, 25), rxtx.RXDCTL.WTHRESH: (20, 16),
    rxtx.RAH.POOLSEL: (25, 18), rxtx.RAH.AV: (31, 31), rxtx.VT_CTL.DEF_PL: (9, 7), rxtx.VT_CTL.RPL_EN: (30, 30),
    rxtx.VMOLR.RLPML: (13, 0), rxtx.VMOLR.AUPE: (24, 24), rxtx.VMOLR.ROMPE: (25, 25), rxtx.VMOLR.ROPE: (26, 26),
    rxtx.VMOLR.BAM: (27, 27), rxtx.VMOLR.MPME: (28, 28), rxtx.VMOLR.STRVLAN: (30, 30), rxtx.DTXSWC.LLE: (23, 16),
    rxtx.DTXSWC.VLANAS: (15, 8), rxtx.VLVF.POOLSEL: (19, 12), rxtx.VLVF.LVLAN: (20, 20), rxtx.VMVIR.VLANA: (31, 30),
    rxtx.DTXCTL.MDP_EN: (5, 5), rxtx.DTXCTL.SPOOF_INT: (6, 6), rxtx.RTTBCNRC.RF_INT: (27, 14),
    rxtx.LVMMC.LAST_Q: (19, 16), rxtx.MRQC.RSS_UDP6_EX: (24, 24), rxtx.ETQF.FILTER_EN: (26, 26),
}  # fmt: skip

RESETS = {
    "VET": 0x81008100, "LEDCTL": 0x07068302, "RXPBS": 64, "TXPBS": 40, "RXCSUM": 0x300, "RXDCTL": 0x00010000,
    "TXCTL": 0x2A00, "VMOLR": 0x80002600, "MBVFIMR": 0xFF, "VTIVAR": 0x0A0A0A0A, "TXDCTL": 0, "TDWBAL": 0,
}  # fmt: skip


def named(name: str) -> Decl:
    decl = getattr(Regs, name)
    assert isinstance(decl, Decl)
    return decl


@pytest.fixture
def registers() -> RegFile:
    return RegFile(Regs, np.zeros(BAR0_BYTES, np.uint8), BAR0_BYTES)


@pytest.mark.parametrize(("name", "offset"), OFFSETS.items())
def test_single_registers_are_where_the_datasheet_has_them(name: str, offset: int) -> None:
    assert named(name).at() == offset
    assert Regs.lookup(offset) == (named(name), 0)
    assert not named(name).is_array


@pytest.mark.parametrize(("name", "shape"), ARRAYS.items())
def test_arrays_have_the_datasheets_shape(name: str, shape: tuple[int, int, int]) -> None:
    first, stride, count = shape
    decl = named(name)
    assert decl.count == count
    assert [decl.at(i) for i in range(count)] == [first + stride * i for i in range(count)]


@pytest.mark.parametrize("name", QUEUE_REGISTERS)
def test_every_queue_answers_in_its_place_and_the_first_four_in_the_old_one_too(name: str) -> None:
    receive = name.startswith("R") or name == "SRRCTL"
    base, legacy = (0xC000, 0x2800) if receive else (0xE000, 0x3800)
    for queue in range(QUEUES):
        assert Regs.lookup(base + 0x40 * queue + QUEUE_REGISTERS[name]) == (named(name), queue)
        old = Regs.lookup(legacy + 0x100 * queue + QUEUE_REGISTERS[name])
        if queue < 4:
            assert old == (named(name), queue)
        else:
            assert old is None or old[0] is not named(name)


@pytest.mark.parametrize(("field", "span"), BITS.items(), ids=lambda value: getattr(value, "name", None))
def test_bits_are_where_the_datasheet_has_them(field: Field, span: tuple[int, int]) -> None:
    assert (field.msb, field.lsb) == span


@pytest.mark.parametrize(("name", "value"), RESETS.items())
def test_reset_values(registers: RegFile, name: str, value: int) -> None:
    assert registers.read(named(name).at(), 4) == value


def test_old_names_of_control_and_interrupts_reach_the_same_registers() -> None:
    for alias, decl in {
        0x4: Regs.CTRL,
        0xC0: Regs.ICR,
        0xC8: Regs.ICS,
        0xD0: Regs.IMS,
        0xD8: Regs.IMC,
        0xE0: Regs.IAM,
    }.items():
        assert Regs.lookup(alias) == (decl, 0)


def test_both_places_of_vfmprc_reach_it() -> None:
    for vf in range(VFS):
        assert Regs.lookup(0x10038 + 0x100 * vf) == (Regs.VFMPRC, vf)
        assert Regs.lookup(0x1003C + 0x100 * vf) == (Regs.VFMPRC, vf)


def test_the_map_is_inside_the_bar_and_every_word_has_one_owner() -> None:
    owners: dict[int, str] = {}
    for decl, i, at in Regs.elements():
        assert at + decl.size <= BAR0_BYTES
        assert at not in owners, (owners.get(at), decl.label(i))
        owners[at] = decl.label(i)
    assert len(Regs.INDEX) == len(owners) + sum(decl.alias[2] for decl in Regs.DECLS if decl.alias is not None)


def test_every_register_says_what_it_is() -> None:
    silent = [d.name for d in Regs.DECLS if not d.about and (d.kind is Register or not d.kind.__doc__)]
    assert silent == []


def test_fields_fit_their_registers_and_reset_values_their_width() -> None:
    for decl in Regs.DECLS:
        assert all(f.msb < decl.width for f in decl.kind.FIELDS), decl.name
        assert 0 <= decl.reset < 1 << decl.width, decl.name
        assert decl.writable is None or decl.access in (Access.RW, Access.RC), decl.name


def test_rctl_keeps_exactly_its_named_bits() -> None:
    assert Regs.RCTL.write_mask == sum(field.mask for field in rxtx.RCTL.FIELDS)


def test_vf_vectors_are_22_minus_3n() -> None:
    assert [vf_vector(vf) for vf in range(VFS)] == [22, 19, 16, 13, 10, 7, 4, 1]
    assert vf_vector(0, 2) == VECTORS - 1


@pytest.mark.parametrize("overlapping", [0x10, 0x12])
def test_overlaps_between_chapters_of_a_map_fail_at_once(overlapping: int) -> None:
    class First:
        A = reg(0x10)

    class Second:
        B = array(overlapping, stride=4, count=2, width=32 if overlapping % 4 == 0 else 16)

    with pytest.raises(TypeError, match="overlaps"):
        type("Both", (First, Second, RegMap), {})


def test_what_the_model_must_do_is_declared_modelled() -> None:
    acting = (Regs.CTRL, Regs.MDIC, Regs.RCTL, Regs.ICR, Regs.EITR, Regs.VMBMEM, Regs.RDT, Regs.VLVF, Regs.DTXSWC)
    assert {decl.status for decl in acting} == {Status.MODELLED}
    assert named("LSECTXCTRL").status is Status.ABSENT


# `ethtool -t`, register test: (register, elements, written, kept). Queues 4 to 15 and the first four alike.
ETHTOOL = [
    ("FCAL", 1, 0xFFFFFFFF, 0xFFFFFFFF),
    ("FCAH", 1, 0xFFFFFFFF, 0x0000FFFF),
    ("FCT", 1, 0xFFFFFFFF, 0x0000FFFF),
    ("VET", 1, 0xFFFFFFFF, 0xFFFFFFFF),
    ("RDBAL", 16, 0xFFFFFFFF, 0xFFFFFF80),
    ("RDBAH", 16, 0xFFFFFFFF, 0xFFFFFFFF),
    ("RDLEN", 16, 0x000FFFFF, 0x000FFFF0),
    ("RDT", 16, 0x0000FFFF, 0x0000FFFF),
    ("FCRTH", 1, 0x0000FFF0, 0x0000FFF0),
    ("FCTTV", 1, 0x0000FFFF, 0x0000FFFF),
    ("TIPG", 1, 0x3FFFFFFF, 0x3FFFFFFF),
    ("TDBAL", 16, 0xFFFFFFFF, 0xFFFFFF80),
    ("TDBAH", 16, 0xFFFFFFFF, 0xFFFFFFFF),
    ("TDLEN", 16, 0x000FFFFF, 0x000FFFF0),
    ("RAL", 16, 0xFFFFFFFF, 0xFFFFFFFF),
    ("RAH", 16, 0xFFFFFFFF, 0x83FFFFFF),
    ("RALX", 8, 0xFFFFFFFF, 0xFFFFFFFF),
    ("RAHX", 8, 0xFFFFFFFF, 0x83FFFFFF),
    ("MTA", 128, 0xFFFFFFFF, 0xFFFFFFFF),
]


@pytest.mark.parametrize(("name", "count", "written", "kept"), ETHTOOL)
def test_patterns_of_the_ethtool_register_test_are_kept(
    registers: RegFile, name: str, count: int, written: int, kept: int
) -> None:
    decl = named(name)
    assert decl.count == count
    for i in range(count):
        for pattern in (0x5A5A5A5A, 0xA5A5A5A5, 0x00000000, 0xFFFFFFFF):
            registers.write(decl.at(i), 4, pattern & written)
            assert registers.read(decl.at(i), 4) & kept == pattern & written & kept


def test_status_cannot_be_written_and_control_reads_back_zero_after_zero(registers: RegFile) -> None:
    before = registers.read(Regs.STATUS.at(), 4)
    registers.write(Regs.STATUS.at(), 4, 0x7FFFF3FF)
    assert registers.read(Regs.STATUS.at(), 4) == before
    for decl in (Regs.RCTL, Regs.TCTL):
        registers.write(decl.at(), 4, 0)
        assert registers.read(decl.at(), 4) == 0
    tested = 0x04CFB0FE
    for pattern in (0x003FFFFB, 0xFFFFFFFF):
        registers.write(Regs.RCTL.at(), 4, pattern & tested)
        assert registers.read(Regs.RCTL.at(), 4) & tested == pattern & tested


def test_one_shot_bits_read_back_zero(registers: RegFile) -> None:
    registers.write(Regs.CTRL.at(), 4, fields.CTRL.of(RST=1, PHY_RST=1, SLU=1).value)
    assert registers.read(Regs.CTRL.at(), 4) == fields.CTRL.SLU.mask


def test_software_cannot_store_the_mailbox_flags_of_hardware(registers: RegFile) -> None:
    registers.write(Regs.V2PMAILBOX.at(2), 4, 0xFF)
    assert registers.read(Regs.V2PMAILBOX.at(2), 4) == fields.V2PMAILBOX.VFU.mask
    registers.write(Regs.P2VMAILBOX.at(2), 4, 0xFF)
    assert registers.read(Regs.P2VMAILBOX.at(2), 4) == fields.P2VMAILBOX.PFU.mask


def test_statistics_clear_when_read_and_low_halves_wait_for_the_high(registers: RegFile) -> None:
    registers.poke(Regs.GPRC, 0, 7)
    registers.poke(Regs.GORCL, 0, 9)
    assert [registers.read(Regs.GPRC.at(), 4) for _ in range(2)] == [7, 0]
    assert [registers.read(Regs.GORCL.at(), 4) for _ in range(2)] == [9, 9]
    registers.write(Regs.GPRC.at(), 4, 5)
    assert registers.read(Regs.GPRC.at(), 4) == 0


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0xC0E8, 0x02000008, "RXDCTL[3] = 0x02000008 (PTHRESH=8, ENABLE=1)"),
        (
            0x280C,
            0x8A000202,
            "SRRCTL[0] = 0x8a000202 (BSIZEPACKET=2, BSIZEHEADER=2, DESCTYPE=ADV_SPLIT_ALWAYS, DROP_EN=1)",
        ),
        (0x5818, 0x00000005, "MRQC = 0x00000005 (MODE=VMDQ_RSS)"),
        (0x5818, 0x00000004, "MRQC = 0x00000004 (MODE=4)"),
        (0x3FFC, 0x00000001, "[0x3ffc] = 0x00000001 (undeclared)"),
    ],
)
def test_accesses_in_words(offset: int, value: int, text: str) -> None:
    assert Regs.describe(offset, value) == text
