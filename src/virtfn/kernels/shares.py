"""Shares of what is scarce: the wire, and the descriptors of a receiver that does not keep up.

    scarce[resource]         the last call in which somebody had to wait for it, or was dropped for it
    wanted[resource, pool]   the last call in which the pool wanted it
    had[resource, pool]      bytes that the pool has got through

A resource is a receiving pool, or the wire. While it is scarce, a pool that has had more than a frame more than another
that wants it, too, lets that one go first. So what pools get is equal in bytes, whatever the size of their frames and
whoever is asked first: deficit round robin, with the deficits kept where they arise.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, kernel, part
from virtfn.kernels.state import POOLS

__all__ = ["has_turn", "is_scarce", "lately"]

LATELY = 64  # calls
_AHEAD = 1518  # bytes that a pool may be ahead of the others


@part
def lately(call: int, epoch: int) -> bool:
    """Tell whether a call was one of the last before call `epoch`; 0 is none."""
    return call != 0 and 0 <= epoch - call < LATELY


@part
def is_scarce(nic: Row, resource: int) -> bool:
    """Tell whether a resource has lately not been enough for all."""
    return lately(nic.scarce[resource], nic.port.epoch)


@kernel
def has_turn(nic: Row, resource: int, pool: int) -> bool:
    """Tell whether `pool` may use a scarce resource now, and note that it wants to."""
    epoch = nic.port.epoch
    least = -1
    for other in range(POOLS):
        if other != pool and lately(nic.wanted[resource, other], epoch):
            had = nic.had[resource, other]
            least = had if least < 0 or had < least else least
    if least >= 0 and not lately(nic.wanted[resource, pool], epoch):
        # Whoever comes back has no claim to what it did not want.
        nic.had[resource, pool] = max(nic.had[resource, pool], least)
    nic.wanted[resource, pool] = epoch
    return least < 0 or nic.had[resource, pool] <= least + _AHEAD
