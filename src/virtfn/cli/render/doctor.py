"""What the doctor found."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["render_doctor"]

_TITLES = {
    "run": "embedded labs",
    "qemu": "QEMU guests",
    "host": "guests as hosts",
    "hardware": "real VFs",
    "judges": "outside judges",
}


def render_doctor(document: dict[str, object]) -> RenderableType:
    """Lay the doctor's findings out for a person."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for title in ("for", "what", "", "found", "how to get it"):
        table.add_column(title, overflow="fold", no_wrap=title in ("for", "what", ""))
    last = ""
    checks = document["checks"]
    assert isinstance(checks, list)
    for check in checks:
        mark = Text("ok", style="green") if check["ok"] else Text("-", style="yellow")
        title = _TITLES[check["purpose"]] if check["purpose"] != last else ""
        table.add_row(title, check["name"], mark, Text(check["found"]), Text(check["remedy"], style="dim"))
        last = check["purpose"]
    can = document["can"]
    assert isinstance(can, dict)
    able = [_TITLES[purpose] for purpose, yes in can.items() if yes]
    return Group(table, Text(""), Text(f"this machine is ready for: {', '.join(able) or 'nothing yet'}", style="bold"))
