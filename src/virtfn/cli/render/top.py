"""Rates of functions and guests, as text: of one table, and of the cells of a live one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from virtfn.cli.render.table import Listing

if TYPE_CHECKING:
    from virtfn.api.rates import RateRow, Rates

__all__ = ["COLUMNS", "SORTS", "cells", "heading", "ordered", "render_rates", "short"]

COLUMNS = ("function", "guest", "sent/s", "received/s", "bits/s", "drops/s", "drops", "irqs/s", "exits/s")
SORTS = {
    "rate": ("both ways", lambda row: row["tx_frames"] + row["rx_frames"]),
    "sent": ("sent", lambda row: row["tx_frames"]),
    "received": ("received", lambda row: row["rx_frames"]),
    "drops": ("drops a second", lambda row: row["drops"]),
    "irqs": ("interrupts", lambda row: row["interrupts"]),
    "exits": ("exits", lambda row: row["exits"]),
}
"""What rows can be ordered by: in words, and how much of it a row has. Without most of it, rows stay as they are."""
_UNITS = ("", "k", "M", "G", "T")


def short(number: float) -> str:
    """Write a number in three digits and a unit: 0.4, 950, 1.49M."""
    unit = 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number /= 1000
        unit += 1
    if not unit:
        return f"{number:.1f}" if 0 < number < 9.95 else f"{number:.0f}"
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}{_UNITS[unit]}"


def ordered(rates: Rates, sort: str) -> list[RateRow]:
    """Return the rows, those with the most first."""
    return sorted(rates["rows"], key=SORTS[sort][1], reverse=True)


def cells(row: RateRow) -> Sequence[Text]:
    """Write a row."""
    numbers = [
        *(short(row["tx_frames"]), short(row["rx_frames"]), short(row["bits"]), short(row["drops"])),
        *(f"{row['drops_total']:,}", short(row["interrupts"]), short(row["exits"])),
    ]
    styles = ["", "", "", "red" if row["drops"] else "", "", "", ""]
    guest = Text("none", "dim") if row["guest"] is None else Text(row["guest"])
    return [Text(row["function"]), guest, *(Text(n, s, justify="right") for n, s in zip(numbers, styles, strict=True))]


def heading(rates: Rates) -> str:
    """Say what lab this is, and what all of it does."""
    frames, bits = sum(row["rx_frames"] for row in rates["rows"]), sum(row["bits"] for row in rates["rows"])
    drops = sum(row["drops"] for row in rates["rows"])
    return (
        f"{rates['lab']}: {rates['state']}, up for {rates['elapsed_s']:,.0f} s; "
        f"{short(frames)} frames received, {short(bits)} bits, {short(drops)} drops a second"
    )


def render_rates(rates: Rates, sort: str) -> RenderableType:
    """Lay rates out as one table."""
    table = Listing(*COLUMNS[:2], right=COLUMNS[2:])
    for row in ordered(rates, sort):
        table.add_row(*(Text(cell.plain, cell.style) for cell in cells(row)))
    return Group(Text(heading(rates)), Text(""), table if rates["rows"] else Text("no guests, and no VFs"))
