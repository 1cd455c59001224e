"""A PF given whole to one guest, as in the days before VFs: what the guest finds, an ordinary card.

    000-03f  virtual, as for a VF; memory BARs only
    040-fff  the PF's own capabilities, passed through; but for those in HIDDEN, which are not in the list

Hidden is what makes more functions of one or reaches beyond it (SR-IOV, ARI, ATS, page requests), and MSI, whose
message would have to be the host's: MSI-X serves, and its table is virtual.
"""

from __future__ import annotations

from virtfn.hw.bits import RegMap
from virtfn.hw.pci import Ari, Ats, ExtendedHeader, Msi, PageRequests, SrIov
from virtfn.iovm.pcim import Found, FoundVf
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.iovm.walk import ConfigBus, offsets
from virtfn.machine.function import all_ones

__all__ = ["HIDDEN", "WholeConfig"]

HIDDEN: tuple[type[RegMap], ...] = (Msi, Ari, SrIov, Ats, PageRequests)
_ROM = 6


class WholeConfig(VirtualConfig):
    """A PF as its only guest sees it; a `ConfigSpace`."""

    def __init__(self, bus: ConfigBus, found: Found) -> None:
        bars = [bar for bar in found.bars if bar.bar != _ROM and not bar.io]
        as_one = FoundVf(
            found.rid, found.rid, 0, found.vendor_id, found.device_id, found.class_code, found.revision, bars
        )
        super().__init__(bus, as_one)
        self._closed: list[range] = []
        self._links: dict[int, int] = {}
        listed = offsets(bus, found.rid)
        for extended in (False, True):
            self._unlink([(number, at) for number, at, kind in listed if kind == extended], extended=extended)

    def _unlink(self, chain: list[tuple[int, int]], *, extended: bool) -> None:
        hidden = {_number(regs): _size(regs) for regs in HIDDEN if _extended(regs) == extended}
        shown = [at for number, at in chain if number not in hidden]
        self._closed += [range(at, at + hidden[number]) for number, at in chain if number in hidden]
        self._links.update(zip(shown, [*shown[1:], 0], strict=True))

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; what is hidden reads 0."""
        value = super().read(offset, size)
        if any(offset in part for part in self._closed):
            return 0
        at = offset & ~3
        if at not in self._links or value == all_ones(size):
            return value
        word = super().read(at, 4)
        if at >= 0x100:
            word = ExtendedHeader(word).replace(NEXT=self._links[at]).value
        else:
            word = word & ~0xFF00 | self._links[at] << 8
        return word >> 8 * (offset - at) & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes; ignored in what is hidden."""
        if not any(offset in part for part in self._closed):
            super().write(offset, size, value)


def _extended(regs: type[RegMap]) -> bool:
    return regs.INDEX[0][0].kind is ExtendedHeader


def _number(regs: type[RegMap]) -> int:
    head = regs.INDEX[0][0].reset
    return ExtendedHeader(head).ID if _extended(regs) else head


def _size(regs: type[RegMap]) -> int:
    last = max(decl.at(decl.count - 1) + decl.size for decl in regs.DECLS)
    return -(-last // 4) * 4
