"""The remapping unit through its registers: protocol, invalidation, fault records, DMA in Python."""

from __future__ import annotations

import numpy as np
import pytest

from unit.devices.iommu.rig import RID, R, Rig
from virtfn.devices.iommu import IommuUnit
from virtfn.hw.types import Iova
from virtfn.hw.vtd.regs import (
    CAP,
    CCMD,
    ECAP,
    FRCD_HIGH,
    FSTS,
    GCMD,
    GSTS,
    IOTLB,
    IVA,
    RTADDR,
    WINDOW_BYTES,
    EventControl,
    Fault,
    Granularity,
    Regs,
    decode_fault,
    encode_fault,
)
from virtfn.hw.vtd.tables import FaultReason


@pytest.fixture
def w():
    rig = Rig()
    yield rig
    rig.memory.close()


def test_capabilities_are_honest(w: Rig) -> None:
    cap, ecap = CAP(w.read(Regs.CAP)), ECAP(w.read(Regs.ECAP))
    assert w.read(Regs.VER) == 0x10
    assert Regs.FRCD_LOW.offset == cap.FRO * 16
    assert Regs.FRCD_LOW.count == cap.NFR + 1
    assert Regs.IVA.offset == ecap.IRO * 16
    assert (cap.MGAW, cap.SAGAW, cap.SSLPS, cap.CM, cap.RWBF) == (47, 6, 3, 0, 0)
    assert (ecap.PT, ecap.C, ecap.QI) == (1, 1, 1)
    assert (ecap.PASID, ecap.SMTS, ecap.PDS, ecap.DIT) == (0, 0, 0, 0)


def test_read_only_registers_and_absent_ones(w: Rig) -> None:
    for decl in (Regs.VER, Regs.CAP, Regs.ECAP, Regs.GSTS):
        before = w.read(decl)
        w.write(decl, (1 << decl.width) - 1)
        assert w.read(decl) == before
    for decl, index, _ in Regs.elements():
        if decl.status.value == "absent":
            w.write(decl, (1 << decl.width) - 1, index)
            assert w.read(decl, index) == 0, decl.name


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (-4, 4), (WINDOW_BYTES, 4), (0, 16)])
def test_odd_accesses(w: Rig, offset: int, size: int) -> None:
    assert w.device.read(offset, size) == (1 << 8 * size) - 1
    w.device.write(offset, size, 0)


def test_every_offset_takes_anything(w: Rig) -> None:
    for offset in range(0, WINDOW_BYTES, 4):
        w.device.write(offset, 4, 0xFFFF_FFFF)
        w.device.read(offset, 4)
    w.device.reset()
    assert w.read(Regs.GSTS) == 0
    assert w.device.dma_read(R, Iova(w.page), 4) == bytes(4)


def test_remapping_begins_with_te(w: Rig) -> None:
    assert w.device.dma_write(R, Iova(w.page), b"host")
    w.write(Regs.RTADDR, w.root)
    assert w.read(Regs.GSTS) == 0
    w.write(Regs.GCMD, GCMD.SRTP.mask)
    assert w.read(Regs.GSTS) == GSTS.RTPS.mask
    assert w.device.dma_read(R, Iova(w.page), 4) == b"host"
    w.write(Regs.GCMD, GCMD.TE.mask)
    assert w.read(Regs.GSTS) == GSTS.RTPS.mask | GSTS.TES.mask
    assert w.read(Regs.GCMD) == 0
    assert w.device.dma_read(R, Iova(0x1000), 4) == b"host"
    assert w.device.dma_read(R, Iova(w.page), 4) is None
    w.write(Regs.GCMD, 0)
    assert w.read(Regs.GSTS) == GSTS.RTPS.mask
    assert w.device.dma_read(R, Iova(w.page), 4) == b"host"


