"""`virtfn iommu`: look at the remapping unit of a lab that runs, or at a saved state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from virtfn.cli.inputs import lab_option
from virtfn.cli.outputs import claim, deliver, json_option
from virtfn.hw.types import Rid, parse_rid

__all__ = ["iommu"]

_Command = TypeVar("_Command", bound=Callable[..., None])


def _requester(text: str) -> Rid:
    """Read 0000:02:10.0, 02:10.0, or a routing ID in hexadecimal."""
    try:
        number = int(parse_rid(text)) if ":" in text or "." in text else int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16 or "_" in text:
        raise click.BadParameter(f"{text!r} is no requester like 0000:02:10.0, 02:10.0 or 0x180")
    return Rid(number)


def _number(bits: int) -> Callable[[str], int]:
    """Make a reader of numbers of so many bits, hexadecimal with 0x, or decimal."""

    def read(text: str) -> int:
        try:
            number = int(text, 0)
        except ValueError:
            number = -1
        if not 0 <= number < 1 << bits:
            raise click.BadParameter(f"{text!r} is no number of {bits} bits like 0x1000 or 4096")
        return number

    return read


def source_options(command: _Command) -> _Command:
    """Give a command its --lab NAME and --state FILE."""
    state = click.option("--state", metavar="FILE", help="A saved state, instead of a lab that runs.")
    return lab_option(state(command))


@click.group()
def iommu() -> None:
    """Look at the IOMMU of a lab that runs (virtfn run --keep), or at a saved state."""


@iommu.command()
@source_options
@json_option
def show(lab: str | None, state: str | None, json_to: str | None) -> None:
    """Show domains and what they map, interrupt entries, caches, and faults."""
    saved = _source(lab, state, json_to)
    from virtfn.api.iommu import ask_show
    from virtfn.cli.render.iommu import render_show

    document = ask_show(lab, saved)
    deliver(json_to, document, lambda: render_show(document))


@iommu.command()
@click.argument("rid", metavar="RID", type=_requester)
@click.argument("iova", metavar="IOVA", type=_number(64))
@click.option("--write", is_flag=True, help="Explain a write; without it, a read.")
@click.option("--data", metavar="NUMBER", type=_number(32), default="0", help="Data of the message, if it is one.")
@source_options
@json_option
def explain(
    rid: Rid, iova: int, write: bool, data: int, lab: str | None, state: str | None, json_to: str | None
) -> None:
    """Walk the tables for a request of RID to IOVA, entry by entry, to the page or the fault.

    An IOVA in the interrupt range 0xfee00000-0xfeefffff is explained as a message.
    """
    saved = _source(lab, state, json_to)
    from virtfn.api.iommu import ask_explanation
    from virtfn.cli.render.iommu import render_explanation
    from virtfn.hw.types import Iova

    explanation = ask_explanation(rid, Iova(iova), write, data, lab, saved)
    deliver(json_to, explanation, lambda: render_explanation(explanation))


def _source(lab: str | None, state: str | None, json_to: str | None) -> Path | None:
    """Check where to look, and where the answer goes; return the file of the saved state, if it is one."""
    if lab is not None and state is not None:
        raise click.UsageError("--lab and --state name two places to look at; give one")
    claim({"--json": json_to}, state)
    return None if state is None else Path(state)
