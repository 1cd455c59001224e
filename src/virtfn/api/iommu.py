"""`virtfn iommu`: what a remapping unit knows, as documents, from a lab that runs or from a saved state.

    lab that runs --- control socket ---+
                                        +--> ShowDocument, Explanation
    saved state ------------------------+

The TypedDicts are the JSON documents, key for key; keys never change meaning.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

from virtfn.api.control import Handler, Params, ask
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
    "iommu_methods",
    "save_iommu",
    "show_document",
]

LIVE_TABLES = 1 << 12
"""Pages of tables that are read for one question to a lab that runs: its data plane waits meanwhile."""


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
    """The document of `virtfn iommu show --json`. truncated: a bound was reached, and not everything is listed."""

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


def show_document(state: UnitState, source: str, tables: int = MAX_TABLES) -> ShowDocument:
    """Describe a unit. source: where the state is from; tables: pages of tables that may be read."""
    reader = TableReader(state, tables)
    domains, interrupts = reader.domains(), reader.interrupts()
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


# Questions to a lab that runs, and their answers.


def iommu_methods(host: Host, lab: str) -> dict[str, Handler]:
    """Return what a lab that runs can be asked about its unit."""
    return {
        "iommu.show": lambda params: show_document(read_unit(host), f"lab {lab}", LIVE_TABLES),
        "iommu.explain": lambda params: _explain(read_unit(host), params),
    }


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
    params: Mapping[str, object] = {"rid": int(rid), "iova": int(iova), "write": write, "message": message}
    if saved is not None:
        return _explain(load_state(saved), params)
    return cast(Explanation, ask("iommu.explain", params, lab))


def _explain(state: UnitState, params: Params) -> Explanation:
    rid, iova, message = (_number(params, name, bits) for name, bits in (("rid", 16), ("iova", 64), ("message", 32)))
    write = params.get("write", False)
    if not isinstance(write, bool):
        raise VirtfnError("write is true or false", errno_name="EINVAL")
    return explain(state, Rid(rid), Iova(iova), write, message)


def _number(params: Params, name: str, bits: int) -> int:
    value = params.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise VirtfnError(f"{name} is a number of {bits} bits", errno_name="EINVAL")
    return value
