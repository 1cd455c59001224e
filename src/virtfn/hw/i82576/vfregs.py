"""The VF's registers: BAR0 of a virtual function, 16 KiB, and where each of its words lives in the PF's map.

A VF has no registers of its own: its BAR is a window, cut for it out of the PF's registers.

    VF n      0000, 0004   0008     0800..083f     1520..1580   1680..1688         2800, 2900    3800, 3900
    in PF     VTCTRL[n]    STATUS   VMBMEM[16 n]   VTEIxx[n]    EITR[22 - 3 n ..]  Rx n, n + 8   Tx n, n + 8

Words not listed read 0 and ignore writes.

Spec: 82576 datasheet, chapter "Virtual Function Device registers".
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Decl, Register, RegMap, Status, reg
from virtfn.hw.i82576.regs import QUEUES, VECTORS, VF_VECTORS, VFS, Regs, vf_vector

__all__ = ["MAILBOX_WORDS", "VF_BAR0_BYTES", "VF_QUEUES", "VfRegs", "vf_view"]

VF_BAR0_BYTES = 0x4000
VF_QUEUES = QUEUES // VFS
MAILBOX_WORDS = 16


def seen(offset: int, source: Decl, *, count: int = 1, stride: int = 0, alias: int | None = None) -> Decl:
    """Declare the VF's sight of `source`, a register of the PF's map."""
    return Decl(
        offset,
        source.kind,
        source.access,
        source.reset,
        count=count,
        stride=stride,
        writable=source.writable,
        alias=None if alias is None else (alias, 0, 1),
        status=source.status,
        about=source.about,
        is_array=count > 1,
    )


def queue(offset: int, source: Decl) -> Decl:
    """Declare a register of each of the VF's queues."""
    return seen(offset, source, count=VF_QUEUES, stride=0x100)


class VfRegs(RegMap):
    """BAR0 of a VF of the 82576."""

    VTCTRL = seen(0x0000, Regs.VTCTRL, alias=0x0004)
    VTSTATUS = seen(0x0008, Regs.STATUS)
    VMBMEM = seen(0x0800, Regs.VMBMEM, count=MAILBOX_WORDS, stride=4)
    V2PMAILBOX = seen(0x0C40, Regs.V2PMAILBOX)
    # Not part of the view: it is about the VF's own MSI-X table, which the PF does not have.
    VTPBACL = reg(0x0F04, Register, Access.WO, status=Status.MODELLED, about="Clear pending bits of the MSI-X table.")
    PSRTYPE = seen(0x0F0C, Regs.PSRTYPE)
    VFGPRC = seen(0x0F10, Regs.VFGPRC)
    VFGPTC = seen(0x0F14, Regs.VFGPTC)
    VFGORC = seen(0x0F18, Regs.VFGORC)
    VFGOTC = seen(0x0F34, Regs.VFGOTC)
    VFMPRC = seen(0x0F3C, Regs.VFMPRC)
    VFGPRLBC = seen(0x0F40, Regs.VFGPRLBC)
    VFGPTLBC = seen(0x0F44, Regs.VFGPTLBC)
    VFGORLBC = seen(0x0F48, Regs.VFGORLBC)
    VFGOTLBC = seen(0x0F50, Regs.VFGOTLBC)
    VTFRTIMER = seen(0x1048, Regs.FRTIMER)
    VTEICS = seen(0x1520, Regs.VTEICS)
    VTEIMS = seen(0x1524, Regs.VTEIMS)
    VTEIMC = seen(0x1528, Regs.VTEIMC)
    VTEIAC = seen(0x152C, Regs.VTEIAC)
    VTEIAM = seen(0x1530, Regs.VTEIAM)
    VTEICR = seen(0x1580, Regs.VTEICR)
    VTEITR = seen(0x1680, Regs.EITR, count=VF_VECTORS, stride=4)
    VTIVAR = seen(0x1700, Regs.VTIVAR)
    VTIVAR_MISC = seen(0x1740, Regs.VTIVAR_MISC)
    PBRWAC = seen(0x24E8, Regs.PBRWAC)
    RDBAL = queue(0x2800, Regs.RDBAL)
    RDBAH = queue(0x2804, Regs.RDBAH)
    RDLEN = queue(0x2808, Regs.RDLEN)
    SRRCTL = queue(0x280C, Regs.SRRCTL)
    RDH = queue(0x2810, Regs.RDH)
    RXCTL = queue(0x2814, Regs.RXCTL)
    RDT = queue(0x2818, Regs.RDT)
    RXDCTL = queue(0x2828, Regs.RXDCTL)
    RQDPC = queue(0x2830, Regs.RQDPC)
    PBTWAC = seen(0x34E8, Regs.PBTWAC)
    TDBAL = queue(0x3800, Regs.TDBAL)
    TDBAH = queue(0x3804, Regs.TDBAH)
    TDLEN = queue(0x3808, Regs.TDLEN)
    TDH = queue(0x3810, Regs.TDH)
    TXCTL = queue(0x3814, Regs.TXCTL)
    TDT = queue(0x3818, Regs.TDT)
    TXDCTL = queue(0x3828, Regs.TXDCTL)
    TDWBAL = queue(0x3838, Regs.TDWBAL)
    TDWBAH = queue(0x383C, Regs.TDWBAH)


# Registers of the view that the PF's map knows by another name.
_PF_NAME = {"VTSTATUS": "STATUS", "VTFRTIMER": "FRTIMER", "VTEITR": "EITR"}
_OUTSIDE = (VfRegs.VTPBACL,)


def vf_view(vf: int) -> dict[int, int]:
    """Map each word of VF `vf`'s BAR0 to the PF map's offset of the same register.

    Raises IndexError outside 0..7.
    """
    if not 0 <= vf < VFS:
        raise IndexError(f"the 82576 has {VFS} VFs, not a VF {vf}")
    view = {}
    for offset, (decl, i) in VfRegs.INDEX.items():
        if decl in _OUTSIDE:
            continue
        source: Decl = getattr(Regs, _PF_NAME.get(decl.name, decl.name))
        # How many the PF has tells how they are shared out.
        index = {
            1: 0,
            VFS: vf,
            QUEUES: vf + VFS * i,
            VECTORS: vf_vector(vf, i),
            VFS * MAILBOX_WORDS: MAILBOX_WORDS * vf + i,
        }
        view[offset] = source.at(index[source.count])
    return view
