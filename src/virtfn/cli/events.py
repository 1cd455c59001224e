"""`virtfn events`: what happens in a lab that is up, as it happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import click

from virtfn import private
from virtfn.cli.outputs import STDOUT, claim, deliver, json_option
from virtfn.cli.service import lab_option

if TYPE_CHECKING:
    from virtfn.api.session.requests import EventsDocument

__all__ = ["events"]

_LOOK_S = 0.25


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as events come, until the lab ends.")
@click.option("--since", type=click.IntRange(0, (1 << 63) - 1), default=0, help="Begin at this sequence number.")
@lab_option
@json_option
def events(follow: bool, since: int, lab: str | None, json_to: str | None) -> None:
    """Show what has happened in a lab that is up.

    With -f and --json, a line of JSON for each event, as it comes.
    """
    claim({"--json": json_to})
    from virtfn.api.control import only_lab
    from virtfn.cli.render.service import event_line, render_events

    name = only_lab(lab)
    reading = _read(name, since)
    if follow and json_to not in (None, STDOUT):
        with open(json_to, "w", encoding="utf-8", opener=private.opener) as file:
            _follow(name, reading, lambda told: print(json.dumps(told), file=file, flush=True))
    elif follow:
        _follow(name, reading, lambda told: click.echo(json.dumps(told) if json_to else event_line(told)))
    else:
        lost, told = reading["lost"], list(reading["events"])
        while reading["events"]:
            reading = _read(name, reading["next"])
            told += reading["events"]
        document: EventsDocument = {"events": told, "lost": lost, "next": reading["next"]}
        deliver(json_to, document, lambda: render_events(document))


def _read(lab: str, since: int) -> EventsDocument:
    from virtfn.api.control import ask

    return cast("EventsDocument", ask("events.read", {"since": since}, lab))


def _follow(lab: str, reading: EventsDocument, write: Callable[..., object]) -> None:
    """Write events as they come, until the lab is gone."""
    from virtfn.api.control import AskError

    while True:
        if reading["lost"]:
            click.echo(f"virtfn: {reading['lost']} events are lost: they came too fast", err=True)
        for told in reading["events"]:
            write(told)
        sys.stdout.flush()
        if not reading["events"]:
            time.sleep(_LOOK_S)
        try:
            reading = _read(lab, reading["next"])
        except AskError:
            click.echo(f"virtfn: lab {lab} has ended", err=True)
            return
