"""Consoles of the Linux guests that run."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from virtfn.api.shell import ConsoleDocument

__all__ = ["render_consoles"]


def render_consoles(consoles: list[ConsoleDocument]) -> RenderableType:
    """Lay the list out for a person."""
    if not consoles:
        return Text("no Linux guest runs; virtfn run --keep keeps a lab up")
    return Group(*(Text(entry["guest"]) for entry in consoles))
