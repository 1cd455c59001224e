"""How one request is explained: the entries that were read, and what became of the request."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from virtfn.hw.bits import Register
from virtfn.hw.vtd.tables import FaultReason

__all__ = ["CacheView", "Explanation", "PageView", "Refused", "Step", "Verdict", "fault_verdict", "step"]

# What a context entry's FPD cannot suppress: no context entry was reached.
_UNQUALIFIED = {
    FaultReason.ROOT_NOT_PRESENT,
    FaultReason.ROOT_TABLE_ACCESS,
    FaultReason.CONTEXT_TABLE_ACCESS,
    FaultReason.ROOT_RESERVED,
}


class Step(TypedDict):
    """One entry that was read. value: in hexadecimal, empty if it could not be; fields: those that are not zero."""

    entry: str
    address: int
    value: str
    fields: str
    words: str


class Verdict(TypedDict):
    """What became of the request.

    outcome: page, pass-through, remapping-off: it reaches `hpa`; nothing: allowed, but no memory is there; fault:
    refused for `reason`; interrupt: raised as `vector` at `destination`; posted: `vector` is noted in `descriptor`,
    and if a `notification` is due, that is raised at `destination`. recorded: the fault gets a record, or FPD
    suppresses that.
    """

    outcome: str
    words: str
    hpa: NotRequired[int]
    page: NotRequired[int]
    page_bytes: NotRequired[int]
    read: NotRequired[bool]
    write: NotRequired[bool]
    reason: NotRequired[str]
    code: NotRequired[int]
    recorded: NotRequired[bool]
    vector: NotRequired[int]
    destination: NotRequired[int]
    descriptor: NotRequired[int]
    notification: NotRequired[int]


class PageView(TypedDict):
    """An entry of the IOTLB or a device TLB that serves the request; stale: the tables say something else by now."""

    iova: int
    hpa: int
    bytes: int
    read: bool
    write: bool
    stale: bool


class CacheView(TypedDict):
    """What caches hold for the request: none, equal or stale, compared with the tables.

    device_tlb: of a requester that has one; what it holds is used first.
    """

    context: NotRequired[str]
    iotlb: NotRequired[PageView | None]
    device_tlb: NotRequired[PageView | None]
    interrupt: NotRequired[str]


class Explanation(TypedDict):
    """The document of `virtfn iommu explain --json`. caches: of a unit that runs."""

    rid: str
    iova: int
    write: bool
    steps: list[Step]
    verdict: Verdict
    caches: CacheView | None


class Refused(Exception):  # noqa: N818  # not an error: what the tables say
    """A request is refused; fpd: of the entry that was reached."""

    def __init__(self, reason: FaultReason, fpd: bool = False) -> None:
        super().__init__(reason.text)
        self.reason = reason
        self.fpd = fpd


def step(entry: str, address: int, value: Register | None, width: int, words: str) -> Step:
    """Describe an entry of `width` bits; value None: it could not be read."""
    if value is None:
        return {"entry": entry, "address": address, "value": "", "fields": "", "words": words}
    digits = width // 4 + 2
    shown = f"{value.value:#0{digits}x}"
    return {"entry": entry, "address": address, "value": shown, "fields": str(value) or "all zero", "words": words}


def fault_verdict(refused: Refused) -> Verdict:
    """Say how a refused request ends."""
    reason, recorded = refused.reason, not refused.fpd or refused.reason in _UNQUALIFIED
    fate = "recorded" if recorded else "not recorded: FPD suppresses it"
    return {
        "outcome": "fault",
        "words": f"{int(reason):#x}, {reason.text}; {fate}",
        "reason": reason.text,
        "code": int(reason),
        "recorded": recorded,
    }
