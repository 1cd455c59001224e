"""Labs as services, for a terminal: how they are, what they send, what happens."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from virtfn.api.service import StatusEntry
    from virtfn.api.session.changes import ChangeDocument
    from virtfn.api.session.events import EventDocument
    from virtfn.api.session.requests import EventsDocument
    from virtfn.api.session.standing import TrafficCounts

__all__ = ["event_line", "render_changes", "render_diff", "render_events", "render_status", "render_traffic"]


def render_status(labs: Sequence[StatusEntry]) -> RenderableType:
    """Lay labs out, one in a line; what was lost is said below."""
    if not labs:
        return Text("no lab is up; virtfn up LAB.yaml")
    table = Table(box=None, pad_edge=False)
    for heading in ("lab", "state", "pid", "up for", "PFs", "VFs", "guests", "traffic", "http"):
        table.add_column(heading)
    notes = []
    for entry in labs:
        status = entry["status"]
        if status is None:
            table.add_row(entry["lab"], entry["state"], *[""] * 7)
        else:
            rate = status["traffic"]["rate"] if status["traffic"] else 0
            table.add_row(
                entry["lab"],
                entry["state"],
                str(entry["pid"]),
                f"{status['uptime_s']:,.0f} s",
                str(status["pfs"]),
                str(status["vfs"]),
                f"{status['attached']} of {status['guests']}",
                f"{rate:,}/s" if rate else "none",
                entry["http"] or "",
            )
            if status.get("unwritten"):  # a lab of before has none
                notes.append(Text(f"{entry['lab']}: its latest change is in no file: {status['unwritten']}"))
        if entry["lost"]:
            lab = entry["lab"]
            notes.append(Text(f"{lab} was lost: {entry['lost']}"))
            notes.append(Text(f"  virtfn up --again {lab} brings it up as it was; virtfn down {lab} forgets it"))
    return Group(table, *notes)


def render_traffic(counts: TrafficCounts) -> RenderableType:
    """Say what came of traffic."""
    return Text(
        f"{counts['sent']:,} sent, {counts['heard']:,} heard, {counts['corrupt']:,} corrupt, "
        f"in {counts['rounds']} rounds that were over"
    )


def render_changes(document: ChangeDocument) -> RenderableType:
    """Say what changed, or would."""
    if not document["changes"]:
        return Text(f"lab {document['lab']} is like that already")
    done = "changed" if document["applied"] else "would change"
    lines = [f"{each['key']}: {_value(each['before'])} -> {_value(each['after'])}" for each in document["changes"]]
    return Group(Text(f"lab {document['lab']} {done}:"), *(Text(f"  {line}") for line in lines))


def render_diff(document: ChangeDocument) -> RenderableType:
    """Lay what changed out in the manner of diff."""
    lines = []
    for each in document["changes"]:
        if each["before"] is not None:
            lines.append(Text(f"-{each['key']}: {_value(each['before'])}", "red"))
        if each["after"] is not None:
            lines.append(Text(f"+{each['key']}: {_value(each['after'])}", "green"))
    return Group(*lines)


def _value(value: object) -> str:
    return json.dumps(value)


def render_events(document: EventsDocument) -> RenderableType:
    """Lay events out, one in a line."""
    lost = [Text(f"{document['lost']} events before these are gone")] if document["lost"] else []
    return Group(*lost, *(Text(event_line(told)) for told in document["events"]))


def event_line(told: EventDocument) -> str:
    """Write an event in a line."""
    at = told["timestamp"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at["seconds"]))
    data = " ".join(f"{key}={value}" for key, value in told["data"].items())
    return f"{when}.{at['microseconds']:06} {told['event']} {data}".rstrip()
