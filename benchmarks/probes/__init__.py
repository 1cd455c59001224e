"""What is asked of a card: a probe does something to it, and tells in a line what it saw.

boards     two machines with a card: QEMU's, this one
bench      the card set up, with rings, by registers and memory alone
registers  probes of registers and configuration space
frames     probes by frames
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from probes.bench import DROP, Bench
from virtfn.hw.i82576.rxtx import SRRCTL

__all__ = ["Probe", "listed", "probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to a card.

    asked: what is done; wanted: what the datasheet has the card answer; layout: SRRCTL of all queues.
    """

    gap: int
    asked: str
    wanted: str
    layout: SRRCTL
    run: Callable[[Bench], str]


def probe(gap: int, asked: str, wanted: str, layout: SRRCTL = DROP) -> Callable[[Callable[[Bench], str]], Probe]:
    """Make a probe of a function that returns what it saw, in the words of `wanted`."""
    return lambda run: Probe(gap, asked, wanted, layout, run)


def listed(things: Iterable[object]) -> str:
    """Join things, or say that there are none."""
    return " ".join(map(str, things)) or "none"
