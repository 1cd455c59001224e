"""`virtfn top`: rates of a lab that is up, on a terminal live, elsewhere as one table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from virtfn.cli.outputs import STDOUT, claim, console, deliver, json_option

if TYPE_CHECKING:
    from virtfn.api.rates import Rates
    from virtfn.api.session.snapshot import Snapshot

__all__ = ["top"]

_SORTS = ("rate", "sent", "received", "drops", "irqs", "exits")  # SORTS of cli.render.top; rich would come along


@click.command()
@click.argument("lab", metavar="[LAB]", required=False)
@click.option("-d", "--delay", metavar="SECONDS", type=float, default=1.0, show_default=True, help="Between two looks.")
@click.option(
    "-n",
    "--count",
    metavar="COUNT",
    type=click.IntRange(1, 100_000),
    help="End after so many looks; without it, on no terminal, after one.",
)
@click.option("--sort", type=click.Choice(_SORTS), default="rate", show_default=True, help="What comes first.")
@json_option
def top(lab: str | None, delay: float, count: int | None, sort: str, json_to: str | None) -> None:
    """Show what functions and guests of a lab that is up do a second, the busiest first.

    On a terminal it goes on until q; keys say what comes first. Elsewhere, and with --json, it prints a table and ends.
    """
    if not 0.1 <= delay <= 3600:  # refuses not-a-number too, which a range type lets through
        raise click.UsageError(f"--delay {delay}: is not in the range 0.1 to 3600")
    claim({"--json": json_to})
    from virtfn.api.control import only_lab

    name = only_lab(lab)
    screen = console()
    if screen.is_terminal and json_to is None:
        from virtfn.cli.topscreen import Top

        problem = Top(name, delay, count, sort).run()
        if problem:
            raise click.ClickException(problem)
        return
    samples = _sample(name, delay, count or 1, sort if json_to != STDOUT else None)
    if json_to is not None:
        deliver(json_to, {"samples": samples}, lambda: "", stdout_taken=True)


def _sample(lab: str, delay: float, count: int, sort: str | None) -> list[Rates]:
    """Look so many times, and print each table, if it is to be sorted."""
    from virtfn.api.rates import ask_snapshot, compare
    from virtfn.cli.render.top import render_rates

    before: Snapshot = ask_snapshot(lab)
    samples = []
    for _ in range(count):
        time.sleep(delay)
        after = ask_snapshot(lab)
        samples.append(compare(before, after))
        before = after
        if sort is not None:
            console().print(render_rates(samples[-1], sort))
    return samples
