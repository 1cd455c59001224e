"""`virtfn image`: get what Linux guests need, without root; `virtfn shell`: the console of one that runs."""

from __future__ import annotations

import sys

import click

from virtfn.cli.outputs import claim, console, deliver, json_option

__all__ = ["image", "shell"]


@click.group()
def image() -> None:
    """Get what Linux guests need, from Debian's packages, without root: a QEMU, and an image to boot."""


@image.command()
@click.option("--suite", metavar="SUITE", help="Debian's, such as trixie; without it, this machine's own.")
@click.option("--refresh", is_flag=True, help="Ask for newer packages, if the image was made before.")
@json_option
def build(suite: str | None, refresh: bool, json_to: str | None) -> None:
    """Make the guest image that labs boot: Debian's kernel, and an initramfs of Debian's programs."""
    claim({"--json": json_to})
    from virtfn.api.image import make_image
    from virtfn.cli.render.image import render_image

    with console(stderr=True).status("fetching packages and building the guest image"):
        document = make_image(suite, refresh=refresh)
    deliver(json_to, document, lambda: render_image(document))


@image.command()
@json_option
def qemu(json_to: str | None) -> None:
    """Unpack Debian's newest QEMU for this user alone, where the machine's own is too old."""
    claim({"--json": json_to})
    from virtfn.api.image import get_qemu
    from virtfn.cli.render.image import render_qemu

    with console(stderr=True).status("fetching QEMU and what it needs"):
        document = get_qemu()
    deliver(json_to, document, lambda: render_qemu(document))


@click.command()
@click.argument("guest", metavar="[GUEST]", required=False)
@json_option
def shell(guest: str | None, json_to: str | None) -> None:
    """Join the console of a Linux guest of a lab that runs (virtfn run --keep); Ctrl-] leaves it.

    Without GUEST: list those that run.
    """
    claim({"--json": json_to})
    from virtfn.api.shell import attach, find_console, list_consoles
    from virtfn.cli.render.shell import render_consoles

    if guest is None:
        document = list_consoles()
        deliver(json_to, document, lambda: render_consoles(document))
        return
    if json_to is not None:
        raise click.UsageError("--json lists the guests that run; leave GUEST out")
    door = find_console(guest)
    if sys.stdin.isatty():
        click.echo(f"console of {guest}; Ctrl-] leaves it", err=True)
    attach(door)
