"""`virtfn capture`: frames of a lab that is up, into a pcapng file or into tshark and Wireshark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from virtfn.cli.inputs import lab_option
from virtfn.cli.outputs import claim, json_option, path_of, write_json

if TYPE_CHECKING:
    from virtfn.api.session.captures import TapDocument

__all__ = ["capture"]


def _power_of_two(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if value & (value - 1):
        raise click.BadParameter(f"{value} is no power of two, like 16 or 64")
    return value


@click.command()
@click.option("-i", "interface", metavar="PF[/vfN]", required=True, help="A PF with its VFs and wire, or one VF.")
@click.option("-w", "target", metavar="FILE.pcapng", required=True, help="Where to write; -: standard output.")
@click.option(
    "--point",
    "points",
    type=click.Choice(["tx", "switch", "rx", "drop"]),
    multiple=True,
    help="Where frames are seen: as sent, where they go, as received, dropped and why. [tx, rx, drop]",
)
@click.option("-c", "count", type=click.IntRange(1, 1 << 62), help="End after so many frames.")
@click.option("-s", "snap", type=click.IntRange(0, 65535), default=0, help="Keep so many bytes of each frame. [all]")
@click.option(
    "-B",
    "mib",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    callback=_power_of_two,
    help="MiB of memory for frames that are not written yet, a power of two.",
)
@lab_option
@json_option
def capture(
    interface: str,
    target: str,
    points: tuple[str, ...],
    count: int | None,
    snap: int,
    mib: int,
    lab: str | None,
    json_to: str | None,
) -> None:
    """Capture frames of a lab that is up, until Ctrl-C, -c, or the end of the lab.

    Each function is an interface of the capture; a frame that was dropped has a comment that says why. The card waits
    for nobody: frames that there is no room for are counted, in the file too.

    Watch frames as they pass: virtfn capture -i pf0 -w - | tshark -i -
    """
    claim({"-w": target, "--json": json_to})
    from virtfn.api import capture as captures

    def say(document: TapDocument) -> None:
        names = ", ".join(interface["name"] for interface in document["interfaces"])
        click.echo(f"capturing {', '.join(document['wanted'])} of {names}; Ctrl-C ends it", err=True)

    path = path_of(target)
    done = captures.capture(interface, path, points=points, count=count, snap=snap, mib=mib, lab=lab, started=say)
    lost = f"; {done['lost']:,} more came faster than they could be written" if done["lost"] else ""
    click.echo(f"{done['frames']:,} frames captured{lost}", err=True)
    if json_to is not None:
        write_json(json_to, done)
