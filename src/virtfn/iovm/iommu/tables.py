"""Read all tables of a remapping unit: domains and what they map, interrupt entries, and entries that are broken.

Tables are the words of whoever wrote them. Levels are bounded, so a walk ends; its size is not, since tables may name
each other many times. So it is merged as it goes, and stops, and says so, when a bound is reached.

Reading is cut into pieces of a fraction of a millisecond. Where tables may change between them, read `Recorded` memory:
each page then counts as it was first seen, and `changed` says whether all of them were so at one moment.

Spec: VT-d, memory-resident structures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import numpy as np

from virtfn.hw.types import Rid, format_rid
from virtfn.hw.vtd.interrupts import IRTE_BYTES, PostedIrte, RemappedIrte
from virtfn.hw.vtd.tables import (
    ContextEntry,
    RootEntry,
    SecondStageEntry,
    Translation,
    level_shift,
)
from virtfn.iovm.iommu.explanation import Refused
from virtfn.iovm.iommu.messages import descriptor_of, destination_of, is_reserved, requester_words
from virtfn.iovm.iommu.state import TableMemory, UnitState, Words
from virtfn.iovm.iommu.walk import check_context, check_root, leaf_fault, limit_of
from virtfn.machine.memory import PAGE
from virtfn.machine.pieces import InPieces, finish

__all__ = ["MAX_TABLES", "Broken", "DomainView", "InterruptView", "Mapping", "Recorded", "TableReader", "Target"]

MAX_TABLES = 1 << 14
MAX_MAPPINGS = 1 << 12
MAX_ALL_MAPPINGS = 1 << 16
MAX_LISTED = 1 << 12
_AT_ONCE = 32  # entries that are read between two places where reading may be interrupted
_RUNS_AT_ONCE = 128
_COMPARED_AT_ONCE = 64  # pages
_READ, _WRITE = SecondStageEntry.R.mask, SecondStageEntry.W.mask
_ADDR = SecondStageEntry.ADDR.mask
_RESERVED_4K = SecondStageEntry.HIGH.mask | SecondStageEntry.SNP.mask | SecondStageEntry.TM.mask


class Mapping(TypedDict):
    """A stretch of a domain's addresses with the same rights throughout."""

    iova: int
    bytes: int
    read: bool
    write: bool


class Target(TypedDict):
    """Where a stretch of a domain's addresses is in memory, in one piece."""

    iova: int
    hpa: int
    bytes: int


class DomainView(TypedDict):
    """One domain. levels: 0 for pass-through, which has no tables.

    targets: where mappings are in memory. tables: pages of tables read. broken: entries that fault when they are
    used. truncated: a bound was reached, and more may be mapped.
    """

    id: int
    rids: list[str]
    mappings: list[Mapping]
    levels: int
    pass_through: bool
    device_tlb: bool
    targets: list[Target]
    tables: int
    broken: int
    truncated: bool


class InterruptView(TypedDict):
    """One entry of the interrupt remapping table: a vector for a destination, or, posted, for a descriptor."""

    index: int
    requester: str
    posted: bool
    vector: int
    destination: int | None
    descriptor: int | None
    broken: bool


class Broken(TypedDict):
    """A root or context entry that is present and cannot be used, by the fault that its requests get."""

    entry: str
    value: str
    reason: str
    code: int


class Recorded:
    """Memory that remembers which pages were read."""

    def __init__(self, memory: TableMemory) -> None:
        self.pages: dict[int, Words] = {}
        self._memory = memory

    def page(self, address: int) -> Words | None:
        """Return the page at `address`, and remember it as it is now."""
        if address not in self.pages:
            page = self._memory.page(address)
            if page is None:
                return None
            self.pages[address] = page.copy()
        return self.pages[address]

    def contains(self, address: int, size: int) -> bool:
        """Tell whether this is memory."""
        return self._memory.contains(address, size)

    def changed(self) -> InPieces[bool]:
        """Tell whether a page is not any more what was read.

        If none is, all were so at the moment when this began: after the last was read, before the first is compared.
        """
        for n, (address, words) in enumerate(self.pages.items()):
            if n % _COMPARED_AT_ONCE == _COMPARED_AT_ONCE - 1:
                yield
            now = self._memory.page(address)
            if now is None or not np.array_equal(now, words):
                return True
        return False


