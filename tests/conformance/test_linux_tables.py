"""The walker reads tables that Linux wrote: what it finds is what Linux says it mapped, no page more and none less.

The recordings are made by tools/record_vtd.py: saved pages of remapping tables, and Linux's own account of them.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from virtfn.hw.vtd.interrupts import IRTE_BYTES, RemappedIrte, SourceQualifier, SourceValidation
from virtfn.hw.vtd.regs import IRTA
from virtfn.hw.vtd.tables import FaultReason, Translation, level_shift
from virtfn.kernels.ranges import address_of
from virtfn.kernels.vtd.pagewalk import walk_context, walk_iova

RECORDINGS = sorted((Path(__file__).parents[1] / "vtd").glob("*.npz"))
READ, WRITE = 1, 2
REFUSED = {0: FaultReason.READ_NOT_ALLOWED, 1: FaultReason.WRITE_NOT_ALLOWED}
NOBODY = (FaultReason.ROOT_NOT_PRESENT, FaultReason.CONTEXT_NOT_PRESENT)


@dataclass
class Recording:
    """Linux's tables in a sparse memory of the guest's size. displacement: of physical address 0 in this process."""

    meta: dict[str, Any]
    memory: np.ndarray
    saved: set[int]

    @property
    def displacement(self) -> int:
        return address_of(self.memory)

    @property
    def widths(self) -> int:
        return self.meta["cap"] >> 8 & 0x1F  # SAGAW: bit n for AW n

    @property
    def large(self) -> int:
        return self.meta["cap"] >> 34 & 0x3  # SSLPS: 2 MiB, 1 GiB

    def context(self, rid: int) -> tuple[int, int, int]:
        """Return reason, low and high word of the context entry of `rid`."""
        root = self.meta["root"]
        end = self.meta["memory_end"]
        reason, _, low, high = walk_context(root, rid, 0, end, self.widths, self.displacement)
        return reason, low & (1 << 64) - 1, high & (1 << 64) - 1

    def walk(self, table: int, level: int, iova: int, write: int) -> tuple[int, int, int, int]:
        return walk_iova(table, level, iova, write, 0, self.meta["memory_end"], self.large, self.displacement)

    def word(self, address: int) -> int:
        return int(self.memory[address : address + 8].view(np.uint64)[0])


@pytest.fixture(scope="module", params=RECORDINGS, ids=lambda path: path.stem)
def linux(request: pytest.FixtureRequest) -> Recording:
    with np.load(request.param) as file:
        meta = json.loads(str(file["meta"]))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on
        memory = np.frombuffer(mmap.mmap(-1, meta["memory_end"], flags=flags), np.uint8)
        for address, words in zip(file["addresses"].tolist(), file["words"], strict=True):
            memory[address : address + 4096] = words.view(np.uint8)
        return Recording(meta, memory, set(file["addresses"].tolist()))


def table_of(low: int, high: int) -> tuple[int, int]:
    """Return the top table's address and level of a context entry."""
    return low & ~0xFFF, (high & 7) + 2


def questions(linux: Recording, table: int, level: int, base: int = 0) -> Iterator[int]:
    """Yield the first address that each entry of a tree of tables decodes, whether it maps anything or not."""
    for index in range(512):
        iova = base | index << level_shift(level)
        entry = linux.word(table + index * 8)
        below = entry & ((1 << 48) - 4096)
        if level > 1 and not entry & 0x80 and below in linux.saved:
            yield from questions(linux, below, level - 1, iova)
        else:
            yield iova


def found(linux: Recording, low: int, high: int) -> list[tuple[int, int, int, int]]:
    """Ask the walker about every entry: joined ranges of (iova, hpa, bytes, rights)."""
    table, level = table_of(low, high)
    ranges: list[tuple[int, int, int, int]] = []
    for iova in questions(linux, table, level):
        answers = [linux.walk(table, level, iova, write) for write in (0, 1)]
        allowed = [answer for answer in answers if answer[0] == 0]
        rights = sum(1 << write for write in (0, 1) if answers[write][0] == 0)
        for write, (reason, *_) in enumerate(answers):
            assert reason in (0, REFUSED[write]), f"{iova:#x}: {FaultReason(reason).text}"
        if not allowed:
            continue
        _, hpa, shift, told = allowed[0]
        assert all(answer[1:] == (hpa, shift, told) for answer in allowed)
        assert told & 3 == rights
        last = iova + (1 << shift) - 4096
        assert linux.walk(table, level, last, int(rights == WRITE))[1:3] == (hpa, shift)
        if ranges and (sum(ranges[-1][::2]), ranges[-1][1] + ranges[-1][2], ranges[-1][3]) == (iova, hpa, rights):
            ranges[-1] = (*ranges[-1][:2], ranges[-1][2] + (1 << shift), rights)
        else:
            ranges.append((iova, hpa, 1 << shift, rights))
    return ranges


def said(linux: Recording, rid: int) -> list[tuple[int, int, int, int]]:
    """Linux's own account of what requester `rid` can reach, in the same form.

    Asked for a page to be written only, Linux still marks the entry present as in a table of its first-stage format,
    by bit 0, and in these tables that bit is R.
    """
    return [
        (one["iova"], one["hpa"], one["bytes"], READ | one["write"] * WRITE)
        for one in linux.meta["linux"]["mappings"]
        if one["rid"] == rid
    ]


def test_every_requester_that_linux_attached_has_a_context_entry_and_no_other(linux: Recording) -> None:
    account = linux.meta["linux"]
    translated = {one["rid"] for one in account["mappings"]}
    passed = set(account["passed_through"])
    present = {}
    for rid in range(1 << 16):
        reason, low, _ = linux.context(rid)
        assert reason == 0 or reason in NOBODY
        if reason == 0:
            present[rid] = low >> 2 & 3
    assert {rid for rid, kind in present.items() if kind == Translation.SECOND_STAGE} >= translated
    assert {rid for rid, kind in present.items() if kind == Translation.PASS_THROUGH} == passed
    assert set(present) == set(account["attached"])


def test_the_pages_of_every_requester_are_those_that_linux_mapped(linux: Recording) -> None:
    by_table: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for rid in linux.meta["linux"]["attached"]:
        _, low, high = linux.context(rid)
        if low >> 2 & 3 == Translation.PASS_THROUGH:
            assert said(linux, rid) == []
            continue
        tree = table_of(low, high)
        if tree not in by_table:
            by_table[tree] = found(linux, low, high)
        assert by_table[tree] == said(linux, rid), f"requester {rid:#x}"


def test_the_interrupts_of_every_device_are_those_that_linux_set_up(linux: Recording) -> None:
    irta = IRTA(linux.meta["irta"])
    devices = set(linux.meta["linux"]["attached"])
    in_tables = []
    for index in range(2 << irta.S):
        at = (irta.value & IRTA.IRTA.mask) + index * IRTE_BYTES
        entry = RemappedIrte(linux.word(at) | linux.word(at + 8) << 64)
        if entry.P and entry.SID in devices:  # others are of the I/O APIC
            assert (entry.IM, entry.SVT, entry.SQ) == (0, SourceValidation.REQUESTER, SourceQualifier.ALL)
            destination = entry.DST if irta.EIME else entry.DST >> 8
            in_tables.append((entry.SID, entry.V, destination))
    assert sorted(in_tables) == sorted((i["rid"], i["vector"], i["target"]) for i in linux.meta["linux"]["interrupts"])


def test_there_are_recordings() -> None:
    assert len(RECORDINGS) >= 3
