"""How an explanation looks: a line for each decision, the register that makes it, the end, and what nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from virtfn.api.explain import ExplainDocument

__all__ = ["render_explanation"]


def render_explanation(document: ExplainDocument) -> RenderableType:
    """Show the walk of a frame."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    last = ""
    for step in document["steps"]:
        table.add_row(Text("" if step["stage"] == last else step["stage"]), Text(step["register"]), Text(step["words"]))
        last = step["stage"]
    size = len(document["frame"]) // 2
    head = Text(f"{document['source']} sends {size} bytes")
    if document["source"].endswith("/wire"):
        head = Text(f"{size} bytes come from {document['source']}")
    end = Text(f"{document['outcome']}: {document['words']}")
    return Group(head, table, end, *(Text(f"not known: {words}") for words in document["unknown"]))
