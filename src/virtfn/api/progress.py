"""What a run says while it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["OnProgress", "Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run. phase: what goes on, in words. guests: (name, tx_frames, rx_frames, dropped) of each guest.

    steps, total_steps: how much of the phase is done, where that is known and it is not about frames.
    """

    phase: str
    elapsed_s: float = 0.0
    frames: int = 0
    total_frames: int = 0
    mpps: float = 0.0
    gbps: float = 0.0
    guests: tuple[tuple[str, int, int, int], ...] = ()
    steps: int = 0
    total_steps: int = 0


OnProgress = Callable[[Progress], None]
