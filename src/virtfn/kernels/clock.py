"""Time for kernels that work for longer than an instant. Spec: POSIX, clock_gettime, the monotonic clock."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import kernel, row_at, row_of
from virtfn.kernels.posix import monotonic_ps
from virtfn.kernels.ranges import address_of, row_address

__all__ = ["CLOCK", "clock_at", "read_clock", "set_up_clock"]

# limit: how long a call may take, in ps; now: what was read last; then room for a system call
CLOCK = row_of("limit now seconds nanoseconds")
clock_at = row_at(CLOCK)
_ROOM = 16


def set_up_clock(rows: npt.NDArray[np.void]) -> int:
    """Return the address of a CLOCK row, (1,), for kernels."""
    address_of(rows, "room for the time")
    return row_address(rows, "a clock")


@kernel
def read_clock(address: int) -> int:
    """Return the time now, in ps. address: of a CLOCK row, which no other thread uses."""
    clock = clock_at(address)
    clock.now = monotonic_ps(address + _ROOM)
    return clock.now
