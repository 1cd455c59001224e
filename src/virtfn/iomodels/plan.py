"""Who sends to whom, for each kind of work that makes its own frames."""

from __future__ import annotations

from virtfn.machine.ports import VirtfnError

__all__ = ["plan"]


def plan(kind: str, n: int) -> list[list[int | None]]:
    """List for each of `n` guests whom it sends to: a guest's number, or None for everyone.

    Raises VirtfnError (EINVAL) for a kind that there is not.
    """
    match kind:
        case "pairs":
            return [[g ^ 1 if g ^ 1 < n else 0] for g in range(n)]
        case "ping":
            return [[g + 1] if g % 2 == 0 and g + 1 < n else [] for g in range(n)]
        case "fan-in":
            return [[] if g == 0 else [0] for g in range(n)]
        case "broadcast":
            return [[None] if g == 0 else [] for g in range(n)]
        case "attack":
            peers = [(g - 1 ^ 1) + 1 for g in range(1, n)]
            return [[]] + [[peer if peer < n else 1] for peer in peers]
    raise VirtfnError(f"there is no workload of kind {kind}", errno_name="EINVAL")
