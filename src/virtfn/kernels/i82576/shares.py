"""Shares of what is scarce: the wire, and the descriptors of a receiver that does not keep up.

    scarce[resource]         the last call in which somebody had to wait for it, or was dropped for it
    wanted[resource, pool]   the last call in which the pool asked for it
    claims[resource, pool]   the last time that queues were asked in turn and it was refused, 0 since it got something
    had[resource, pool]      bytes that the pool has got through

A resource is a receiving pool, or the wire. While it is scarce, a pool that is more than a frame ahead of another that
has been refused lets that one go first. So what pools get is equal in bytes, whatever the size of their frames and
whoever is asked first: deficit round robin, with the deficits kept where they arise.

Only who is kept waiting has a claim: not who asks for little and gets it, nor for long who cannot use what there is.
And nobody saves up: a pool is never more than `_BEHIND` behind, and whoever comes anew starts where the others are.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, kernel, part
from virtfn.kernels.i82576.state import POOLS

__all__ = ["has_turn", "is_scarce", "lately"]

_LATELY = 64  # calls
_AHEAD = 1518  # bytes that a pool may be ahead of others with a claim
_BEHIND = 16 << 10  # more than a frame and what a pool may be ahead


@part
def lately(call: int, epoch: int) -> bool:
    """Tell whether a call was one of the last before call `epoch`; 0 is none."""
    return call != 0 and 0 <= epoch - call < _LATELY


@part
def is_scarce(nic: Row, resource: int) -> bool:
    """Tell whether a resource has lately not been enough for all."""
    return lately(nic.scarce[resource], nic.port.epoch)


@kernel
def has_turn(nic: Row, resource: int, pool: int) -> bool:
    """Tell whether `pool` may use a scarce resource now; if not, it has a claim."""
    epoch = nic.port.epoch
    least = -1
    most = 0
    for other in range(POOLS):
        had = nic.had[resource, other]
        if other != pool and lately(nic.wanted[resource, other], epoch):
            most = max(most, had)
        claim = nic.claims[resource, other]
        if other != pool and claim != 0 and nic.turn.claims_since <= claim <= nic.turn.turns:
            least = had if least < 0 or had < least else least
    if most and not lately(nic.wanted[resource, pool], epoch):
        nic.had[resource, pool] = most  # whoever comes anew starts where the others are
    nic.had[resource, pool] = max(nic.had[resource, pool], most - _BEHIND)
    nic.wanted[resource, pool] = epoch
    if least < 0 or nic.had[resource, pool] <= least + _AHEAD:
        return True
    nic.claims[resource, pool] = nic.turn.turns
    return False
