"""`virtfn serve`, `virtfn qemu-args`: a lab whose QEMUs somebody else starts, and how."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, TypeVar

import click

from virtfn.cli.inputs import lab_of
from virtfn.cli.outputs import STDOUT, claim, console, deliver, json_option, path_of, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtfn.api.served import ServiceDocument

__all__ = ["qemu_args", "serve"]

_Command = TypeVar("_Command", bound="Callable[..., None]")


def sockets_option(command: _Command) -> _Command:
    """Give a command its --sockets DIR."""
    words = "Folder of the sockets; without it, one of the lab's name. Made if it is missing."
    return click.option("--sockets", metavar="DIR", help=words)(command)


@click.command()
@click.argument("lab_file", metavar="LAB.yaml")
@sockets_option
@click.option("--capture", metavar="FILE.pcapng", help="Record what each function sends and receives.")
@click.option("--trace", metavar="FILE", help="Write register accesses, mailbox messages, interrupts and faults.")
@json_option
def serve(lab_file: str, sockets: str | None, capture: str | None, trace: str | None, json_to: str | None) -> None:
    """Serve the sockets of a lab's guests for QEMUs that somebody else starts, until Ctrl-C.

    vfio-user for functions, vhost-user for io split; virtfn qemu-args says how QEMU finds them. QEMUs may come, go and
    come again in any order. Once the sockets stand, --json is written, and standard output says "ready: NAME is
    served".
    """
    outputs = {"--json": json_to, "--capture": capture, "--trace": trace}
    claim(outputs, lab_file)
    stdout_taken = STDOUT in outputs.values()
    lab = lab_of(lab_file)
    from virtfn.api.served import serve_lab
    from virtfn.cli.progress import Watcher
    from virtfn.cli.render.serve import render_service

    def tell(document: ServiceDocument) -> None:
        watcher.rest()
        deliver(json_to, document, lambda: render_service(document), stdout_taken=stdout_taken)
        if not stdout_taken:
            click.echo(f"ready: {lab.name} is served")
        sys.stdout.flush()

    with Watcher(console(stderr=True), quiet=stdout_taken) as watcher:
        serve_lab(
            lab,
            sockets=path_of(sockets),
            capture=path_of(capture),
            trace=path_of(trace),
            progress=watcher,
            ready=tell,
        )


@click.command("qemu-args")
@click.argument("lab_file", metavar="LAB.yaml")
@click.argument("guest")
@sockets_option
@click.option("--libvirt", is_flag=True, help="Print a libvirt domain instead, for virsh define.")
@json_option
def qemu_args(lab_file: str, guest: str, sockets: str | None, libvirt: bool, json_to: str | None) -> None:
    """Print the command line that starts the QEMU of a guest, for who starts it beside virtfn serve.

    It is one line for a shell; --json writes its words as a list. The console is the terminal; Ctrl-A X ends QEMU.
    """
    if libvirt and json_to is not None:
        raise click.UsageError("--libvirt prints XML, and --json a list of words; give one")
    claim({"--json": json_to}, lab_file)
    lab = lab_of(lab_file)
    from virtfn.api.qemuargs import libvirt_domain, qemu_command

    if libvirt:
        click.echo(libvirt_domain(lab, guest, path_of(sockets)), nl=False)
        return
    words = qemu_command(lab, guest, path_of(sockets))
    if json_to is not None:
        write_json(json_to, words)
    if json_to != STDOUT:
        click.echo(shlex.join(words))
