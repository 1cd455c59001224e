"""Pictures as the text that a terminal of a width shows."""

from __future__ import annotations

from rich.console import Console, RenderableType


def text(picture: RenderableType, width: int = 160) -> str:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()
