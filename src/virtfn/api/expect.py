"""What a lab expects to arrive: the values of its keys `expect`, and whether what was sent did.

all                 everything
all-but-overruns    everything but what a receiver dropped that had no room left; something must arrive
none                nothing
90%, 0.9            that share, or more; 0 asks for nothing
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, WithJsonSchema

from virtfn.api.labfile import quote

if TYPE_CHECKING:
    from virtfn.api.report import FlowReport

__all__ = ["DEFAULT", "BySender", "Expectation", "describe_flow", "is_met"]

DEFAULT = "all-but-overruns"
OVERRUNS = ("no-descriptor", "no-buffer", "host-no-descriptor", "host-no-buffer")
_WORDS = ("all", DEFAULT, "none")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%")


def _read(value: object) -> str | float:
    """Read a value of `expect`. Raises ValueError for what is none."""
    if isinstance(value, str) and value in _WORDS:
        return value
    share = -1.0
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value)):
        share = float(percent[1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"must be {', '.join(_WORDS)}, or a share such as 90% or 0.9, not {quote(value)}")
    return share


def _read_by_sender(value: object) -> object:
    if not isinstance(value, dict):
        return _read(value)
    try:
        return {sender: _read(expected) for sender, expected in value.items()}
    except ValueError as error:
        raise ValueError(f"of a sender {error}") from None


_SCHEMA = {
    "anyOf": [
        {"enum": list(_WORDS)},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": f"^{_PERCENT.pattern}$"},
    ]
}
_MAPPING = {"type": "object", "additionalProperties": _SCHEMA}

Expectation = Annotated[str | float, BeforeValidator(_read), WithJsonSchema(_SCHEMA)]
BySender = Annotated[
    str | float | dict[str, str | float],
    BeforeValidator(_read_by_sender),
    WithJsonSchema({"anyOf": [*_SCHEMA["anyOf"], _MAPPING]}),
]


def is_met(flow: FlowReport) -> bool:
    """Tell whether as much of a flow arrived as was expected."""
    expected, sent, heard = flow["expected"], flow["sent"], flow["heard"]
    match expected:
        case "none":
            return not heard
        case "all":
            return heard == sent
        case str():
            return heard == sent or (heard > 0 and sent - heard <= sum(flow["reasons"].get(r, 0) for r in OVERRUNS))
    return heard >= expected * sent


def describe_flow(flow: FlowReport) -> str:
    """Say what became of a flow, what was expected of it if a lab says so, and why the rest did not arrive."""
    verb = "heard" if flow["unit"] == "frames" else "answered"
    words = f"{flow['receiver']} {verb} {flow['heard']:,} of {flow['sent']:,} {flow['unit']} of {flow['sender']}"
    expected = flow["expected"]
    if expected != DEFAULT:
        words += f", expected {expected if isinstance(expected, str) else format(expected, '.9g')}"
    if flow["heard"] == flow["sent"]:
        return words
    reasons = sorted(flow["reasons"], key=lambda reason: -flow["reasons"][reason])
    note = f" ({flow['note']})" if "note" in flow else ""
    return f"{words}: {', '.join(reasons) or 'no counter says why'}{note}"
