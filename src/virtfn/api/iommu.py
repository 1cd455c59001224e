"""`virtfn iommu`: what a remapping unit knows, as documents, from a lab that runs or from a saved state.

    lab that runs --- its session, in pieces ---+
                                                +--> ShowDocument, Explanation
    saved state --------------------------------+

The TypedDicts are the JSON documents, key for key; keys never change meaning.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TypedDict, cast

from virtfn.api.control import ask
from virtfn.hw.types import Iova, Rid, format_rid
from virtfn.iovm.iommu.caches import InUse
from virtfn.iovm.iommu.explanation import Explanation
from virtfn.iovm.iommu.state import UnitState, load_state, read_unit, save_state
from virtfn.iovm.iommu.tables import (
    MAX_TABLES,
    Broken,
    DomainView,
    InterruptView,
    Recorded,
    TableReader,
)
from virtfn.iovm.iommu.walk import explain
from virtfn.machine.pieces import InPieces, finish
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.host import Host

__all__ = [
    "CacheCounts",
    "FaultView",
    "IotlbView",
    "ShowDocument",
    "UnitView",
    "ask_explanation",
    "ask_show",
    "save_iommu",
    "show_document",
    "show_live",
]

LIVE_TABLES = 1 << 12
"""Pages of tables that are read for one question to a lab that runs."""
_ATTEMPTS = 3


class UnitView(TypedDict):
    """What the unit's registers say. dma, interrupts: whether that remapping is on."""

    dma: bool
    interrupts: bool
    compatible: bool
    root: int
    interrupt_table: int
    interrupt_entries: int


class IotlbView(TypedDict):
    """The IOTLB. entries: of which it has room for; ratio: hits of all requests; null: not known."""

    entries: int | None
    in_use: list[InUse] | None
    hits: int | None
    misses: int | None
    ratio: float | None


class CacheCounts(TypedDict):
    """The context cache or the interrupt entry cache; null: not known."""

    cached: int | None
    walks: int | None


class FaultView(TypedDict):
    """A fault, and how often it came. Of an interrupt message, iova holds the entry's index in bits 63:48.

    kind: untranslated, translation (it asked for one) or translated (iova is a host address).
    """

    rid: str
    iova: int
    reason: str
    write: bool
    code: int
    kind: str
    count: int


class ShowDocument(TypedDict):
    """The document of `virtfn iommu show --json`. truncated: a bound was reached, and not everything is listed.

    changing: tables changed while they were read, each time it was tried, so that parts are of different moments.
    """

    source: str
    unit: UnitView
    domains: list[DomainView]
    broken: list[Broken]
    interrupts: list[InterruptView]
    iotlb: IotlbView
    contexts: CacheCounts
    interrupt_cache: CacheCounts
    counters: dict[str, int]
    faults: list[FaultView]
    truncated: bool
    changing: bool


def show_document(state: UnitState, source: str) -> ShowDocument:
    """Describe a unit whose tables stay as they are. source: where the state is from."""
    return finish(_show(state, source, MAX_TABLES))


def show_live(host: Host, source: str) -> InPieces[ShowDocument]:
    """Describe the unit of a machine that runs, in pieces, between which it goes on.

    Counters, caches and faults are of the moment when it begins, the tables all of one later moment: what was read is
    compared at the end, and if anything has changed meanwhile, it begins anew; `changing` is set if that was in vain.
    """
    for _ in range(_ATTEMPTS):
        state = read_unit(host)
        memory = Recorded(state.memory)
        yield
        document = yield from _show(dataclasses.replace(state, memory=memory), source, LIVE_TABLES)
        changed = yield from memory.changed()
        document["changing"] = changed or read_unit(host).registers != state.registers
        if not document["changing"]:
            break
    return document


def _show(state: UnitState, source: str, tables: int) -> InPieces[ShowDocument]:
    """Describe a unit. tables: pages of second-stage tables that may be read."""
    reader = TableReader(state, tables)
    domains = yield from reader.read_domains()
    interrupts = yield from reader.read_interrupts()
    counters, cached = dict(state.counters), state.cached
    hits, misses = counters.get("iotlb_hits"), counters.get("iotlb_misses")
    asked = (hits or 0) + (misses or 0)
    return {
        "source": source,
        "unit": {
            "dma": state.enabled,
            "interrupts": state.remapping,
            "compatible": state.compatible,
            "root": state.root,
            "interrupt_table": state.interrupt_table,
            "interrupt_entries": state.interrupt_entries if state.interrupt_table else 0,
        },
        "domains": domains,
        "broken": reader.broken,
        "interrupts": interrupts,
        "iotlb": {
            "entries": cached["entries"] if cached else None,
            "in_use": cached["in_use"] if cached else None,
            "hits": hits,
            "misses": misses,
            "ratio": round((hits or 0) / asked, 6) if asked else None,
        },
        "contexts": {"cached": cached["contexts"] if cached else None, "walks": counters.get("context_walks")},
        "interrupt_cache": {
            "cached": cached["interrupts"] if cached else None,
            "walks": counters.get("interrupt_walks"),
        },
        "counters": counters,
        "faults": _faults(state),
        "truncated": reader.truncated,
        "changing": False,
    }


def _faults(state: UnitState) -> list[FaultView]:
    return [
        {
            "rid": format_rid(fault.rid),
            "iova": fault.iova,
            "reason": fault.reason.text,
            "write": fault.write,
            "code": int(fault.reason),
            "kind": fault.kind.name.lower(),
            "count": count,
        }
        for fault, count in Counter(state.faults).items()
    ]


def save_iommu(host: Host, path: Path) -> None:
    """Write the state of a unit that runs, with every table that it can reach.

    Raises VirtfnError if the file cannot be written, or the tables are more than a state holds.
    """
    state = read_unit(host)
    memory = Recorded(state.memory)
    reader = TableReader(dataclasses.replace(state, memory=memory))
    reader.domains()
    reader.interrupts()
    if reader.truncated:
        raise VirtfnError(f"{path}: the tables are too large for a saved state", errno_name="EFBIG")
    save_state(path, state, memory.pages)


# Questions, and who answers them.


def ask_show(lab: str | None, saved: Path | None) -> ShowDocument:
    """Describe the unit of a lab that runs, by name or the only one; or the one in a saved state.

    Raises VirtfnError if there is none.
    """
    if saved is not None:
        return show_document(load_state(saved), str(saved))
    return cast(ShowDocument, ask("iommu.show", {}, lab))


def ask_explanation(
    rid: Rid, iova: Iova, write: bool, message: int, lab: str | None, saved: Path | None
) -> Explanation:
    """Explain one request, on a lab that runs or a saved state; message: the data, if it is one.

    Raises VirtfnError if there is neither.
    """
    if saved is not None:
        return explain(load_state(saved), rid, iova, write, message)
    params = {"rid": int(rid), "iova": int(iova), "write": write, "message": message}
    return cast(Explanation, ask("iommu.explain", params, lab))
