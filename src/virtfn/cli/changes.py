"""`virtfn attach`, `detach`, `apply`, `get`: change a lab that is up, and see what it is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import click

from virtfn.cli.inputs import lab_of, lab_option
from virtfn.cli.outputs import STDOUT, claim, deliver, json_option

if TYPE_CHECKING:
    from virtfn.api.session.changes import ChangeDocument

__all__ = ["apply", "attach", "detach", "get"]

_CHANGE_S = 600.0
_PARTS = ("lab", "pfs", "vfs", "guests", "workload", "iommu", "dom0")


def _change(method: str, params: dict[str, object], lab: str | None, json_to: str | None) -> None:
    """Have a lab changed, and show what changed."""
    from virtfn.api.control import ask
    from virtfn.cli.render.service import render_changes

    document = cast("ChangeDocument", ask(method, params, lab, _CHANGE_S))
    deliver(json_to, document, lambda: render_changes(document))


@click.command()
@click.argument("guest", metavar="GUEST")
@click.argument("vf", metavar="[PF/vfN]", required=False)
@lab_option
@json_option
def attach(guest: str, vf: str | None, lab: str | None, json_to: str | None) -> None:
    """Plug a VF into a guest of a lab that is up; without PF/vfN, the one that it had last."""
    claim({"--json": json_to})
    _change("guest.attach", {"guest": guest, "vf": vf} if vf is not None else {"guest": guest}, lab, json_to)


@click.command()
@click.argument("guest", metavar="GUEST")
@lab_option
@json_option
def detach(guest: str, lab: str | None, json_to: str | None) -> None:
    """Unplug the VF of a guest of a lab that is up; whoever gets it next finds it as new."""
    claim({"--json": json_to})
    _change("guest.detach", {"guest": guest}, lab, json_to)


@click.command()
@click.option("-f", "--file", "lab_file", metavar="LAB.yaml", required=True, help="What it is to be; -: stdin.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--diff", is_flag=True, help="Show the keys that change in the manner of diff.")
@json_option
def apply(lab_file: str, dry_run: bool, diff: bool, json_to: str | None) -> None:
    """Make the lab of that name that is up like a file says: all of it, or nothing.

    What can change: the number of VFs, their policies, and who has which. All else is refused before anything is done.
    """
    claim({"--json": json_to}, lab_file)
    from virtfn.api.control import ask
    from virtfn.api.lab import refuse_unsupported
    from virtfn.api.running import lab_document
    from virtfn.cli.render.service import render_changes, render_diff

    lab = lab_of(lab_file)
    refuse_unsupported(lab)
    params = {"lab": lab_document(lab), "dry_run": dry_run}
    document = cast("ChangeDocument", ask("lab.apply", params, lab.name, _CHANGE_S))
    deliver(json_to, document, lambda: render_diff(document) if diff else render_changes(document))


@click.command()
@click.argument("what", metavar="[lab|pfs|vfs|guests|...]", type=click.Choice(_PARTS), default="lab")
@lab_option
@json_option
def get(what: str, lab: str | None, json_to: str | None) -> None:
    """Show what a lab that is up is now, as a lab file: virtfn get | virtfn apply -f - changes nothing.

    vfs: those of all PFs, each with its policy, and whose it is.
    """
    claim({"--json": json_to})
    from virtfn.api.control import ask

    document = cast("dict[str, Any]", ask("lab.get", {}, lab))
    shown: object = document if what == "lab" else _vfs(document) if what == "vfs" else document.get(what, {})
    if json_to != STDOUT:
        from virtfn.api.running import write_document

        text = io.StringIO()
        write_document(shown, text)
        click.echo(text.getvalue(), nl=False)
    if json_to is not None:
        from virtfn.cli.outputs import write_json

        write_json(json_to, shown)


def _vfs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """List the VFs of a lab: which, whose, and under which policy."""
    owners = {
        (guest["nic"]["pf"], guest["nic"].get("vf")): guest["name"]
        for guest in document["guests"]
        if guest["nic"].get("attached", True)
    }
    hosts = {guest["nic"]["pf"]: guest["name"] for guest in document["guests"] if guest["nic"].get("io") == "host"}
    vfs = []
    for pf in document["pfs"]:
        sr_iov = pf.get("sr-iov", {"total-vfs": 0})
        policies = {policy["id"]: policy for policy in sr_iov.get("vfs", ())}
        for n in range(sr_iov["total-vfs"]):
            policy = {key: value for key, value in policies.get(n, {}).items() if key != "id"}
            vfs.append(
                {
                    "vf": f"{pf['name']}/vf{n}",
                    "guest": owners.get((pf["name"], n), hosts.get(pf["name"])),
                    "policy": policy,
                }
            )
    return vfs