class TableReader:
    """Reads the tables of one unit. tables: how many pages of second-stage tables it may read in all.

    broken: root and context entries met that cannot be used. truncated: a bound was reached.
    """

    def __init__(self, state: UnitState, tables: int = MAX_TABLES) -> None:
        self.state = state
        self.budget = tables
        self.room = MAX_ALL_MAPPINGS
        self.broken: list[Broken] = []
        self.truncated = False

    def domains(self) -> list[DomainView]:
        """List the domains by ID; entries of one ID that disagree about its tables make several."""
        return finish(self.read_domains())

    def interrupts(self) -> list[InterruptView]:
        """List the entries of the interrupt remapping table that are present."""
        return finish(self.read_interrupts())

    def read_domains(self) -> InPieces[list[DomainView]]:
        """List the domains, in pieces."""
        users: dict[tuple[int, int, int, int], list[str]] = {}
        for n, found in enumerate(self._contexts()):
            if n % _AT_ONCE == _AT_ONCE - 1:
                yield
            if found is None:
                continue
            rid, context = found
            key = (context.DID, context.T, context.AW, context.SSPTPTR << 12)
            if key in users or len(users) < MAX_LISTED:
                users.setdefault(key, []).append(format_rid(rid))
            else:
                self.truncated = True
        views = []
        for key, rids in sorted(users.items()):
            views.append((yield from self._domain(*key, rids)))
            yield
        return views

    def read_interrupts(self) -> InPieces[list[InterruptView]]:
        """List the entries of the interrupt remapping table, in pieces."""
        views: list[InterruptView] = []
        table, entries = self.state.interrupt_table, self.state.interrupt_entries
        if not table:
            return views
        for first in range(0, entries, PAGE // IRTE_BYTES):
            yield
            page = self.state.memory.page(table + first * IRTE_BYTES)
            if page is None:
                continue
            for i in np.flatnonzero(page[::2] & np.uint64(RemappedIrte.P.mask)).tolist():
                if first + i >= entries:
                    break
                if len(views) == MAX_LISTED:
                    self.truncated = True
                    return views
                if len(views) % _AT_ONCE == _AT_ONCE - 1:
                    yield
                views.append(self._interrupt(first + i, int(page[2 * i]) | int(page[2 * i + 1]) << 64))
        return views

    def _interrupt(self, index: int, bits: int) -> InterruptView:
        entry = RemappedIrte(bits)
        return {
            "index": index,
            "requester": requester_words(bits),
            "posted": bool(entry.IM),
            "vector": PostedIrte(bits).VV,
            "destination": None if entry.IM else destination_of(self.state, entry.DST),
            "descriptor": descriptor_of(bits) if entry.IM else None,
            "broken": is_reserved(bits),
        }

    def _contexts(self) -> Iterator[tuple[Rid, ContextEntry] | None]:
        """Yield the requesters with a context entry that can be used; None for one that cannot, which is noted."""
        for bus, bits in _pairs(self.state.memory.page(self.state.root & -PAGE)):
            try:
                check_root(bits)
            except Refused as refused:
                self._note(f"root entry of bus {bus:02x}", bits, refused)
                yield None
                continue
            for function, context in _pairs(self.state.memory.page(RootEntry(bits).CTP << 12)):
                rid = Rid(bus << 8 | function)
                try:
                    check_context(self.state, context)
                except Refused as refused:
                    self._note(f"context entry of {format_rid(rid)}", context, refused)
                    yield None
                    continue
                yield rid, ContextEntry(context)

    def _note(self, entry: str, bits: int, refused: Refused) -> None:
        if not bits & 1:  # absent, whatever else it holds
            return
        if len(self.broken) == MAX_LISTED:
            self.truncated = True
            return
        reason = refused.reason
        self.broken.append({"entry": entry, "value": f"{bits:#034x}", "reason": reason.text, "code": int(reason)})

    def _domain(self, did: int, kind: int, aw: int, table: int, rids: list[str]) -> InPieces[DomainView]:
        passing = kind == Translation.PASS_THROUGH
        found = _Mappings(self.state, self.budget, min(self.room, MAX_MAPPINGS))
        if not passing:
            yield from found.read(table, aw + 2, 0, _READ | _WRITE, limit_of(ContextEntry.of(AW=aw)))
        self.budget -= found.tables
        self.room -= len(found.mappings)
        self.truncated |= found.truncated
        return {
            "id": did,
            "rids": rids,
            "mappings": found.mappings,
            "levels": 0 if passing else aw + 2,
            "pass_through": passing,
            "device_tlb": kind == Translation.DEVICE_TLB,
            "targets": found.targets,
            "tables": found.tables,
            "broken": found.broken,
            "truncated": found.truncated,
        }


def _pairs(page: Words | None) -> Iterator[tuple[int, int]]:
    """Yield number and 128 bits of the entries of a page that are not zero."""
    if page is None:
        return
    for i in np.flatnonzero(page.reshape(-1, 2).any(axis=1)).tolist():
        yield i, int(page[2 * i]) | int(page[2 * i + 1]) << 64


class _Mappings:
    """What one tree of second-stage tables maps, merged while it is read.

    budget: pages that may be read. room: how many mappings, and pieces of memory behind them, may be listed.
    """

    def __init__(self, state: UnitState, budget: int, room: int) -> None:
        self._state = state
        self._budget = budget
        self._room = room
        self.tables = 0
        self.broken = 0
        self.truncated = False
        self.mappings: list[Mapping] = []
        self.targets: list[Target] = []

    def read(self, table: int, level: int, base: int, rights: int, limit: int) -> InPieces[None]:
        """Read the table at `table`, whose first entry is for address `base`; rights: of the levels above."""
        if self.tables >= self._budget:
            self.truncated = True
            return
        page = self._state.memory.page(table)
        if page is None:
            self.broken += 1
            return
        self.tables += 1
        if level == 1:
            yield from self._read_pages(page.copy(), base, rights)
            return
        shift = level_shift(level)
        for n, i in enumerate(np.flatnonzero(page & np.uint64(rights)).tolist()):
            if n % _AT_ONCE == _AT_ONCE - 1:
                yield
            entry = SecondStageEntry(int(page[i]))
            at, allowed = base + (i << shift), rights & entry.value
            if self.truncated or at >> limit:
                return
            if leaf_fault(self._state, entry, level) if entry.PS else entry.HIGH:
                self.broken += 1
            elif entry.PS:
                self._add(at, entry.ADDR << 12, 1 << shift, allowed)
            else:
                yield from self.read(entry.ADDR << 12, level - 1, at, allowed, limit)

    def _read_pages(self, page: Words, base: int, rights: int) -> InPieces[None]:
        """Read a table of level 1 in runs: of the same rights, and in one piece in memory."""
        allowed = page & np.uint64(rights)
        reserved = (page & np.uint64(_RESERVED_4K)) != 0
        self.broken += int(np.count_nonzero(reserved & (allowed != 0)))
        used = np.flatnonzero((allowed != 0) & ~reserved)
        if not used.size:
            return
        hpa, allowed = (page[used] & np.uint64(_ADDR)).astype(np.int64), allowed[used]
        new = (np.diff(used) != 1) | (np.diff(allowed.astype(np.int64)) != 0) | (np.diff(hpa) != PAGE)
        starts = np.concatenate([[0], np.flatnonzero(new) + 1])
        lengths = np.diff(np.concatenate([starts, [used.size]]))
        yield
        for n, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            if n % _RUNS_AT_ONCE == _RUNS_AT_ONCE - 1:
                yield
            iova = base + int(used[start]) * PAGE
            self._add(iova, int(hpa[start]), length * PAGE, int(allowed[start]))

    def _add(self, iova: int, hpa: int, size: int, rights: int) -> None:
        read, write = bool(rights & _READ), bool(rights & _WRITE)
        last = self.mappings[-1] if self.mappings else None
        if last and last["iova"] + last["bytes"] == iova and (last["read"], last["write"]) == (read, write):
            last["bytes"] += size
        elif len(self.mappings) == self._room:
            self.truncated = True
            return
        else:
            self.mappings.append({"iova": iova, "bytes": size, "read": read, "write": write})
        piece = self.targets[-1] if self.targets else None
        if piece and (piece["iova"] + piece["bytes"], piece["hpa"] + piece["bytes"]) == (iova, hpa):
            piece["bytes"] += size
        elif len(self.targets) < self._room:
            self.targets.append({"iova": iova, "hpa": hpa, "bytes": size})