def test_root_table_takes_effect_with_srtp_and_caches_stay(w: Rig) -> None:
    w.enable()
    assert w.device.dma_read(R, Iova(0x1000), 4) is not None
    empty = w.memory.alloc_page()
    w.write(Regs.RTADDR, empty | RTADDR.TTM.mask)
    assert w.read(Regs.RTADDR) == empty
    assert w.device.dma_read(R, Iova(0x1000), 4) is not None
    w.write(Regs.GCMD, GCMD.TE.mask | GCMD.SRTP.mask)
    assert w.device.dma_read(R, Iova(0x1000), 4) is not None, "contexts are stale until invalidated"
    w.write(Regs.CCMD, CCMD.of(ICC=1, CIRG=Granularity.GLOBAL).value)
    assert w.device.dma_read(R, Iova(0x1000), 4) is None
    assert w.device.faults()[-1].reason == FaultReason.ROOT_NOT_PRESENT


def test_wild_root_table(w: Rig) -> None:
    w.write(Regs.RTADDR, (1 << 64) - 4096)
    w.write(Regs.GCMD, GCMD.SRTP.mask)
    w.write(Regs.GCMD, GCMD.TE.mask)
    assert not w.device.dma_write(R, Iova(0), b"x")
    assert w.device.faults() == [Fault(R, Iova(0), FaultReason.ROOT_TABLE_ACCESS, True)]


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    ("command", "forgets"),
    [
        ({"CIRG": 1}, True),
        ({"CIRG": 2, "DID": 5}, True),
        ({"CIRG": 2, "DID": 6}, False),
        ({"CIRG": 3, "DID": 5, "SID": RID}, True),
        ({"CIRG": 3, "DID": 5, "SID": RID ^ 1}, False),
        ({"CIRG": 3, "DID": 5, "SID": RID ^ 4, "FM": 1}, True),
        ({"CIRG": 3, "DID": 5, "SID": RID ^ 6, "FM": 2}, True),
        ({"CIRG": 3, "DID": 5, "SID": RID ^ 7, "FM": 3}, True),
        ({"CIRG": 3, "DID": 5, "SID": RID ^ 1, "FM": 2}, False),
    ],
)
def test_context_command(w: Rig, command: dict[str, int], forgets: bool, halves: bool) -> None:
    w.enable()
    assert w.device.dma_read(R, Iova(0x1000), 4) is not None
    w.set_context(RID, 0, 0)
    value = CCMD.of(ICC=1, **command).value
    if halves:
        w.device.write(Regs.CCMD.offset, 4, value & 0xFFFF_FFFF)
        w.device.write(Regs.CCMD.offset + 4, 4, value >> 32)
    else:
        w.write(Regs.CCMD, value)
    done = CCMD(w.read(Regs.CCMD))
    assert (0, command["CIRG"]) == (done.ICC, done.CAIG)
    assert (w.device.dma_read(R, Iova(0x1000), 4) is None) is forgets


def test_reserved_granularity_is_refused(w: Rig) -> None:
    w.write(Regs.CCMD, CCMD.of(ICC=1).value)
    assert CCMD(w.read(Regs.CCMD)).CAIG == 0
    w.write(Regs.IOTLB, IOTLB.of(IVT=1).value)
    assert IOTLB(w.read(Regs.IOTLB)).IAIG == 0


@pytest.mark.parametrize(
    ("command", "where", "granted", "forgets"),
    [
        ({"IIRG": 1}, 0, 1, True),
        ({"IIRG": 2, "DID": 5}, 0, 2, True),
        ({"IIRG": 2, "DID": 6}, 0, 2, False),
        ({"IIRG": 3, "DID": 5}, 0x1000, 3, True),
        ({"IIRG": 3, "DID": 5}, 0x2000, 3, False),
        ({"IIRG": 3, "DID": 5}, 0x2000 | 2, 3, True),
        ({"IIRG": 3, "DID": 5}, 0x3F000 | 18, 3, True),
        ({"IIRG": 3, "DID": 5}, 0x1000 | 19, 0, False),
        ({"IIRG": 3, "DID": 5}, 0xFFFF_FFFF_FFFF_F000, 3, False),
    ],
)
def test_iotlb_command(w: Rig, command: dict[str, int], where: int, granted: int, forgets: bool) -> None:
    w.enable()
    assert w.device.dma_read(R, Iova(0x1000), 4) is not None
    w.put(w.ss[1] + 8, 0)
    assert w.device.dma_read(R, Iova(0x1000), 4) is not None, "stale until invalidated"
    w.write(Regs.IVA, where)
    assert where & 63 == IVA(w.read(Regs.IVA)).AM
    w.write(Regs.IOTLB, IOTLB.of(IVT=1, **command).value)
    done = IOTLB(w.read(Regs.IOTLB))
    assert (0, granted) == (done.IVT, done.IAIG)
    assert (w.device.dma_read(R, Iova(0x1000), 4) is None) is forgets


