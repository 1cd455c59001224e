"""Units to look at: tables written by hand, and pages that are in no machine at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unit.remapping import ByHand
from virtfn.hw.vtd.regs import CAP, ECAP
from virtfn.iovm.iommu.caches import count_cached
from virtfn.iovm.iommu.state import HostPages, SavedPages, UnitState

CAPS = CAP.of(SAGAW=0b0110, SSLPS=3, MGAW=47)


def live(hand: ByHand, **changes: object) -> UnitState:
    """Look at a unit whose tables were written by hand."""
    fields = {
        "memory": HostPages(hand.memory),
        "root": int(hand.root),
        "enabled": bool(hand.unit["enabled"]),
        "cap": CAPS,
        "ecap": ECAP.of(PT=1),
        "cached": count_cached(hand.iommu),
        "caches": (hand.iommu,),
    }
    return UnitState(**{**fields, **changes})  # type: ignore[arg-type]


def pages(words: Mapping[int, int]) -> SavedPages:
    """Make pages of 64-bit words by address; what is between them is zero."""
    made: dict[int, np.ndarray] = {}
    for address, word in words.items():
        made.setdefault(address & -4096, np.zeros(512, np.uint64))[address % 4096 >> 3] = word
    return SavedPages(made)


def saved(words: Mapping[int, int], **changes: object) -> UnitState:
    """Make a unit of words by address; the root table is at 0x1000."""
    fields = {"memory": pages(words), "root": 0x1000, "enabled": True, "cap": CAPS, "ecap": ECAP.of(PT=1)}
    return UnitState(**{**fields, **changes})  # type: ignore[arg-type]
