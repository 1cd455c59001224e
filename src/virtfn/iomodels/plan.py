"""Who sends to whom, for each kind of work that makes its own frames, and who sends which frame of a capture."""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.machine.ports import VirtfnError

__all__ = ["deal", "plan"]


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
        case "outside":  # the last one is at the other end of the wire
            return [*([n - 1] for _ in range(n - 1)), [*range(n - 1)]]
        case "attack":
            peers = [(g - 1 ^ 1) + 1 for g in range(1, n)]
            return [[]] + [[peer if peer < n else 1] for peer in peers]
    raise VirtfnError(f"there is no workload of kind {kind}", errno_name="EINVAL")


def deal(sources: Sequence[bytes], macs: Sequence[int]) -> tuple[list[int], dict[bytes, int]]:
    """Deal frames to guests by their source addresses; return each frame's guest, and each address's.

    sources: 6 bytes of each frame, less if it is too short; macs: of the guests. A guest has its own address. The
    others go to the guests in the order in which they appear: first to guests without frames, then in turn. Frames that
    have no address there (zero, a group, too short) are dealt one by one.
    """
    own = {mac.to_bytes(6, "little"): g for g, mac in enumerate(macs)}
    addresses = [source for source in dict.fromkeys(sources) if len(source) == 6 and any(source) and not source[0] & 1]
    owners = {address: own[address] for address in addresses if address in own}
    idle = [g for g in range(len(macs)) if g not in owners.values()]
    others = [address for address in addresses if address not in owners]
    for n, address in enumerate(others):
        owners[address] = idle[n] if n < len(idle) else (n - len(idle)) % len(macs)
    dealt, single = [], 0
    for source in sources:
        if source in owners:
            dealt.append(owners[source])
        else:
            dealt.append(single % len(macs))
            single += 1
    return dealt, owners