def test_fault_is_recorded_and_cleared(w: Rig) -> None:
    w.enable()
    assert not w.device.dma_write(R, Iova(0x5678), b"x")
    status = FSTS(w.read(Regs.FSTS))
    assert (status.PPF, status.FRI, status.PFO) == (1, 0, 0)
    fault = decode_fault(w.read(Regs.FRCD_LOW), w.read(Regs.FRCD_HIGH))
    assert fault == Fault(R, Iova(0x5000), FaultReason.WRITE_NOT_ALLOWED, True)
    w.write(Regs.FRCD_HIGH, 0)
    assert FRCD_HIGH(w.read(Regs.FRCD_HIGH)).F == 1
    w.device.write(Regs.FRCD_HIGH.offset + 4, 4, 1 << 31)
    assert FRCD_HIGH(w.read(Regs.FRCD_HIGH)).F == 0
    assert w.read(Regs.FSTS) == 0
    assert w.device.faults() == [Fault(R, Iova(0x5678), FaultReason.WRITE_NOT_ALLOWED, True)]
    assert str(fault) == "0000:01:10.0: write to 0x5000 refused: write not allowed"
    assert decode_fault(*(half.value for half in encode_fault(fault))) == fault


def test_records_overflow_until_software_clears(w: Rig) -> None:
    w.enable()
    w.refuse(3)
    for i in (0, 1):
        w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask, i)
    assert FSTS(w.read(Regs.FSTS)).PPF == 1
    w.refuse(7)
    assert FSTS(w.read(Regs.FSTS)).PFO == 0
    w.refuse(2)
    status = FSTS(w.read(Regs.FSTS))
    assert (status.PFO, status.PPF, w.device.stats()["faults_lost"]) == (1, 1, 2)
    for i in range(Regs.FRCD_HIGH.count):
        w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask, i)
    w.refuse()
    assert w.device.stats()["faults_lost"] == 3, "an overflow stops recording"
    w.write(Regs.FSTS, FSTS.PFO.mask)
    assert w.read(Regs.FSTS) & (FSTS.PFO.mask | FSTS.PPF.mask) == 0
    w.refuse()
    status = FSTS(w.read(Regs.FSTS))
    assert (status.PPF, status.FRI) == (1, 2), "records are used in turn"
    assert len(w.device.faults()) == 14


def test_ring_overflow_becomes_pfo(w: Rig) -> None:
    w.enable()
    for i in range(200):
        w.ask(0x10000 + 4096 * i)
    assert FSTS(w.read(Regs.FSTS)).PFO == 1
    assert w.device.stats()["faults_lost"] == 200 - 8
    assert w.device.stats()["faults"] == 200


def test_fault_event(w: Rig) -> None:
    w.enable()
    w.write(Regs.FEADDR, 0xFEE0_1003)
    w.write(Regs.FEUADDR, 0x1)
    w.write(Regs.FEDATA, 0x41)
    w.refuse()
    assert w.sent == []
    assert w.read(Regs.FECTL) == EventControl.IM.mask | EventControl.IP.mask
    w.write(Regs.FECTL, 0)
    assert w.sent == [(0x1_FEE0_1000, 0x41)]
    assert w.read(Regs.FECTL) == 0
    w.refuse()
    assert len(w.sent) == 1, "one event until the records are cleared"
    for i in range(2):
        w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask, i)
    w.refuse()
    assert len(w.sent) == 2


