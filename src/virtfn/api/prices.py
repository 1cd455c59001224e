"""Prices of a file, instead of the published ones."""

from __future__ import annotations

from pathlib import Path

from virtfn.api.labfile import LabError, parse_text, quote, read_text
from virtfn.sim.costs import PRICES, Price

__all__ = ["load_prices"]


def load_prices(path: Path) -> dict[str, Price]:
    """Read a file of prices: `NAME: cycles`, or `NAME: {cycles, low, high, source}`; what it leaves out stays.

    Raises LabError for the first thing wrong in it.
    """
    text = read_text(path)
    if not text.strip():
        raise LabError(str(path), 1, (), "is empty; give prices, like exit: 3000")
    tree = parse_text(text, str(path))
    if not isinstance(tree.value, dict):
        tree.fail((), f"holds {quote(tree.value)}; prices are a mapping of names to cycles")
    found = dict(PRICES)
    for name, value in tree.value.items():
        if name not in PRICES:
            tree.fail((name,), f"is no price; there are {', '.join(PRICES)}")
        given = value if isinstance(value, dict) else {"cycles": value}
        numbers = {}
        for key in ("cycles", "low", "high"):
            number = given.get(key, given.get("cycles"))
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1e9:
                tree.fail((name,), f"{key} must be a number from 0 to 1e9, not {quote(number)}")
            numbers[key] = float(number)
        unknown = set(given) - {"cycles", "low", "high", "source"}
        if unknown:
            tree.fail((name,), f"{quote(min(unknown))} is not a key here; keys are cycles, low, high, source")
        if not numbers["low"] <= numbers["cycles"] <= numbers["high"]:
            tree.fail((name,), "low, cycles, high must be in this order")
        found[name] = Price(**numbers, source=str(given.get("source", f"from {path.name}")))
    return found
