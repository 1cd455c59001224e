"""The slow, obvious twin of a device TLB and of the unit behind it, on top of the twin of the walk.

Whatever the unit has cached is as the tables are: who uses this invalidates contexts and the IOTLB after every change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reference.pagewalk import Message, Nothing, Page, Refusal, request, walk, word
from virtfn.hw.vtd.tables import ContextEntry, FaultReason, Request, RootEntry, Translation
from virtfn.machine.memory import HostMemory

MISSING_RIGHT = (FaultReason.READ_NOT_ALLOWED, FaultReason.WRITE_NOT_ALLOWED)
CONTEXT_FAULTS = (
    FaultReason.ROOT_TABLE_ACCESS,
    FaultReason.ROOT_NOT_PRESENT,
    FaultReason.ROOT_RESERVED,
    FaultReason.CONTEXT_TABLE_ACCESS,
    FaultReason.CONTEXT_NOT_PRESENT,
    FaultReason.CONTEXT_RESERVED,
    FaultReason.CONTEXT_INVALID,
)


@dataclass(frozen=True)
class Outcome:
    """Of one access: (host address, bytes), a message, or None; and the faults on the way, those not recorded too."""

    got: tuple[int, int] | Message | None
    faults: tuple[tuple[FaultReason, Request, bool], ...] = ()


@dataclass
class DeviceTlb:
    """A direct-mapped device TLB of `entries`; `slot` says where a page goes. off: requesters told not to ask again."""

    memory: HostMemory
    entries: int
    held: dict[int, tuple[int, int, set[bool], int]] = field(default_factory=dict)
    off: set[int] = field(default_factory=set)

    def slot(self, rid: int, page: int) -> int:
        return (page + 67 * rid) % self.entries

    def invalidate(self, rid: int, first: int, last: int) -> None:
        self.held = {s: e for s, e in self.held.items() if not (e[0] == rid and first <= e[1] <= last)}

    def access(self, root: int, rid: int, iova: int, nbytes: int, write: bool) -> Outcome:
        if rid in self.off:
            return self.untranslated(root, rid, iova, nbytes, write)
        page = iova // 4096
        found = self.held.get(self.slot(rid, page))
        if found is None or found[:2] != (rid, page) or write not in found[2]:
            if 0xFEE00000 <= iova <= 0xFEEFFFFF:
                return self.untranslated(root, rid, iova, nbytes, write)
            kind = self.context(root, rid)
            if isinstance(kind, Refusal) or kind != Translation.DEVICE_TLB:
                self.off.add(rid)
                refusal = (
                    kind if isinstance(kind, Refusal) else Refusal(FaultReason.BLOCKED_BY_TYPE, self.fpd(root, rid))
                )
                later = self.untranslated(root, rid, iova, nbytes, write)
                return Outcome(later.got, ((refusal.reason, Request.TRANSLATION, refusal.recorded), *later.faults))
            answers = {right: self.page_of(root, rid, page * 4096, right) for right in (True, False)}
            rights = {right for right, answer in answers.items() if isinstance(answer, int)}
            faults = [a for a in answers.values() if isinstance(a, Refusal) and a.reason not in MISSING_RIGHT]
            if not rights and not faults:
                return Outcome(None)
            if faults:
                return Outcome(None, ((faults[0].reason, Request.TRANSLATION, faults[0].recorded),))
            if write not in rights:
                return Outcome(None)
            hpa = next(answer for answer in answers.values() if isinstance(answer, int))
            found = self.held[self.slot(rid, page)] = rid, page, rights, hpa
        return self.translated(root, rid, found[3] + iova % 4096, min(nbytes, 4096 - iova % 4096))

    def translated(self, root: int, rid: int, hpa: int, nbytes: int) -> Outcome:
        kind = self.context(root, rid)
        if isinstance(kind, Refusal):
            return Outcome(None, ((kind.reason, Request.TRANSLATED, kind.recorded),))
        if kind != Translation.DEVICE_TLB:
            refusal = Refusal(FaultReason.BLOCKED_BY_TYPE, self.fpd(root, rid))
            return Outcome(None, ((refusal.reason, Request.TRANSLATED, refusal.recorded),))
        if not self.memory.contains(hpa):
            return Outcome(None)
        return Outcome((hpa, min(nbytes, self.memory.base + self.memory.size - hpa)))

    def untranslated(self, root: int, rid: int, iova: int, nbytes: int, write: bool) -> Outcome:
        got = request(self.memory, root, rid, iova, nbytes, write)
        if isinstance(got, Refusal):
            return Outcome(None, ((got.reason, Request.UNTRANSLATED, got.recorded),))
        return Outcome(None if isinstance(got, Nothing) else got)

    def context(self, root: int, rid: int) -> Translation | Refusal:
        """What the context entry allows; the walk of address 0 finds whatever is wrong with it first."""
        found = walk(self.memory, root, rid, 0, False, {1, 2}, {2, 3})
        if isinstance(found, Refusal) and found.reason in CONTEXT_FAULTS:
            return found
        return Translation(self.entry(root, rid).T)

    def entry(self, root: int, rid: int) -> ContextEntry:
        table = RootEntry(word(self.memory, root + (rid >> 8) * 16, 16) or 0).CTP << 12
        return ContextEntry(word(self.memory, table + (rid & 255) * 16, 16) or 0)

    def fpd(self, root: int, rid: int) -> bool:
        return bool(self.entry(root, rid).FPD)

    def page_of(self, root: int, rid: int, iova: int, write: bool) -> int | Refusal:
        found = walk(self.memory, root, rid, iova, write, {1, 2}, {2, 3})
        assert found is not None
        return found.hpa + iova % found.size if isinstance(found, Page) else found
