"""Explain one DMA request: walk the tables as the unit would, and keep every entry on the way.

    root entry [bus] -> context entry [device.function] -> second-stage entries, level by level -> page
                            at any of them: a fault, with its code and whether it is recorded

Written from the declarations, not from the kernels, which must come to the same verdict.

Spec: VT-d, address translation; translation faults.
"""

from __future__ import annotations

from virtfn.hw.bits import Register
from virtfn.hw.types import Iova, Rid, format_rid
from virtfn.hw.vtd.tables import (
    ADDRESS_WIDTH,
    INTERRUPT_RANGE,
    INTERRUPT_RANGE_END,
    ContextEntry,
    FaultReason,
    RootEntry,
    SecondStageEntry,
    Translation,
    level_shift,
)
from virtfn.iovm.iommu.caches import (
    CachedContext,
    CachedPage,
    cached_context,
    cached_device_page,
    cached_page,
    has_device_tlb,
)
from virtfn.iovm.iommu.explanation import CacheView, Explanation, PageView, Refused, Step, Verdict, fault_verdict, step
from virtfn.iovm.iommu.messages import explain_message
from virtfn.iovm.iommu.state import UnitState

__all__ = ["check_context", "check_root", "explain", "leaf_fault", "limit_of"]

READ, WRITE = SecondStageEntry.R.mask, SecondStageEntry.W.mask
_BITS = 128


def _reserved(kind: type[Register], bits: int) -> bool:
    return bool(bits & ~kind.NAMED)


def check_root(bits: int) -> None:
    """Raise Refused if a root entry leads nowhere."""
    if not RootEntry(bits).P:
        raise Refused(FaultReason.ROOT_NOT_PRESENT)
    if _reserved(RootEntry, bits):
        raise Refused(FaultReason.ROOT_RESERVED)


def check_context(state: UnitState, bits: int) -> None:
    """Raise Refused if a context entry cannot be used on this unit."""
    entry = ContextEntry(bits)
    fpd = bool(entry.FPD)
    if not entry.P:
        raise Refused(FaultReason.CONTEXT_NOT_PRESENT, fpd)
    if _reserved(ContextEntry, bits):
        raise Refused(FaultReason.CONTEXT_RESERVED, fpd)
    supported: dict[int, int] = {
        Translation.SECOND_STAGE: 1,
        Translation.DEVICE_TLB: state.ecap.DT,
        Translation.PASS_THROUGH: state.ecap.PT,
    }
    if not supported.get(entry.T) or not state.cap.SAGAW >> entry.AW & 1:
        raise Refused(FaultReason.CONTEXT_INVALID, fpd)


def limit_of(context: ContextEntry) -> int:
    """Return the width of the addresses that a context entry allows."""
    levels = ADDRESS_WIDTH if context.T == Translation.PASS_THROUGH else level_shift(context.AW + 3)
    return min(levels, ADDRESS_WIDTH)


def leaf_fault(state: UnitState, entry: SecondStageEntry, level: int) -> bool:
    """Tell whether an entry that is a page has bits or a size that are reserved."""
    size = 1 << level_shift(level)
    supported = level == 1 or state.cap.SSLPS >> (level - 2) & 1
    return bool(entry.HIGH or entry.SNP or entry.TM or (entry.ADDR << 12) % size or not supported)


def explain(state: UnitState, rid: Rid, iova: Iova, write: bool, message: int = 0) -> Explanation:
    """Explain a request of `rid`. In the interrupt range it is a message, whose data is `message`."""
    if INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
        return explain_message(state, rid, iova, message)
    walk = _Walk(state, rid, iova, write)
    try:
        verdict = walk.decide()
    except Refused as refused:
        verdict = fault_verdict(refused)
    return {
        "rid": format_rid(rid),
        "iova": iova,
        "write": write,
        "steps": walk.steps,
        "verdict": verdict,
        "caches": walk.caches(verdict),
    }


