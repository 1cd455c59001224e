"""The keys of a lab file about watching VFs, and the rules that they make.

Watch      spoof, dma-faults, mailbox, interrupts, descriptors, resets; window-ms, throttle-mbps
 `- each   WatchLimit: per-second, action

What a VF's own `watch` leaves out is its PF's; what that leaves out is the default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from virtfn.api.labsection import Section
from virtfn.iovm.rules import Action, Kind, Limit, Rules
from virtfn.machine.clock import MS_PS

__all__ = ["Watch", "WatchLimit", "watch_rules"]

_DEFAULTS = {
    Kind.SPOOF: Limit(100, Action.WARN),
    Kind.DMA_FAULTS: Limit(100, Action.WARN),
    Kind.MAILBOX: Limit(1000, Action.WARN),
    Kind.INTERRUPTS: Limit(100_000, Action.WARN),
    Kind.DESCRIPTORS: Limit(10, Action.WARN),
    Kind.RESETS: Limit(10, Action.WARN),
}
_WINDOW_MS, _THROTTLE_MBPS = 1000, 10


def _default(kind: Kind) -> str:
    return f"{_DEFAULTS[kind].per_second} a second, {_DEFAULTS[kind].action.value}, unless given"


class WatchLimit(Section):
    """How many of a kind are allowed, and what is done about a VF that has more. Both keys are optional."""

    per_second: int | None = Field(
        default=None, ge=0, le=1_000_000_000, description="allowed in a second, on average over the window"
    )
    action: Literal["none", "warn", "throttle", "quarantine"] | None = Field(
        default=None,
        description="none; warn: an event; throttle: max-tx-rate, interrupts and mailbox are held back; quarantine: "
        "nothing in or out, and no link. The last two last until virtfn release PF/vfN",
    )


class Watch(Section):
    """What VFs are watched for. All keys are optional; those of a VF count before those of its PF."""

    window_ms: int | None = Field(
        default=None, ge=100, le=60_000, description=f"time over which is counted; {_WINDOW_MS} unless given"
    )
    throttle_mbps: int | None = Field(
        default=None, ge=1, le=1000, description=f"what a throttled VF may send; {_THROTTLE_MBPS} unless given"
    )
    spoof: WatchLimit | None = Field(
        default=None,
        description="frames whose source address or VLAN is not the VF's own, dropped by spoof-check. "
        + _default(Kind.SPOOF),
    )
    dma_faults: WatchLimit | None = Field(
        default=None, description="requests of the VF that the IOMMU refused. " + _default(Kind.DMA_FAULTS)
    )
    mailbox: WatchLimit | None = Field(
        default=None, description="messages to and from the PF's driver. " + _default(Kind.MAILBOX)
    )
    interrupts: WatchLimit | None = Field(
        default=None, description="interrupts of the VM that has the VF. " + _default(Kind.INTERRUPTS)
    )
    descriptors: WatchLimit | None = Field(
        default=None,
        description="transmit descriptors that make no sense; each stops its queue until the VF is reset. "
        + _default(Kind.DESCRIPTORS),
    )
    resets: WatchLimit | None = Field(
        default=None, description="resets of the VF, by its driver or as a function. " + _default(Kind.RESETS)
    )


def watch_rules(*stated: Watch | None) -> Rules:
    """Make the rules of a VF. stated: what the lab says of it and of its PF, the former first."""
    said = [watch for watch in stated if watch is not None]
    limits = {}
    for kind, default in _DEFAULTS.items():
        given = [limit for watch in said if (limit := getattr(watch, kind.value.replace("-", "_"))) is not None]
        allowed = next((limit.per_second for limit in given if limit.per_second is not None), default.per_second)
        action = next((Action(limit.action) for limit in given if limit.action is not None), default.action)
        limits[kind] = Limit(allowed, action)
    window = next((watch.window_ms for watch in said if watch.window_ms is not None), _WINDOW_MS)
    mbps = next((watch.throttle_mbps for watch in said if watch.throttle_mbps is not None), _THROTTLE_MBPS)
    return Rules(limits, window * MS_PS, mbps)
