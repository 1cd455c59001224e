"""What a remapping unit knows, and how it answers a request."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from virtfn.api.iommu import FaultView, ShowDocument
from virtfn.cli.render.table import Listing, facts
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.iommu.explanation import CacheView, Explanation, PageView
from virtfn.iovm.iommu.tables import DomainView, Target

__all__ = ["render_explanation", "render_show"]

_PIECES = 4
_LINES = 64


def render_show(document: ShowDocument) -> RenderableType:
    """Lay out what a unit knows."""
    parts: list[RenderableType] = [_unit(document), Text("")]
    for domain in document["domains"]:
        parts += [*_domain(domain), Text("")]
    if document["broken"]:
        table = Listing("entry that cannot be used", "value", "why", prose=("why",))
        for broken in document["broken"][:_LINES]:
            table.add_row(Text(broken["entry"]), broken["value"], Text(f"{broken['reason']} ({broken['code']:#x})"))
        parts += [table, *_left(len(document["broken"])), Text("")]
    if document["interrupts"]:
        parts += [_interrupts(document), *_left(len(document["interrupts"])), Text("")]
    parts += [_caches(document), Text(""), *_faults(document["faults"])]
    if document["truncated"]:
        parts.append(Text("Not everything is listed: there is more than one answer holds.", style="yellow"))
    if document["changing"]:
        parts.append(Text("The tables changed while they were read: parts are of different moments.", style="yellow"))
    return Group(*parts)


def _unit(document: ShowDocument) -> RenderableType:
    unit = document["unit"]
    on = {True: ("on", "green"), False: ("off", "bold yellow")}
    line = Text.assemble((document["source"], "bold"), ": DMA remapping ", on[unit["dma"]], ", interrupt remapping ")
    line.append_text(Text.assemble(on[unit["interrupts"]]))
    tables = f"root table {unit['root']:#x}"
    if unit["interrupt_entries"]:
        tables += f", interrupt table {unit['interrupt_table']:#x} with {unit['interrupt_entries']:,} entries"
    if unit["compatible"]:
        tables += ", compatibility format allowed"
    return Group(line, Text(tables, style="dim"))


def _domain(domain: DomainView) -> Iterator[RenderableType]:
    kind = "pass-through" if domain["pass_through"] else f"{domain['levels']} levels, {domain['tables']} tables"
    if domain["device_tlb"]:
        kind += ", device TLBs allowed"
    who = ", ".join(domain["rids"][:8]) + (f" and {len(domain['rids']) - 8} more" if len(domain["rids"]) > 8 else "")
    yield Text.assemble(("domain ", "dim"), (str(domain["id"]), "bold"), f"  {who}  ", (kind, "dim"))
    if domain["broken"]:
        yield Text(f"  {domain['broken']:,} entries are broken: they fault when they are used", style="yellow")
    if domain["mappings"]:
        table = Listing("device addresses", "size", "rights", "in memory at", prose=("in memory at",))
        pieces = domain["targets"]
        for mapping in domain["mappings"][:_LINES]:
            first, size = mapping["iova"], mapping["bytes"]
            rights = ("r" if mapping["read"] else "-") + ("w" if mapping["write"] else "-")
            where = _pieces(pieces, first, first + size)
            table.add_row(f"{first:#x}-{first + size - 1:#x}", _size(size), rights, Text(where, style="dim"))
        yield Padding(table, (0, 0, 0, 2), expand=False)
        yield from _left(len(domain["mappings"]))
    if domain["truncated"]:
        yield Text("  there is more in these tables", style="yellow")


def _pieces(targets: list[Target], first: int, end: int) -> str:
    inside = [t for t in targets if t["iova"] < end and t["iova"] + t["bytes"] > first]
    # A piece that runs over a change of rights begins before the mapping.
    shown = [f"{t['hpa'] + max(first - t['iova'], 0):#x}" for t in inside[:_PIECES]]
    more = len(inside) - len(shown)
    return ", ".join(shown) + (f" and {more} more pieces" if more > 0 else "") if shown else "not listed"


def _interrupts(document: ShowDocument) -> Listing:
    table = Listing("interrupt entry", "requester", "vector", "goes to", prose=("goes to",))
    for entry in document["interrupts"][:_LINES]:
        goes = f"local APIC {entry['destination']:#x}" if entry["destination"] is not None else ""
        if entry["descriptor"] is not None:
            goes = f"posted to {entry['descriptor']:#x}"
        note = Text(goes).append("  broken: reserved bits are set", "red") if entry["broken"] else Text(goes)
        table.add_row(str(entry["index"]), Text(entry["requester"]), f"{entry['vector']:#x}", note)
    return table


def _caches(document: ShowDocument) -> Table:
    table = facts()
    iotlb, counters = document["iotlb"], document["counters"]
    if iotlb["in_use"] is not None:
        used = sum(use["entries"] for use in iotlb["in_use"])
        table.add_row("IOTLB", f"{used:,} of {iotlb['entries']:,} entries in use")
        for use in iotlb["in_use"]:
            table.add_row("", f"domain {use['domain']}: {use['entries']:,} of {_size(use['page_bytes'])}")
    if iotlb["hits"] is not None and iotlb["misses"] is not None:
        share = "" if iotlb["ratio"] is None else f", {100 * iotlb['ratio']:.1f} % by the IOTLB"
        table.add_row("requests", f"{iotlb['hits']:,} hits, {iotlb['misses']:,} misses{share}")
    for name, cache in (("contexts", document["contexts"]), ("interrupt cache", document["interrupt_cache"])):
        if cache["cached"] is not None:
            walks = "" if cache["walks"] is None else f", {cache['walks']:,} walks"
            table.add_row(name, f"{cache['cached']:,} cached{walks}")
    shown = {"iotlb_hits", "iotlb_misses", "translations", "context_walks", "interrupt_walks"}
    rest = [f"{name.replace('_', ' ')} {count:,}" for name, count in counters.items() if count and name not in shown]
    if rest:
        table.add_row("counters", ", ".join(rest))
    return table


def _faults(faults: list[FaultView]) -> Iterator[RenderableType]:
    """List faults by who, what and why; of how many addresses, only the first and the last."""
    if not faults:
        yield Text("no faults", style="dim")
        return
    alike: dict[tuple[str, str, str], list[FaultView]] = {}
    for fault in faults:
        interrupt = FaultReason(fault["code"]).of_interrupt
        what = "interrupt" if interrupt else "write" if fault["write"] else "read"
        if fault["kind"] != "untranslated":
            what = f"{fault['kind']}, {what}"
        alike.setdefault((fault["rid"], what, f"{fault['reason']} ({fault['code']:#x})"), []).append(fault)
    table = Listing("fault of", "asked for", "at", "why", "times", prose=("at", "why"))
    for (rid, what, why), group in list(alike.items())[:_LINES]:
        where = sorted({fault["iova"] >> 48 if what == "interrupt" else fault["iova"] for fault in group})
        at = "entry {}" if what == "interrupt" else "{:#x}"
        shown = at.format(where[0]) if len(where) == 1 else f"{at.format(where[0])} ... {at.format(where[-1])}"
        times = sum(fault["count"] for fault in group)
        table.add_row(rid, what, shown, Text(why, style="yellow"), f"{times:,}")
    yield table
    yield from _left(len(alike))


def render_explanation(explanation: Explanation) -> RenderableType:
    """Lay out a walk, a line or two for each entry, and what comes of it."""
    what = "write to" if explanation["write"] else "read of"
    parts: list[RenderableType] = [
        Text.assemble((explanation["rid"], "bold"), f": {what} ", (f"{explanation['iova']:#x}", "bold")),
        Text(""),
    ]
    for step in explanation["steps"]:
        parts.append(
            Text.assemble((step["entry"], "bold"), f" at {step['address']:#x}: {step['value'] or 'no memory'}")
        )
        parts.append(Padding(Text(step["words"]), (0, 0, 0, 4), expand=False))
        if step["fields"]:
            parts.append(Padding(Text(step["fields"], style="dim"), (0, 0, 0, 4), expand=False))
    if explanation["steps"]:
        parts.append(Text(""))
    verdict = explanation["verdict"]
    style = "bold red" if verdict["outcome"] == "fault" else "yellow" if verdict["outcome"] == "nothing" else "green"
    parts.append(Text.assemble((f"{verdict['outcome']}  ", style), verdict["words"]))
    if explanation["caches"] is not None:
        parts += [Text(line, style=style) for line, style in _cache_lines(explanation["caches"])]
    return Group(*parts)


def _cache_lines(caches: CacheView) -> Iterator[tuple[str, str]]:
    words = {
        "none": ("holds nothing of it", "dim"),
        "equal": ("holds the same", "dim"),
        "stale": ("holds something else: STALE, and it serves until it is invalidated", "bold yellow"),
    }
    for key, name in (("context", "context cache"), ("interrupt", "interrupt entry cache")):
        if key in caches:
            said, style = words[str(caches[key])]  # type: ignore[literal-required]
            yield f"the {name} {said}", style
    for key, name in (("iotlb", "IOTLB"), ("device_tlb", "device TLB")):
        if key not in caches:
            continue
        page: PageView | None = caches[key]  # type: ignore[literal-required]
        said, style = words["none" if page is None else "stale" if page["stale"] else "equal"]
        entry = ""
        if page is not None:
            rights = ("r" if page["read"] else "-") + ("w" if page["write"] else "-")
            entry = f" ({_size(page['bytes'])} at {page['iova']:#x} -> {page['hpa']:#x} {rights})"
        yield f"the {name} {said}{entry}", style


def _left(count: int) -> Iterator[RenderableType]:
    if count > _LINES:
        yield Text(f"  and {count - _LINES:,} more; --json lists them", style="dim")


def _size(number: int) -> str:
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >> shift:
            whole = number / (1 << shift)
            return f"{whole:.0f} {unit}" if whole == int(whole) else f"{whole:.1f} {unit}"
    return f"{number} bytes"
