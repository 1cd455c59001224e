"""The bridge's loop: frames are moved, kicks waited for, until something needs Python or time is up.

    serve -> nothing left? wait for kicks and whatever else is asked about -> serve ...

While many frames come it lets them come together for a moment: front ends need the processor to make them. It is to
back ends what `kernels/pump.py` is to functions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import kernel
from virtfn.kernels.card import EV_MORE, call_serve, card_at
from virtfn.kernels.posix import REVENTS_LSB, monotonic_ps, poll, wake_promptly

__all__ = ["run_bridge"]

_BUDGET = 64


@kernel
def run_bridge(
    bridge: int, scratch: int, asked: npt.NDArray[np.int64], urgent: int, limit_ps: int
) -> tuple[int, int]:  # fmt: skip
    """Serve until something needs Python, or `limit_ps` is over, and what is there now in any case.

    bridge: address of the BRIDGE row. scratch: address of 16 bytes. asked: (n,) what to wait for, as `poll` takes it:
    kicks, then what Python looks after. urgent: events that Python is needed for at once. Returns (frames, events).
    """
    wake_promptly()
    now = monotonic_ps(scratch)
    until = now + limit_ps
    serve = card_at(bridge).serve
    frames = 0
    events = 0
    while True:
        moved, event = call_serve(serve, bridge, now, _BUDGET)
        frames += moved
        events |= event & ~EV_MORE
        now = monotonic_ps(scratch)
        if events & urgent or now >= until:
            return frames, events
        busy = moved or event & EV_MORE
        if poll(asked.ctypes.data, len(asked), 0 if busy else until - now, scratch):
            for i in range(1, len(asked)):
                if asked[i] >> REVENTS_LSB:
                    return frames, events
