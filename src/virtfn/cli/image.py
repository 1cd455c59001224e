"""`virtfn image`: get what Linux guests need, without root; `virtfn shell`, `virtfn exec`: into one that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from virtfn.cli.outputs import STDOUT, claim, console, deliver, json_option, write_json

__all__ = ["exec_in_guest", "image", "shell"]


@click.group()
def image() -> None:
    """Get what Linux guests need, from Debian's packages, without root: a QEMU, and an image to boot."""


@image.command()
@click.option("--suite", metavar="SUITE", help="Debian's, such as trixie; without it, this machine's own.")
@click.option(
    "--kernel",
    metavar="PACKAGE[/SUITE]",
    help="With this kernel of Debian's, such as linux-image-amd64/bookworm-backports: for labs that name its files.",
)
@click.option("--to", metavar="FOLDER", help="Copy vmlinuz and initrd.gz there, for kernel: and initrd: of a lab.")
@click.option("--refresh", is_flag=True, help="Ask for newer packages, if the image was made before.")
@json_option
def build(suite: str | None, kernel: str | None, to: str | None, refresh: bool, json_to: str | None) -> None:
    """Make the guest image that labs boot: Debian's kernel, and an initramfs of Debian's programs."""
    claim({"--json": json_to})
    from virtfn.api.image import make_image
    from virtfn.cli.render.image import render_image

    with console(stderr=True).status("fetching packages and building the guest image"):
        document = make_image(suite, kernel=kernel, to=None if to is None else Path(to), refresh=refresh)
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

    Where standard input is no terminal, it leaves two seconds after the last that the guest said to what was typed; to
    run a command and have its status, use virtfn exec.

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


@click.command("exec")
@click.argument("guest", metavar="GUEST")
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--lab", metavar="NAME", help="Name of the lab, if several have such a guest.")
@json_option
def exec_in_guest(guest: str, words: tuple[str, ...], lab: str | None, json_to: str | None) -> NoReturn:
    """Run a command in a Linux guest that runs; its output and exit status are this command's.

    One word is a line for the guest's shell; several are a command and its arguments: virtfn exec a -- ip -s link.
    --json writes both, and tells so an exit status of the guest's command from one of virtfn's.
    """
    claim({"--json": json_to})
    from virtfn.api.shell import run_in_guest

    outcome = run_in_guest(guest, words, lab)
    if json_to is not None:
        write_json(json_to, outcome)
    if json_to != STDOUT:
        click.echo(outcome["output"], nl=False)
    raise click.exceptions.Exit(outcome["status"])
