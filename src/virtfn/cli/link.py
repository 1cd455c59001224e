"""`virtfn link`: the PFs of a lab that runs, and the policy of their VFs, in the words of `ip link`."""

from __future__ import annotations

import json
import sys

import click

from virtfn.cli.inputs import lab_option
from virtfn.cli.linkwords import read_settings, read_shown
from virtfn.cli.outputs import STDOUT, claim, json_option, write_json

__all__ = ["link"]


@click.group()
def link() -> None:
    """Show and set VFs of a lab that runs (virtfn run --keep), in the words of ip link."""


@link.command()
@click.argument("words", metavar="[dev] [PF]", nargs=-1)
@click.option("-d", "--details", is_flag=True, help="Say more of each PF.")
@click.option("-s", "--statistics", is_flag=True, help="Show what was counted.")
@click.option("-j", "as_json", is_flag=True, help="Print JSON, as ip does.")
@click.option("-p", "pretty", is_flag=True, help="Indent it.")
@lab_option
@json_option
def show(
    words: tuple[str, ...],
    details: bool,
    statistics: bool,
    as_json: bool,
    pretty: bool,
    lab: str | None,
    json_to: str | None,
) -> None:
    """Show PFs, and the policy of their VFs. --json has everything, as -j -d -s."""
    pf = read_shown(words)
    claim({"--json": json_to})
    from virtfn.api.link import ask_show
    from virtfn.cli.render.link import chosen, render_links

    links = ask_show(lab, pf)
    if json_to is not None:
        write_json(json_to, links)
    if json_to == STDOUT:
        return
    if as_json:
        brief = [chosen(each, details=details, statistics=statistics) for each in links]
        text = json.dumps(brief, indent=4) if pretty else json.dumps(brief, separators=(",", ":"))
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.write(render_links(links, details=details, statistics=statistics))


# Numbers may be negative here, and are then refused by name.
@link.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="[dev] PF vf N CLAUSE...", nargs=-1, type=click.UNPROCESSED)
@lab_option
@json_option
def set_(words: tuple[str, ...], lab: str | None, json_to: str | None) -> None:
    """Change the policy of VFs: all that one call says, or none of it.

    Clauses, as many as you like, and more VFs after another `vf N`:

    \b
      mac ADDRESS            vlan N [qos N] [proto 802.1Q|802.1ad]
      rate N                 max_tx_rate N           min_tx_rate N
      spoofchk on|off        trust on|off            query_rss on|off
      state auto|enable|disable
    """  # noqa: D301  # click wants the character
    pf, settings = read_settings(words)
    claim({"--json": json_to})
    from virtfn.api.link import ask_set

    links = ask_set(lab, pf, settings)
    if json_to is not None:
        write_json(json_to, links)
