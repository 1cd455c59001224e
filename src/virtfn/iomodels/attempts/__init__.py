"""What a hostile guest tries, in the order in which it tries it."""

from __future__ import annotations

from virtfn.iomodels.attack import Attempt
from virtfn.iomodels.attempts import function, interrupts, memory, moving, policy, sharing

__all__ = ["ATTEMPTS"]

ATTEMPTS: tuple[Attempt, ...] = (
    *memory.ATTEMPTS,
    *moving.ATTEMPTS,
    *interrupts.ATTEMPTS,
    *function.ATTEMPTS,
    *policy.ATTEMPTS,
    *sharing.ATTEMPTS,
)
