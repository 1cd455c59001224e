"""Where the port's registers rest: one shared region, so that pages of it can be mapped into guests.

    00000..1ffff   BAR0 of the PF, as in the map
    20000 + n*2000 VF n's receive page (VF BAR0 2000..2fff), then its transmit page (3000..3fff)

Ring registers of queue q live in the pages of VF q & 7, at 800 + 100 * (q >> 3) of the receive or transmit page,
whoever owns the queue; the PF's windows on them lead there. The two pages hold nothing but ring registers, so a guest
can have them mapped, and its tail writes trap nowhere. They are in a file of their own, at the offset that they have in
the VF's BAR0; each owner of the VF gets another file, so that none reaches the rings of the next.

A card without VFs has its ring registers at the PF's own offsets, c000 and e000, in pages that hold nothing else: a
guest that has the card whole can have those mapped.

Where descriptors and buffers must be fetched before the data plane may see them, a queue runs by a copy of its block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.queuecopy import RING_BLOCK, QueueCopy
from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import BAR0_BYTES, QUEUES, VFS, Regs
from virtfn.machine.memory import PAGE, SharedRegion
from virtfn.machine.ports import Mapping
from virtfn.machine.regfile import RegFile

__all__ = ["RING_PAGES", "PortRegisters"]

RING_PAGES, RING_START = 0x2000, 0x2000
_RX_WINDOW, _TX_WINDOW = 0x800, 0x1800
_RX_MAP, _TX_MAP = 0xC000, 0xE000
_BLOCK = RING_BLOCK.itemsize


_PF_PAGES = range(_RX_MAP, _TX_MAP + PAGE)  # from the first ring register to the last


def _vf_block(q: int, window: int) -> int:
    """Offset in the region of a register block of queue `q`, where there are VFs."""
    return BAR0_BYTES + (q % VFS) * RING_PAGES + window + (q // VFS) * 0x100


def _places() -> npt.NDArray[np.int64]:
    """Position in the region of each word of the PF's map, where there are VFs."""
    place = np.arange(0, BAR0_BYTES, 4, dtype=np.int64)
    for q in range(QUEUES):
        for at, window in ((_RX_MAP, _RX_WINDOW), (_TX_MAP, _TX_WINDOW)):
            first = (at + q * _BLOCK) // 4
            place[first : first + _BLOCK // 4] = _vf_block(q, window) + np.arange(0, _BLOCK, 4)
    return place


_PLACES, _OWN_PLACES = _places(), np.arange(0, BAR0_BYTES, 4, dtype=np.int64)


class PortRegisters(RegFile):
    """The registers of one port, in memory that can be shared. copies: by queue, of its receive and transmit block.

    vfs: whether the card can have VFs.
    """

    def __init__(self, vfs: bool = True) -> None:
        self.region = SharedRegion(BAR0_BYTES + vfs * VFS * RING_PAGES)
        self._vfs = vfs
        self.copies: dict[int, tuple[QueueCopy, QueueCopy]] = {}
        self._files: dict[int | None, int] = {}
        super().__init__(Regs, self.region.bytes, BAR0_BYTES, _PLACES if vfs else _OWN_PLACES)

    def _pages(self, n: int | None) -> tuple[range, int]:
        """Where the pages of VF `n`, or of the PF without VFs, rest in the region; and their offset in its BAR0."""
        if n is None:
            return _PF_PAGES, _RX_MAP
        at = BAR0_BYTES + n * RING_PAGES
        return range(at, at + RING_PAGES), RING_START

    def ring_pages(self, n: int | None) -> list[Mapping]:
        """List the pages of ring registers of VF `n`, or of the PF where there are no VFs, in a file of their own.

        The file is made when it is asked for. Raises VirtfnError if the system refuses it.
        """
        if n is None and self._vfs:
            return []
        pages, offset = self._pages(n)
        if n not in self._files:
            name = "virtfn-82576" if n is None else f"virtfn-82576-vf{n}"
            self._files[n] = self.region.share(name, pages.start, len(pages), lead=offset)
        sizes = ((0, PAGE), (_TX_MAP - _RX_MAP, PAGE)) if n is None else ((0, RING_PAGES),)
        return [
            Mapping(offset + at, self.region.bytes[pages.start + at :][:size], self._files[n], offset + at)
            for at, size in sizes
        ]

    def withdraw_rings(self, n: int | None) -> None:
        """Take these pages away from whoever has their file; the next to ask gets another."""
        if self._files.pop(n, None) is not None:
            pages, _ = self._pages(n)
            self.region.withdraw(pages.start, len(pages))

    def _block(self, q: int, window: int, own: int) -> int:
        """Offset in the region of a register block of queue `q`."""
        return _vf_block(q, window) if self._vfs else own + q * _BLOCK

    def _rx(self, q: int) -> int:
        return self._block(q, _RX_WINDOW, _RX_MAP)

    def _tx(self, q: int) -> int:
        return self._block(q, _TX_WINDOW, _TX_MAP)

    def copy(self, q: int) -> tuple[QueueCopy, QueueCopy]:
        """Make copies of the receive and the transmit block of queue `q`, by which it runs once it is wired again."""
        rx, tx = (self.region.bytes[at : at + _BLOCK].view(RING_BLOCK)[0] for at in (self._rx(q), self._tx(q)))
        self.copies[q] = QueueCopy(q, True, rx), QueueCopy(q, False, tx)
        return self.copies[q]

    def rx_block(self, q: int) -> int:
        """Address of the receive registers by which queue `q` runs."""
        return self.copies[q][0].address if q in self.copies else self.region.base + self._rx(q)

    def tx_block(self, q: int) -> int:
        """Address of the transmit registers by which queue `q` runs."""
        return self.copies[q][1].address if q in self.copies else self.region.base + self._tx(q)

    def words(self, decl: Decl) -> npt.NDArray[np.uint32]:
        """Look at an array of consecutive registers as (count,) uint32."""
        return self.region.bytes[decl.offset : decl.offset + 4 * decl.count].view(np.uint32)

    def close(self) -> None:
        """Release the region."""
        self._memory.release()
        self.region.close()
