"""Time of this process that others may take: what a function asks for costs its own time, not its neighbours'.

    left --- taken ---> ... ---> debt: waits while somebody else wants the processor ---> paid back as time goes by
     ^                            | nobody else wants it: served at once, the debt forgotten
     +---- a burst at most -------+

All together get a quarter of the time back, shared by those who are short of it. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtfn.machine.clock import MS_PS, S_PS, US_PS

__all__ = ["BURST_PS", "SLICE_PS", "WHOLE_PS", "Allowance", "refill"]

BURST_PS = 30 * MS_PS  # a guest that boots asks for a few of these, with pauses
SLICE_PS = MS_PS // 4  # at a time: what a neighbour's frame waits longer
WHOLE_PS = MS_PS  # at a time, while there is no neighbour
_SHARE = 4
_LOOK_PS = 4 * US_PS  # to find out that there is nothing to do is free


@dataclass(slots=True)
class Allowance:
    """What one of them has. left_ps: time that it may take.

    last_ps: when it had something to do last; long_ps: when a step of it could not be cut short.
    """

    left_ps: int = BURST_PS
    last_ps: int = -BURST_PS
    long_ps: int = -S_PS

    @property
    def in_debt(self) -> bool:
        """Whether others come first."""
        return self.left_ps <= 0

    def take(self, spent_ps: int) -> None:
        """Account for time that was spent."""
        if spent_ps > _LOOK_PS:
            self.left_ps = max(self.left_ps - spent_ps, -BURST_PS)  # no debt is for ever


def refill(allowances: Sequence[Allowance], elapsed_ps: int) -> None:
    """Give back what `elapsed_ps` is worth."""
    short = [allowance for allowance in allowances if allowance.left_ps < BURST_PS]
    for allowance in short:
        allowance.left_ps = min(BURST_PS, allowance.left_ps + elapsed_ps // (_SHARE * len(short)))
