"""`virtfn dashboard`: a lab as a page in a browser."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from virtfn.api.signals import ended_by_signals
from virtfn.cli.outputs import STDOUT, claim, json_option, write_json
from virtfn.cli.service import require_web

__all__ = ["dashboard"]


@click.command()
@click.argument("lab", metavar="[LAB]", required=False)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port of loopback; without it, any that is free.",
)
@click.option("--open", "opens", is_flag=True, help="Open a browser, too.")
@json_option
def dashboard(lab: str | None, port: int, opens: bool, json_to: str | None) -> None:
    """Show a lab that is up as a page: rates, drops, faults, events, and the policy of each VF.

    Prints the address, and serves it on loopback until Ctrl-C; the part behind # is the lab's token. The page of a lab
    that serves HTTP itself (virtfn up --http) is there anyway: then the address is all. --json says where the page is,
    once it is, without the token.
    """
    claim({"--json": json_to})
    require_web("virtfn dashboard")
    from virtfn.api.control import only_lab
    from virtfn.api.service import find_up, read_token, serve_web

    name = only_lab(lab)
    kept = find_up(name)
    if kept is not None and kept.http is not None:
        if port and not kept.http.endswith(f":{port}"):
            raise click.UsageError(f"--port {port}: lab {name} serves HTTP at {kept.http} already; leave it out")
        _say(name, kept.http, read_token(name), opens, json_to)
        return
    with suppress(KeyboardInterrupt), ended_by_signals(), serve_web(name, port) as web:
        _say(name, web.where, read_token(name), opens, json_to)
        status = web.process.wait()
        raise click.ClickException(f"the process that served the page has ended (status {status})")


def _say(name: str, where: str, token: str, opens: bool, json_to: str | None) -> None:
    """Say the address, and open it if that is wanted."""
    from virtfn.api.service import write_way

    address = f"{where}/#token={token}"
    if json_to is not None:
        write_json(json_to, {"lab": name, "http": where})
    if json_to != STDOUT:
        click.echo(address)
    sys.stdout.flush()
    if opens:
        import webbrowser

        if not webbrowser.open(write_way(name, address).as_uri()):
            click.echo("virtfn: no browser is found here; open the address", err=True)