def test_event_that_nobody_saw_is_withdrawn(w: Rig) -> None:
    w.enable()
    w.refuse()
    assert EventControl(w.read(Regs.FECTL)).IP == 1
    w.write(Regs.FRCD_HIGH, FRCD_HIGH.F.mask)
    assert EventControl(w.read(Regs.FECTL)).IP == 0
    w.write(Regs.FECTL, 0)
    assert w.sent == []


def test_dma_in_python(w: Rig) -> None:
    w.enable()
    other = w.memory.alloc_page()
    w.put(w.ss[1] + 16, other | 1)
    assert w.device.dma_write(R, Iova(0x1FF0), b"0123456789abcdef")
    assert w.view(w.page + 0xFF0, 16).tobytes() == b"0123456789abcdef"
    w.view(other, 4)[:] = np.frombuffer(b"next", np.uint8)
    assert w.device.dma_read(R, Iova(0x1FFE), 6) == b"efnext"
    assert not w.device.dma_write(R, Iova(0x1FFE), b"......")
    assert w.view(w.page + 0xFFE, 2).tobytes() == b"ef", "a refused write touches no byte"
    assert w.device.dma_read(R, Iova(0x1000), 0) == b""
    assert w.device.dma_write(R, Iova(0x1000), b"")
    for length in (-1, 1 << 40, 1 << 70):
        assert w.device.dma_read(R, Iova(0x1000), length) is None
    for iova in ((1 << 64) - 1, 1 << 63, 1 << 48):
        assert w.device.dma_read(R, Iova(iova), 4) is None
        assert w.device.faults()[-1] == Fault(R, Iova(iova), FaultReason.ADDRESS_BEYOND_WIDTH, False)


def test_stats(w: Rig) -> None:
    w.enable()
    for _ in range(3):
        w.device.dma_read(R, Iova(0x1000), 4)
    w.refuse()
    stats = w.device.stats()
    assert (stats["translations"], stats["iotlb_hits"], stats["page_walks"], stats["faults"]) == (4, 2, 2, 1)


def test_stats_before_enable_count_no_translation(w: Rig) -> None:
    w.device.dma_read(R, Iova(w.page), 4)
    assert w.device.stats()["translations"] == 0
    assert w.device.stats()["bypassed"] == 1


def test_reset_forgets(w: Rig) -> None:
    w.enable()
    w.device.dma_read(R, Iova(0x1000), 4)
    w.refuse()
    w.device.reset()
    assert w.read(Regs.GSTS) == w.read(Regs.FSTS) == w.read(Regs.RTADDR) == 0
    assert w.device.faults() == []
    assert w.device.dma_read(R, Iova(0x1000), 4) is None
    w.put(w.ss[1] + 8, 0)
    w.enable()
    assert w.device.dma_read(R, Iova(0x1000), 4) is None, "caches are empty"


def test_iotlb_size_is_checked(w: Rig) -> None:
    with pytest.raises(ValueError, match="power of two"):
        IommuUnit(w.memory, 100)


@pytest.mark.parametrize("cfi", [0, 1])
def test_cfi_lets_messages_of_the_old_format_pass(w: Rig, cfi: int) -> None:
    w.write(Regs.IRTA, 0)
    w.write(Regs.GCMD, GCMD.SIRTP.mask)
    w.write(Regs.GCMD, GCMD.IRE.mask)
    status = w.read(Regs.GSTS)
    w.write(Regs.GCMD, GCMD.IRE.mask | GCMD.CFI.mask * cfi)
    assert w.read(Regs.GSTS) == status | GSTS.CFIS.mask * cfi
    assert w.device.interrupts.send(R, 0xFEE0_0000, 0x41) == bool(cfi)
