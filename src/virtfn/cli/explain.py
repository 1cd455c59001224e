"""`virtfn explain`: what becomes of a frame, decision by decision. `virtfn metrics`: counters for Prometheus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from virtfn.cli.inputs import lab_option
from virtfn.cli.outputs import STDOUT, claim, deliver, json_option, write_json, writing

if TYPE_CHECKING:
    from virtfn.api.session.snapshot import Snapshot

__all__ = ["explain", "metrics"]


@click.command()
@click.argument("source", metavar="PF[/vfN|/wire]")
@click.argument("frame", metavar="[FRAMEHEX]", required=False)
@click.option("--capture", metavar="FILE", help="Take the frame from a pcap or pcapng file.")
@click.option("--frame", "number", type=click.IntRange(1, 1 << 40), help="Its number there, from 1. [1]")
@click.option("--state", metavar="FILE", help="Of a card's state that was saved, instead of a lab that runs.")
@click.option("--save-state", metavar="FILE", help="Save the state of the card, to explain other frames later.")
@lab_option
@json_option
def explain(
    source: str,
    frame: str | None,
    capture: str | None,
    number: int | None,
    state: str | None,
    save_state: str | None,
    lab: str | None,
    json_to: str | None,
) -> None:
    """Explain what the card does with a frame that a function sends, or that comes from the wire.

    Each decision is named with the register that makes it, up to who gets the frame, or the reason why nobody does.
    """
    if (frame is None) == (capture is None):
        raise click.UsageError("give the frame in hexadecimal, or --capture FILE")
    if number is not None and capture is None:
        raise click.UsageError("--frame is the number of a frame of --capture FILE")
    if state is not None and lab is not None:
        raise click.UsageError("--state and --lab: give one of them")
    claim({"--json": json_to, "--save-state": save_state}, capture, state)
    from virtfn.api import explain as explaining
    from virtfn.cli.render.explain import render_explanation

    content = (
        explaining.frame_of_hex(frame)
        if frame is not None
        else explaining.frame_of_capture(Path(capture or ""), number or 1)
    )
    card = explaining.read_state(source, lab) if state is None else explaining.load_state(Path(state))
    document = explaining.explain(card, source, content)
    if save_state is not None:
        with writing(save_state) as file:
            json.dump(card, file)
    deliver(json_to, document, lambda: render_explanation(document), stdout_taken=save_state == STDOUT)


@click.command()
@click.option("--sriov", is_flag=True, help="With the names of the SR-IOV network metrics exporter, too.")
@lab_option
@json_option
def metrics(sriov: bool, lab: str | None, json_to: str | None) -> None:
    """Print the counters of a lab that is up, in Prometheus' text format.

    The same is at /metrics, where the lab has HTTP. Here it is for a text file that node_exporter reads. --json writes
    the counters as session.snapshot has them.
    """
    claim({"--json": json_to})
    from virtfn.api.control import ask
    from virtfn.api.metrics import render_metrics

    snapshot = cast("Snapshot", ask("session.snapshot", {}, lab))
    if json_to is not None:
        write_json(json_to, snapshot)
    if json_to != STDOUT:
        click.echo(render_metrics(snapshot, sriov=sriov), nl=False)
