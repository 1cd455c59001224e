"""`virtfn events`: what happens in a lab that is up, as it happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import click

from virtfn.cli.inputs import lab_option
from virtfn.cli.outputs import claim, deliver, json_option, writing

if TYPE_CHECKING:
    from virtfn.api.session.requests import EventsDocument

__all__ = ["events"]

_LOOK_S = 0.25
_PASSING = ("EBUSY", "EAGAIN", "ETIMEDOUT", "")
"""What a lab that is there may refuse a question with, and answer the next; without a name: it hung up."""


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
    if follow and json_to is not None:
        with writing(json_to) as file:
            _follow(name, since, lambda told: print(json.dumps(told), file=file, flush=True))
    elif follow:
        _follow(name, since, lambda told: click.echo(event_line(told)))
    else:
        reading = _read(name, since)
        lost, told = reading["lost"], list(reading["events"])
        while reading["events"]:
            reading = _read(name, reading["next"])
            told += reading["events"]
        document: EventsDocument = {"events": told, "lost": lost, "next": reading["next"]}
        deliver(json_to, document, lambda: render_events(document))


def _read(lab: str, since: int) -> EventsDocument:
    from virtfn.api.control import ask

    return cast("EventsDocument", ask("events.read", {"since": since}, lab))


def _follow(lab: str, since: int, write: Callable[..., object]) -> None:
    """Write events as they come, until the lab is gone."""
    from virtfn.api.control import running_labs
    from virtfn.machine.ports import VirtfnError

    while True:
        try:
            reading = _read(lab, since)
        except VirtfnError as error:
            if error.errno_name == "ESHUTDOWN" or lab not in running_labs():
                click.echo(f"virtfn: lab {lab} has ended", err=True)
                return
            if error.errno_name not in _PASSING:
                raise
            time.sleep(_LOOK_S)
            continue
        since = reading["next"]
        if reading["lost"]:
            click.echo(f"virtfn: {reading['lost']} events are lost: they came too fast", err=True)
        for told in reading["events"]:
            write(told)
        sys.stdout.flush()
        if not reading["events"]:
            time.sleep(_LOOK_S)
