"""The VF's window: each word leads to the PF's register of the same meaning, and to nobody else's."""

from __future__ import annotations

import pytest

from virtfn.hw.i82576 import BAR0_BYTES, MAILBOX_WORDS, VF_BAR0_BYTES, VFS, Regs, VfRegs, vf_view

SHARED = {Regs.STATUS.at(), Regs.FRTIMER.at(), Regs.PBRWAC.at(), Regs.PBTWAC.at()}

# VF offset: the PF's offset for VF n
PLACES = {
    0x0000: lambda n: 0x10000 + 0x100 * n,
    0x0004: lambda n: 0x10000 + 0x100 * n,
    0x0008: lambda n: 0x0008,
    0x1048: lambda n: 0x1048,
    0x0800: lambda n: 0x0800 + 0x40 * n,
    0x083C: lambda n: 0x083C + 0x40 * n,
    0x0C40: lambda n: 0x0C40 + 4 * n,
    0x0F0C: lambda n: 0x5480 + 4 * n,
    0x0F10: lambda n: 0x10010 + 0x100 * n,
    0x0F14: lambda n: 0x10014 + 0x100 * n,
    0x0F18: lambda n: 0x10018 + 0x100 * n,
    0x0F34: lambda n: 0x10034 + 0x100 * n,
    0x0F3C: lambda n: 0x10038 + 0x100 * n,
    0x0F40: lambda n: 0x10040 + 0x100 * n,
    0x0F44: lambda n: 0x10044 + 0x100 * n,
    0x0F48: lambda n: 0x10048 + 0x100 * n,
    0x0F50: lambda n: 0x10050 + 0x100 * n,
    0x1520: lambda n: 0x10020 + 0x100 * n,
    0x1524: lambda n: 0x10024 + 0x100 * n,
    0x1528: lambda n: 0x10028 + 0x100 * n,
    0x152C: lambda n: 0x1002C + 0x100 * n,
    0x1530: lambda n: 0x10030 + 0x100 * n,
    0x1580: lambda n: 0x10080 + 0x100 * n,
    0x1680: lambda n: 0x1680 + 4 * (22 - 3 * n),
    0x1684: lambda n: 0x1680 + 4 * (23 - 3 * n),
    0x1688: lambda n: 0x1680 + 4 * (24 - 3 * n),
    0x1700: lambda n: 0x11700 + 4 * n,
    0x1740: lambda n: 0x11720 + 4 * n,
    0x24E8: lambda n: 0x24E8,
    0x2800: lambda n: 0xC000 + 0x40 * n,
    0x2900: lambda n: 0xC000 + 0x40 * (n + 8),
    0x2818: lambda n: 0xC018 + 0x40 * n,
    0x2928: lambda n: 0xC028 + 0x40 * (n + 8),
    0x34E8: lambda n: 0x34E8,
    0x3800: lambda n: 0xE000 + 0x40 * n,
    0x3818: lambda n: 0xE018 + 0x40 * n,
    0x3938: lambda n: 0xE038 + 0x40 * (n + 8),
    0x393C: lambda n: 0xE03C + 0x40 * (n + 8),
}


@pytest.mark.parametrize("vf", range(VFS))
def test_words_lead_where_the_datasheet_says(vf: int) -> None:
    view = vf_view(vf)
    assert {offset: view[offset] for offset in PLACES} == {offset: place(vf) for offset, place in PLACES.items()}


def test_no_two_vfs_reach_the_same_register_but_for_the_shared_ones() -> None:
    seen: dict[int, int] = {}
    for vf in range(VFS):
        for target in set(vf_view(vf).values()) - SHARED:
            assert target not in seen, (hex(target), seen.get(target), vf)
            seen[target] = vf


def test_every_word_of_the_view_is_a_declared_register_of_both_maps_with_the_same_bits() -> None:
    for vf in range(VFS):
        for offset, target in vf_view(vf).items():
            mine, theirs = VfRegs.lookup(offset), Regs.lookup(target)
            assert mine is not None
            assert theirs is not None
            assert mine[0].kind is theirs[0].kind
            assert (mine[0].access, mine[0].reset, mine[0].write_mask) == (
                theirs[0].access,
                theirs[0].reset,
                theirs[0].write_mask,
            )
            assert offset < VF_BAR0_BYTES
            assert target < BAR0_BYTES
            assert target == theirs[0].at(theirs[1]), "the view names registers by their own offset, not an alias"


def test_the_pending_bits_of_the_pf_are_out_of_reach() -> None:
    assert all(Regs.PBACL.at() not in vf_view(vf).values() for vf in range(VFS))
    assert VfRegs.VTPBACL.at() not in vf_view(0)


def test_the_shared_registers_are_read_only() -> None:
    for target in SHARED:
        found = Regs.lookup(target)
        assert found is not None
        assert found[0].write_mask == 0


def test_a_mailbox_is_sixteen_words() -> None:
    assert VfRegs.VMBMEM.count == MAILBOX_WORDS == 16


@pytest.mark.parametrize("vf", [-1, 8])
def test_there_are_eight_vfs(vf: int) -> None:
    with pytest.raises(IndexError, match="8 VFs"):
        vf_view(vf)
