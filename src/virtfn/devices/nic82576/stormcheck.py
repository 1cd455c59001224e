"""Explain storm control: whether a frame to many is one too many of its window, and what a card's state says of that.

Spec: 82576 datasheet, SCCRL, BSCTRH, MSCTRH.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtfn.devices.nic82576.sight import Sight, StormState
from virtfn.hw.eth import BROADCAST, FCS_BYTES
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import SCCRL, STORM_CHUNK, STORM_THRESHOLD
from virtfn.hw.types import Ps

__all__ = ["Verdict", "check_storm", "storm_state"]

_BROADCASTS, _MULTICASTS = 1, 2  # as bits of what there was too much of


class Verdict(NamedTuple):
    """What storm control makes of a frame, and the registers by which it does."""

    too_many: bool
    register: str
    words: str


def check_storm(sight: Sight, mac: int, unresolved: bool, length: int) -> Verdict | None:
    """Judge a frame to `mac`, of `length` bytes; None: there is no limit for its kind.

    unresolved: pools get it that do not have its address, and not only as mirrors.
    """
    sccrl = SCCRL(sight.peek(Regs.SCCRL, 0))
    group = bool(mac & 1) and mac != BROADCAST
    now, later = (sccrl.MDICW, sccrl.MDIPW) if group else (sccrl.BDICW, sccrl.BDIPW)
    if not (mac & 1 or (sccrl.BIDU and unresolved)) or not sccrl.INTERVAL or not (now or later):
        return None
    kind = "multicasts" if group else "broadcasts"
    threshold = Regs.MSCTRH if group else Regs.BSCTRH
    most = STORM_THRESHOLD(sight.peek(threshold, 0)).UTRESH * STORM_CHUNK
    had, before = sight.storm[group] + length + FCS_BYTES, sight.storm_before[group]
    too_many = bool(now and had > most) or bool(later and before)
    words = f"with it, {had} bytes of {kind} in this window, of {most}"
    if later:
        words += "; too many in the one before" if before else "; not too many in the one before"
    return Verdict(too_many, f"SCCRL, {threshold.name}", words)


def storm_state(port: np.void, now: Ps) -> StormState:
    """Read what storm control has seen in the window of `now`. port: the row of the data plane."""
    missed = (now - int(port["storm_end"])) // max(int(port["storm_ps"]), 1)
    over = int(port["storm_before" if missed < 0 else "storm_over"]) if missed <= 0 else 0
    return {
        "broadcasts": int(port["storm_broadcasts"]) if missed < 0 else 0,
        "multicasts": int(port["storm_multicasts"]) if missed < 0 else 0,
        "broadcasts_before": bool(over & _BROADCASTS),
        "multicasts_before": bool(over & _MULTICASTS),
    }
