"""Prices: how many cycles of a processor an event of I/O virtualization takes, each with its range and its source.

They are those of a server of about 2009 (Nehalem, 2.8 GHz), when the models were compared first: a hardware exit is
cheaper today, what it drags along is not. The ranges are part of the answer. An override names its own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CAUSES", "CLOCK_HZ", "PRICES", "Cause", "Price", "price"]

CLOCK_HZ = 2_800_000_000
"""Of the processor that the prices are of, to make rates of cycles."""


@dataclass(frozen=True, slots=True)
class Price:
    """Cycles for one event, or byte. low, high: what published figures span. source: where they are from."""

    cycles: float
    low: float
    high: float
    source: str


_DALL = "Dall et al., ISCA 2016, Table II, and ATC 2017, Table 2 (Xeon E5-2450)"

PRICES: dict[str, Price] = {
    "exit": Price(
        3_000, 2_000, 5_000, "register access emulated in the VMM; Agesen et al., ATC 2012 (transition); " + _DALL
    ),
    "notification": Price(1_500, 560, 11_262, "event channel, the other side at work; " + _DALL),
    "switch": Price(4_812, 4_812, 10_534, "from one guest to another; " + _DALL),
    "copy": Price(1_500, 500, 3_000, "grant copy of a packet, the fixed part; a planning figure"),
    "copied byte": Price(0.5, 0.25, 1.2, "copy between guests' memories, warm and cold; a planning figure"),
    "interrupt": Price(
        4_000, 2_500, 9_000, "taken by the VMM and injected; from Gordon et al., ASPLOS 2012 (exits per interrupt)"
    ),
    "end of interrupt": Price(2_500, 1_464, 8_400, "completion without virtual APIC; Dong et al.; " + _DALL),
    "posted interrupt": Price(0, 0, 560, "delivered by hardware without an exit; a planning figure"),
    "page walk": Price(784, 740, 812, "0.28 us of the remapping unit; Neugebauer et al., SIGCOMM 2018 (raw data)"),
}


@dataclass(frozen=True, slots=True)
class Cause:
    """What cycles are spent on. events: of the meter, times the price of that name."""

    price: str
    events: tuple[str, ...]


CAUSES: dict[str, Cause] = {
    "exits": Cause("exit", ("exit_config", "exit_bar", "exit_msix")),
    "notifications": Cause("notification", ("notify_host", "notify_guest")),
    "guest switches": Cause("switch", ("guest_switches",)),
    "copies": Cause("copy", ("copies",)),
    "copied bytes": Cause("copied byte", ("copy_bytes",)),
    "interrupts": Cause("interrupt", ("injected",)),
    "ends of interrupts": Cause("end of interrupt", ("injected",)),
    "posted interrupts": Cause("posted interrupt", ("posted",)),
    "page walks": Cause("page walk", ("iommu_walks",)),
}


def price(counts: Mapping[str, float], prices: Mapping[str, Price] = PRICES) -> dict[str, tuple[float, float, float]]:
    """Price counts of events; return cycles by cause: as priced, at the lowest and at the highest prices.

    counts: of the meter's events, but of interrupts: those that the VMM injected, and those that were posted.
    """
    costs = {}
    for name, cause in CAUSES.items():
        number, each = sum(counts.get(event, 0) for event in cause.events), prices[cause.price]
        costs[name] = number * each.cycles, number * each.low, number * each.high
    return costs
