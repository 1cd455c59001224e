"""Storm control: how much of what goes to many the switch takes in a window of time, from all senders together.

    broadcast   to everybody; with BIDU, also unicast that pools get though none has the very address   BSCTRH
    multicast   to groups                                                                               MSCTRH

Above the threshold they are dropped for the rest of the window (BDICW, MDICW), or all through the next (BDIPW, MDIPW).
Windows follow each other without a gap, whether there is traffic or not.
Spec: 82576 datasheet, SCCRL, BSCTRH, MSCTRH.
"""

from __future__ import annotations

from virtfn.hw.eth import BROADCAST
from virtfn.kernels._jit import Row, apart, part
from virtfn.kernels.i82576.state import DROP_VLAN_FILTER, NIC, WIRE
from virtfn.kernels.i82576.switch import find_pools, select_pools

__all__ = ["is_storm"]

# As in SCCRL; the others say what kind a window had too much of.
MULTICAST_NEXT, MULTICAST_NOW, BROADCAST_NEXT, BROADCAST_NOW, UNRESOLVED = 1, 2, 4, 8, 16
_BROADCASTS, _MULTICASTS = 1, 2


@apart(NIC, int, int, int, int, int, gives=1)
def is_storm(nic: Row, source: int, destination: int, vid: int, pools: int, length: int) -> int:
    """Count a frame, which is for `pools`, if it is of those that have a limit. Returns 1 if it is one too many.

    source: pool that sent it, or WIRE. vid: its VLAN, -1 without one.
    """
    p = nic.port
    if not destination & 1 and not is_unresolved(nic, source, destination, vid, pools):
        return 0
    if p.now >= p.storm_end:
        begin_window(nic)
    if destination & 1 and destination != BROADCAST:
        p.storm_multicasts += length + 4
        if p.storm_multicasts > p.storm_most_multicasts:
            p.storm_over |= _MULTICASTS
        kind, now, later = _MULTICASTS, MULTICAST_NOW, MULTICAST_NEXT
    else:
        p.storm_broadcasts += length + 4
        if p.storm_broadcasts > p.storm_most_broadcasts:
            p.storm_over |= _BROADCASTS
        kind, now, later = _BROADCASTS, BROADCAST_NOW, BROADCAST_NEXT
    if p.storm & now and p.storm_over & kind:
        return 1
    return 1 if p.storm & later and p.storm_before & kind else 0


@part
def is_unresolved(nic: Row, source: int, destination: int, vid: int, pools: int) -> bool:
    """Tell whether a unicast frame counts as a broadcast: pools without its address get it, not only as mirrors."""
    p = nic.port
    if p.storm & UNRESOLVED == 0 or pools == 0 or find_pools(nic.macs, destination) != 0:
        return False
    if p.mirror == 0 or p.vmdq == 0:
        return True
    asked, why = select_pools(nic, destination, vid)
    if source == WIRE:
        return asked != 0 or (p.default_pool >= 0 and why != DROP_VLAN_FILTER)
    return asked & ~(1 << source) != 0


@part
def begin_window(nic: Row) -> None:
    """Begin the window of now; what there was too much of counts only if it was in the one before."""
    p = nic.port
    missed = (p.now - p.storm_end) // p.storm_ps
    p.storm_before = p.storm_over if missed == 0 else 0
    p.storm_end += (missed + 1) * p.storm_ps
    p.storm_over = 0
    p.storm_broadcasts = p.storm_multicasts = 0
