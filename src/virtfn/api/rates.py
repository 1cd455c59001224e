"""Rates of a lab that is up: two looks at its counters, and what happened a second in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, cast

from virtfn.api.control import ask
from virtfn.api.session.snapshot import GuestCounts, Snapshot, VfCounts

__all__ = ["RateRow", "Rates", "RatesDocument", "ask_snapshot", "compare"]

_COUNTED = ("tx_frames", "rx_frames", "tx_bytes", "rx_bytes", "drops", "interrupts", "exits")


class RateRow(TypedDict):
    """One function with its guest, or a guest without a VF. All but drops_total: a second, between two looks.

    function: like pf0 vf1, or the guest's I/O model; guest: null for a VF that nobody has. Bits are of frames without
    frame check sequence, both ways; drops_total: since the start.
    """

    function: str
    address: str
    guest: str | None
    tx_frames: float
    rx_frames: float
    bits: float
    drops: float
    drops_total: int
    interrupts: float
    exits: float


class Rates(TypedDict):
    """What happened between two looks. elapsed_s: of the lab, at the second; interval_s: between them."""

    lab: str
    state: str
    elapsed_s: float
    interval_s: float
    rows: list[RateRow]


class RatesDocument(TypedDict):
    """The document of `virtfn top --json`: the oldest sample first."""

    samples: list[Rates]


def ask_snapshot(lab: str | None) -> Snapshot:
    """Ask a lab that is up what it has counted. Raises VirtfnError if it cannot be asked."""
    return cast(Snapshot, ask("session.snapshot", {}, lab))


def compare(before: Snapshot, after: Snapshot) -> Rates:
    """Say what happened a second between two looks; nothing did if the lab is another one by now."""
    passed = after["elapsed_s"] - before["elapsed_s"]
    first, last = _things(before), _things(after)
    return {
        "lab": after["lab"],
        "state": after["state"],
        "elapsed_s": after["elapsed_s"],
        "interval_s": round(max(passed, 0.0), 3),
        "rows": [_row(key, thing, first.get(key, thing), passed) for key, thing in last.items()],
    }


_Thing = tuple[str, str | None, Mapping[str, int]]


def _things(snapshot: Snapshot) -> dict[str, _Thing]:
    """List functions, each with its guest, and guests without: address, guest, counters; by name."""
    guests = {guest["name"]: guest for guest in snapshot["guests"]}
    things: dict[str, _Thing] = {}
    for pf in snapshot["pfs"]:
        for vf in pf["vfs"]:
            guest = guests.pop(vf["guest"], None) if vf["guest"] is not None else None
            things[f"{pf['name']} vf{vf['vf']}"] = vf["address"], vf["guest"], _counters(guest or vf)
    for name, guest in guests.items():
        things[f"{guest['io']} {name}"] = guest["address"], name, _counters(guest)
    return things


def _counters(thing: GuestCounts | VfCounts) -> dict[str, int]:
    counts = cast("Mapping[str, int]", thing)
    return {name: counts.get(name, 0) for name in _COUNTED} | {"drops": sum(thing["dropped"].values())}


def _row(key: str, thing: _Thing, before: _Thing, passed: float) -> RateRow:
    address, guest, counters = thing
    earlier = before[2] if before[1] == guest else counters  # the VF has changed hands

    def rate(name: str) -> float:
        return round(max(counters[name] - earlier[name], 0) / passed, 1) if passed > 0 else 0.0

    return {
        "function": key if guest is None or not key.endswith(f" {guest}") else key.removesuffix(f" {guest}"),
        "address": address,
        "guest": guest,
        "tx_frames": rate("tx_frames"),
        "rx_frames": rate("rx_frames"),
        "bits": 8 * (rate("tx_bytes") + rate("rx_bytes")),
        "drops": rate("drops"),
        "drops_total": counters["drops"],
        "interrupts": rate("interrupts"),
        "exits": rate("exits"),
    }
