"""What a terminal shows of a comparison: what was measured, what was counted, what that is priced at, what follows."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from virtfn.api.comparison import Comparison, ModelResult
from virtfn.cli.render.table import Listing

__all__ = ["render_compare"]


def render_compare(document: Comparison) -> RenderableType:
    """Lay a comparison out in tables; measured and priced figures have tables of their own."""
    parts: list[RenderableType] = [Text(f"{document['workload']}, {document['frame_bytes']} bytes each\n")]
    parts += [Text("measured on this machine, by wall clock", style="bold"), _measured(document), Text("")]
    parts += [Text("counted, for each frame, as fast as it goes", style="bold"), _counted(document), Text("")]
    if document["throttle"]:
        parts += [Text("at lower loads", style="bold"), _loads(document), Text("")]
    parts += [Text("priced, in cycles of a processor for each frame", style="bold"), _priced(document), Text("")]
    parts += [_held(document)]
    return Group(*parts)


def _rows(document: Comparison) -> Iterator[tuple[str, ModelResult]]:
    for run in document["runs"]:
        for name, result in run["models"].items():
            yield f"{name}, {run['guests']}", result


def _measured(document: Comparison) -> Listing:
    listing = Listing("model, guests", right=("delivered", "lost", "Mpps", "Gb/s", "p50 us", "p99 us", "p99.9 us"))
    for name, result in _rows(document):
        if result["refused"]:
            listing.add_row(name, "refused", *[""] * 6)
            continue
        measured = result["measured"]
        delays = (f"{delay:,.0f}" for delay in measured["latency_us"].values())
        rates = (_number(measured[key]) for key in ("mpps", "gbps"))
        lost = result["lost"] + result["corrupt"]
        listing.add_row(name, f"{result['delivered']:,}", f"{lost:,}", *rates, *delays)
    return listing


def _counted(document: Comparison) -> Listing:
    titles = ("exits", "notifications", "switches", "copies", "bytes copied", "interrupts", "page walks")
    keys = ("exits", "notifications", "guest_switches", "copies", "bytes_copied", "interrupts", "page_walks")
    listing = Listing("model, guests", right=titles)
    for name, result in _rows(document):
        if not result["refused"]:
            listing.add_row(name, *(_number(result["per_frame"][key]) for key in keys))  # type: ignore[literal-required]
    return listing


def _loads(document: Comparison) -> Listing:
    titles = ("frames/s", "exits", "notifications", "interrupts", "frames/interrupt", "p50 us", "p99 us")
    listing = Listing("model, guests", right=titles)
    for name, result in _rows(document):
        for load in result["loads"]:
            frame, delay = load["per_frame"], load["latency_us"]
            listing.add_row(
                name,
                f"{load['fps']:,}",
                *(_number(frame[key]) for key in ("exits", "notifications", "interrupts")),
                _number(load["frames_per_interrupt"]) if load["frames_per_interrupt"] else "polls",
                f"{delay['p50']:,.0f}",
                f"{delay['p99']:,.0f}",
            )
    return listing


def _priced(document: Comparison) -> Listing:
    low = [load["fps"] for _, result in _rows(document) for load in result["loads"]][:1]
    busy = "at full rate"
    quiet = [f"at {fps:,} frames/s" for fps in low]
    listing = Listing("model, guests", right=(busy, "lowest", "highest", *quiet, "one core serves"))
    for name, result in _rows(document):
        if result["refused"]:
            continue
        priced, core = result["priced"], result["priced"]["core_mpps"]
        listing.add_row(
            name,
            *(f"{priced[key]:,.0f}" for key in ("cycles", "low", "high")),
            *(f"{load['cycles']:,.0f}" for load in result["loads"][: len(low)]),
            f"{core:.2f} Mpps" if core is not None else "any number",
        )
    return listing


def _number(value: float) -> str:
    return "0" if not value else f"{value:,.4f}" if value < 0.1 else f"{value:,.2f}"


def _held(document: Comparison) -> RenderableType:
    lines = [Text("what follows", style="bold")]
    for name, result in document["models"].items():
        if result["refused"]:
            lines.append(Text.assemble(("refused  ", "yellow"), f"{name}: {result['refused']}"))
    for held in document["properties"]:
        sign = ("holds    ", "green") if held["holds"] else ("does not ", "red")
        lines.append(Text.assemble(sign, held["words"]))
    return Group(*lines)
