"""The sockets of a lab that is served."""

from __future__ import annotations

from rich.console import RenderableType

from virtfn.api.served import ServiceDocument
from virtfn.cli.render.table import facts

__all__ = ["render_service"]


def render_service(document: ServiceDocument) -> RenderableType:
    """Lay the sockets out for a person."""
    table = facts()
    for socket in document["sockets"]:
        table.add_row(socket["guest"], f"{socket['protocol']} at {socket['path']}")
        if socket["monitor"] is not None:
            count = len(socket["vfs"])
            table.add_row("", f"with {count} VFs that it may make; its QEMU is to listen at {socket['monitor']}")
    return table
