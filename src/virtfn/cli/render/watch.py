"""What a terminal shows of VFs that are watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from virtfn.cli.render.table import Listing

if TYPE_CHECKING:
    from virtfn.api.session.watching import VfDocument

__all__ = ["render_vf", "render_vfs"]


def render_vfs(vfs: Sequence[VfDocument]) -> RenderableType:
    """Show VFs, a line each: of each kind what there is in a second, and what is allowed."""
    kinds = list(vfs[0]["watch"]) if vfs else []
    table = Listing("vf", "guest", "state", right=kinds)
    for vf in vfs:
        amounts = [f"{vf['watch'][kind]['per_second']:,}/{vf['watch'][kind]['allowed']:,}" for kind in kinds]
        table.add_row(f"{vf['pf']}/vf{vf['vf']}", vf["guest"] or "", _state(vf), *amounts)
    notes = [render_vf(vf) for vf in vfs if vf["why"]]
    return Group(table, *notes)


def render_vf(vf: VfDocument) -> RenderableType:
    """Show one VF in a line."""
    owner = f" of {vf['guest']}" if vf["guest"] else ""
    why = f": {vf['why']}" if vf["why"] else ""
    return Text(f"{vf['pf']}/vf{vf['vf']} ({vf['address']}){owner} is {_state(vf)}{why}")


def _state(vf: VfDocument) -> str:
    held = f", throttled to {vf['throttled_mbps']} Mb/s" if vf["throttled_mbps"] is not None else ""
    return vf["state"] + held
