"""`virtfn dashboard`: a lab as a page in a browser."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from virtfn.api.signals import ended_by_signals
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
def dashboard(lab: str | None, port: int, opens: bool) -> None:
    """Show a lab that is up as a page: rates, drops, faults, events, and the policy of each VF.

    Prints the address, and serves it on loopback until Ctrl-C; the part behind # is the lab's token. The page of a lab
    that serves HTTP itself (virtfn up --http) is there anyway: then the address is all.
    """
    require_web("virtfn dashboard")
    from virtfn.api.control import only_lab
    from virtfn.api.service import find_up, read_token, serve_web

    name = only_lab(lab)
    kept = find_up(name)
    if kept is not None and kept.http is not None:
        if port and not kept.http.endswith(f":{port}"):
            raise click.UsageError(f"--port {port}: lab {name} serves HTTP at {kept.http} already; leave it out")
        _say(name, kept.http, read_token(name), opens)
        return
    with suppress(KeyboardInterrupt), ended_by_signals(), serve_web(name, port) as web:
        _say(name, web.where, read_token(name), opens)
        status = web.process.wait()
        raise click.ClickException(f"the process that served the page has ended (status {status})")


def _say(name: str, where: str, token: str, opens: bool) -> None:
    """Print the address, and open it if that is wanted."""
    from virtfn.api.service import write_way

    address = f"{where}/#token={token}"
    click.echo(address)
    sys.stdout.flush()
    if opens:
        import webbrowser

        if not webbrowser.open(write_way(name, address).as_uri()):
            click.echo("virtfn: no browser is found here; open the address", err=True)
