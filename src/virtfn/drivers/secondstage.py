"""Second-stage tables as the remapping driver builds them, in pages of the machine's memory.

`TablePages` is where tables live. It knows every table page and every page that is mapped for devices, so that no page
is ever both. `SecondStage` is one tree of tables: map with the largest pages that alignment allows, split a large page
when a part of it goes away, give back tables that have become empty.

Spec: VT-d, second-stage translation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Hpa, Iova
from virtfn.hw.vtd.tables import SecondStageEntry, level_shift
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.ports import VirtfnError

__all__ = ["Leaf", "Range", "SecondStage", "TablePages"]

SHIFTS = (12, 21, 30)
_RW = SecondStageEntry.of(R=1, W=1).value
_ADDR = SecondStageEntry.ADDR.mask


class Leaf(NamedTuple):
    """One mapped page: 2**shift bytes."""

    iova: Iova
    hpa: Hpa
    shift: int
    read: bool
    write: bool


class Range(NamedTuple):
    """A stretch of a device's addresses with the same rights throughout."""

    iova: Iova
    bytes: int
    read: bool
    write: bool


class TablePages:
    """Pages of `memory` that hold tables, and the pages that devices may reach."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._words = memory.bytes.view("<u8")
        self._tables: dict[int, Counter[int]] = {shift: Counter() for shift in SHIFTS}
        self._mapped: dict[int, Counter[int]] = {shift: Counter() for shift in SHIFTS}

    def alloc(self) -> Hpa:
        """Take a zeroed page for a table.

        Raises VirtfnError when memory is exhausted, or hands out a page that devices can reach.
        """
        page = self._memory.alloc_page()
        if any(page >> shift in self._mapped[shift] for shift in SHIFTS):
            self._memory.free_page(page)
            raise VirtfnError(f"page {page:#x} is mapped for devices and cannot hold a table", errno_name="EFAULT")
        _adjust(self._tables, SHIFTS, page, 1)
        return page

    def free(self, page: Hpa) -> None:
        """Give a table's page back."""
        _adjust(self._tables, SHIFTS, page, -1)
        self._memory.free_page(page)

    def count(self) -> int:
        """Count the pages that hold tables."""
        return self._tables[SHIFTS[0]].total()

    def row(self, page: int) -> npt.NDArray[np.uint64]:
        """Look at a page as (512,) 64-bit words."""
        first = (page - self._memory.base) >> 3
        return self._words[first : first + PAGE // 8]

    def mappable(self, hpa: int, shift: int) -> bool:
        """Tell whether the page is memory, and holds no table."""
        return self._memory.contains(hpa, 1 << shift) and hpa >> shift not in self._tables[shift]

    def adjust_mapped(self, hpa: int, shift: int, by: int) -> None:
        """Count one mapping of a page more or less."""
        _adjust(self._mapped, (shift,), hpa, by)


def _adjust(counts: dict[int, Counter[int]], shifts: tuple[int, ...], address: int, by: int) -> None:
    for shift in shifts:
        page = address >> shift
        counts[shift][page] += by
        if not counts[shift][page]:
            del counts[shift][page]


def _present(row: npt.NDArray[np.uint64], first: int, last: int) -> list[int]:
    """List the entries from `first` to `last` that are not zero; the two may lie outside the table."""
    first, last = max(first, 0), min(last, 511)
    if first == last:  # as almost always when a single page is looked up
        return [first] if row[first] else []
    return [first + i for i in np.flatnonzero(row[first : last + 1]).tolist()]


class SecondStage:
    """One tree of second-stage tables.

    levels: 3 or 4. large: bitmap of large pages the unit knows, bit 0 2 MiB, bit 1 1 GiB. count: its pages; most: how
    many it may have, for mappings that others choose; None: no limit.
    """

    def __init__(self, pages: TablePages, levels: int, large: int) -> None:
        self._pages = pages
        self.levels = levels
        self.root = pages.alloc()
        self.count = 1
        self.most: int | None = None
        self.limit = 1 << level_shift(levels + 1)
        self._shifts = [s for bit, s in ((1, 30), (0, 21)) if large >> bit & 1 and s < level_shift(levels + 1)] + [12]

    def plan(self, iova: int, hpa: int, nbytes: int, read: bool, write: bool) -> list[Leaf]:
        """Cut a mapping into the largest pages that alignment allows."""
        leaves = []
        while nbytes:
            shift = next(s for s in self._shifts if not (iova | hpa) & (1 << s) - 1 and nbytes >> s)
            leaves.append(Leaf(Iova(iova), Hpa(hpa), shift, read, write))
            iova, hpa, nbytes = iova + (1 << shift), hpa + (1 << shift), nbytes - (1 << shift)
        return leaves

    def map(self, leaf: Leaf) -> None:
        """Write one leaf, and the tables above it.

        Raises VirtfnError if a table is needed and no memory is left, or there are as many as there may be.
        """
        level = (leaf.shift - 12) // 9 + 1
        table = self._pages.row(self.root)
        for above in range(self.levels, level, -1):
            i = leaf.iova >> level_shift(above) & 511
            if not table[i]:
                table[i] = self._alloc() | _RW
            table = self._pages.row(int(table[i]) & _ADDR)
        entry = SecondStageEntry.of(R=int(leaf.read), W=int(leaf.write), PS=int(level > 1)).value | leaf.hpa
        table[leaf.iova >> leaf.shift & 511] = entry
        self._pages.adjust_mapped(leaf.hpa, leaf.shift, 1)

    def unmap(self, iova: int, nbytes: int) -> tuple[int, list[Hpa]]:
        """Clear every leaf in a range, splitting large pages that cross its ends.

        Returns (bytes that were mapped, tables cut off); the caller frees these once no cache knows them.

        Raises VirtfnError if a split needs a table and no memory is left; then nothing was cleared.
        """
        for edge in (iova, iova + nbytes):
            for leaf in self.leaves(edge, PAGE) if edge < self.limit else ():
                self._split(leaf, edge)
        idle: list[Hpa] = []
        done = self._clear(self.root, self.levels, 0, iova, iova + nbytes, idle)
        self.count -= len(idle)
        return done, idle

    def _alloc(self) -> Hpa:
        if self.most is not None and self.count >= self.most:
            raise VirtfnError(f"these mappings need more than {self.most} tables", errno_name="ENOSPC")
        page = self._pages.alloc()
        self.count += 1
        return page

    def leaves(self, iova: int = 0, nbytes: int | None = None) -> Iterator[Leaf]:
        """Yield the leaves that overlap a range, by default all, in order of address."""
        last = self.limit if nbytes is None else iova + nbytes
        yield from self._leaves(self.root, self.levels, 0, iova, last)

    def ranges(self) -> list[Range]:
        """List what is mapped, adjacent pages of equal rights in one."""
        merged: list[Range] = []
        for leaf in self.leaves():
            size = 1 << leaf.shift
            if merged:
                end = merged[-1]
                if end.iova + end.bytes == leaf.iova and (end.read, end.write) == (leaf.read, leaf.write):
                    merged[-1] = end._replace(bytes=end.bytes + size)
                    continue
            merged.append(Range(leaf.iova, size, leaf.read, leaf.write))
        return merged

    def free(self) -> None:
        """Clear everything and give all table pages back; no cache may know them."""
        _, idle = self.unmap(0, self.limit)
        for page in [*idle, self.root]:
            self._pages.free(page)

    def _leaves(self, table: int, level: int, base: int, first: int, last: int) -> Iterator[Leaf]:
        row = self._pages.row(table)
        shift = level_shift(level)
        for i in _present(row, first - base >> shift, last - 1 - base >> shift):
            entry = SecondStageEntry(int(row[i]))
            at = base + (i << shift)
            target = Hpa(entry.value & _ADDR)
            if level == 1 or entry.PS:
                yield Leaf(Iova(at), target, shift, bool(entry.R), bool(entry.W))
            else:
                yield from self._leaves(target, level - 1, at, first, last)

    def _split(self, leaf: Leaf, edge: int) -> None:
        """Replace a large leaf by tables of smaller ones, until `edge` is where a leaf begins."""
        while edge & (1 << leaf.shift) - 1:
            smaller = leaf.shift - 9
            page = self._alloc()
            flags = SecondStageEntry.of(R=int(leaf.read), W=int(leaf.write), PS=int(smaller > 12)).value
            self._pages.row(page)[:] = np.arange(512, dtype=np.uint64) * np.uint64(1 << smaller) + np.uint64(
                leaf.hpa | flags
            )
            for i in range(512):
                self._pages.adjust_mapped(leaf.hpa + (i << smaller), smaller, 1)
            table = self._pages.row(self.root)
            for level in range(self.levels, (leaf.shift - 12) // 9 + 1, -1):
                table = self._pages.row(int(table[leaf.iova >> level_shift(level) & 511]) & _ADDR)
            table[leaf.iova >> leaf.shift & 511] = page | _RW
            self._pages.adjust_mapped(leaf.hpa, leaf.shift, -1)
            (leaf,) = self.leaves(edge, 1)

    def _clear(self, table: int, level: int, base: int, first: int, last: int, idle: list[Hpa]) -> int:
        row = self._pages.row(table)
        shift = level_shift(level)
        done = 0
        for i in _present(row, first - base >> shift, last - 1 - base >> shift):
            entry = SecondStageEntry(int(row[i]))
            target = Hpa(entry.value & _ADDR)
            if level == 1 or entry.PS:
                row[i] = 0
                self._pages.adjust_mapped(target, shift, -1)
                done += 1 << shift
            else:
                done += self._clear(target, level - 1, base + (i << shift), first, last, idle)
                if not self._pages.row(target).any():
                    row[i] = 0
                    idle.append(target)
        return done
