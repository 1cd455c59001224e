"""`virtfn watch`, `quarantine` and `release`: how the VFs of a lab that runs behave, and stopping one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from virtfn.cli.inputs import lab_option
from virtfn.cli.outputs import claim, deliver, json_option

if TYPE_CHECKING:
    from virtfn.api.session.watching import VfDocument

__all__ = ["quarantine", "release", "watch"]

_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,31})/vf([0-9]{1,3})", re.ASCII)


def _vf(text: str) -> tuple[str, int]:
    """Read pf0/vf3."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no VF like pf0/vf3")
    return found[1], int(found[2])


@click.command()
@click.argument("pf", metavar="[PF]", required=False)
@lab_option
@json_option
def watch(pf: str | None, lab: str | None, json_to: str | None) -> None:
    """Show how VFs behave: what each is watched for, how much of it there is, and what is allowed."""
    claim({"--json": json_to})
    from virtfn.api.watching import ask_vfs
    from virtfn.cli.render.watch import render_vfs

    vfs = ask_vfs(pf, lab)
    deliver(json_to, vfs, lambda: render_vfs(vfs))


@click.command()
@click.argument("vf", metavar="PF/vfN", type=_vf)
@click.option("--why", metavar="TEXT", default="", help="A line for whoever looks later.")
@lab_option
@json_option
def quarantine(vf: tuple[str, int], why: str, lab: str | None, json_to: str | None) -> None:
    """Stop a VF that its guest keeps: nothing goes in or out, and the guest sees no link.

    That lasts, whatever the guest does, until virtfn release PF/vfN.
    """
    claim({"--json": json_to})
    from virtfn.api.watching import ask_quarantine

    _tell(ask_quarantine(*vf, why, lab), json_to)


@click.command()
@click.argument("vf", metavar="PF/vfN", type=_vf)
@lab_option
@json_option
def release(vf: tuple[str, int], lab: str | None, json_to: str | None) -> None:
    """Let a VF run again that was quarantined or throttled."""
    claim({"--json": json_to})
    from virtfn.api.watching import ask_release

    _tell(ask_release(*vf, lab), json_to)


def _tell(document: VfDocument, json_to: str | None) -> None:
    from virtfn.cli.render.watch import render_vf

    deliver(json_to, document, lambda: render_vf(document))