class _Walk:
    """The walk of one request. context: the entry that allows it to go on, once it was found."""

    def __init__(self, state: UnitState, rid: Rid, iova: Iova, write: bool) -> None:
        self.state = state
        self.rid = rid
        self.iova = iova
        self.need = WRITE if write else READ
        self.steps: list[Step] = []
        self.context: ContextEntry | None = None

    def decide(self) -> Verdict:
        """Walk from the root table to the end.

        Raises Refused if that is a fault.
        """
        if not self.state.enabled:
            return self._reach("remapping-off", "remapping is off: the address is that of memory", self.iova)
        self.context = context = self._find_context()
        fpd = bool(context.FPD)
        if self.iova >> limit_of(context):
            raise Refused(FaultReason.ADDRESS_BEYOND_WIDTH, fpd)
        if context.T == Translation.PASS_THROUGH:
            return self._reach("pass-through", "pass-through: the address is that of memory", self.iova)
        page, shift, rights = self._find_page(context)
        hpa = page + self.iova % (1 << shift)
        if INTERRUPT_RANGE <= hpa < INTERRUPT_RANGE_END:
            raise Refused(FaultReason.INTERRUPT_RANGE_OUTPUT, fpd)
        verdict = self._reach("page", f"{_size(1 << shift)} page at {page:#x}, {_rights(rights)}", hpa)
        verdict["page"], verdict["page_bytes"] = page, 1 << shift
        verdict["read"], verdict["write"] = bool(rights & READ), bool(rights & WRITE)
        return verdict

    def _reach(self, outcome: str, words: str, hpa: int) -> Verdict:
        if not self.state.memory.contains(hpa, 1):
            return {"outcome": "nothing", "words": f"{words}; allowed, but {hpa:#x} is no memory", "hpa": hpa}
        return {"outcome": outcome, "words": f"{words}; this byte at {hpa:#x}", "hpa": hpa}

    def _find_context(self) -> ContextEntry:
        bus, function = self.rid >> 8, self.rid & 0xFF
        at = self.state.root + bus * 16
        bits = self._note(f"root entry {bus}", at, RootEntry, f"bus {bus:02x}", FaultReason.ROOT_TABLE_ACCESS)
        check_root(bits)
        at = (RootEntry(bits).CTP << 12) + function * 16
        name = f"device {function >> 3:02x}, function {function & 7}"
        bits = self._note(f"context entry {function}", at, ContextEntry, name, FaultReason.CONTEXT_TABLE_ACCESS)
        check_context(self.state, bits)
        context = ContextEntry(bits)
        how = Translation(context.T).name.lower().replace("_", " ")
        self.steps[-1]["words"] += f": domain {context.DID}, {how}, {limit_of(context)}-bit addresses"
        return context

    def _note(self, entry: str, at: int, kind: type[Register], words: str, unreadable: FaultReason) -> int:
        bits = self.state.pair(at)
        value = None if bits is None else kind(bits)
        self.steps.append(step(entry, at, value, _BITS, f"{words}{': cannot be read' if value is None else ''}"))
        if bits is None:
            raise Refused(unreadable)
        return bits

    def _find_page(self, context: ContextEntry) -> tuple[int, int, int]:
        """Walk the second-stage tables; return the page, its log2 size, and its rights."""
        table, rights, fpd = context.SSPTPTR << 12, READ | WRITE, bool(context.FPD)
        for level in range(context.AW + 2, 0, -1):
            shift = level_shift(level)
            index = self.iova >> shift & 511
            word = self.state.word(table + index * 8)
            name, at = f"level {level} entry {index}", table + index * 8
            if word is None:
                self.steps.append(step(name, at, None, 64, "cannot be read"))
                raise Refused(FaultReason.PAGING_ENTRY_ACCESS, fpd)
            entry = SecondStageEntry(word)
            rights &= word
            leaf = level == 1 or bool(entry.PS)
            words = f"{_rights(rights)} so far, {_size(1 << shift) + ' page' if leaf else 'next table'}"
            self.steps.append(step(name, at, entry, 64, words))
            if not rights & self.need:
                lacking = FaultReason.WRITE_NOT_ALLOWED if self.need == WRITE else FaultReason.READ_NOT_ALLOWED
                raise Refused(lacking, fpd)
            if leaf_fault(self.state, entry, level) if leaf else entry.HIGH:
                raise Refused(FaultReason.PAGING_ENTRY_RESERVED, fpd)
            table = entry.ADDR << 12
            if leaf:
                return table, shift, rights
        raise AssertionError("level 1 is a leaf")

    # What the caches say.

    def caches(self, verdict: Verdict) -> CacheView | None:
        """Compare the caches with the walk."""
        if not self.state.caches:
            return None
        # A requester has its translations in the caches of its card.
        mine = (row for row in self.state.caches if cached_context(row, self.rid) or has_device_tlb(row, self.rid))
        iommu = next(mine, self.state.caches[0])
        held = cached_context(iommu, self.rid) if self.state.enabled else None
        said = None if self.context is None else _as_cached(self.context)
        view: CacheView = {"context": "none" if held is None else "equal" if held == said else "stale", "iotlb": None}
        serving, write = held or said, self.need == WRITE
        if (
            serving is not None
            and not serving.pass_through
            and not self.iova >> min(level_shift(serving.level + 1), ADDRESS_WIDTH)
        ):
            view["iotlb"] = self._view(cached_page(iommu, self.rid, serving.domain, self.iova, write), verdict)
        if has_device_tlb(iommu, self.rid) and not self.iova >> ADDRESS_WIDTH:
            view["device_tlb"] = self._view(cached_device_page(iommu, self.rid, self.iova, write), verdict)
        return view

    def _view(self, page: CachedPage | None, verdict: Verdict) -> PageView | None:
        if page is None:
            return None
        rights = bool(page.rights & READ), bool(page.rights & WRITE)
        said = verdict.get("hpa"), verdict.get("read"), verdict.get("write")
        return {
            "iova": page.iova,
            "hpa": page.hpa,
            "bytes": page.bytes,
            "read": rights[0],
            "write": rights[1],
            "stale": said != (page.hpa + self.iova - page.iova, *rights),
        }


def _as_cached(context: ContextEntry) -> CachedContext:
    passing = context.T == Translation.PASS_THROUGH
    return CachedContext(context.DID, context.SSPTPTR << 12, context.AW + 2, passing)


def _rights(rights: int) -> str:
    return {0: "no access", READ: "read only", WRITE: "write only"}.get(rights & (READ | WRITE), "read and write")


def _size(size: int) -> str:
    return f"{size >> 30} GiB" if size >> 30 else f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"
