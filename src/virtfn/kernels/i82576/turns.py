"""Whose turn it is: transmit queues share the port by what they do with it, not by how often they are asked.

    work      every pool may do so much of it in a round, in as many turns as that takes; what it does beyond is taken
              off its next rounds. A pool that is alone is not held up, and none waits while nobody else has anything
    what is   the wire, and the descriptors of a slow receiver: among the pools that have lately wanted one, none gets
    scarce    more bytes through than a frame beyond the others (`shares.py`)

A call begins with another queue each time.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, kernel, load32, part
from virtfn.kernels.card import EV_MORE
from virtfn.kernels.i82576.ring import CONTROL, ENABLE, forget_chain, latch, misbehave, publish
from virtfn.kernels.i82576.seen import drop_seen
from virtfn.kernels.i82576.shares import lately
from virtfn.kernels.i82576.state import DROP_WITHDRAWN, QUEUES
from virtfn.kernels.i82576.tx import serve_queue
from virtfn.kernels.i82576.work import WALK_WORK
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = ["serve_stalled", "serve_turns"]

_WORK = 128  # of a pool in a round, for each frame of the budget
_SHARE_PS = 4000  # or so much of the time since the last call, in ps for a unit: a quarter
_LONGEST = 8  # times as much, at most
_ALONE = 64  # times as much for a pool that is alone: even then somebody else may want the processor
_ROUNDS = 8  # of a call that has not moved a frame yet
_STUCK = 3  # times that those who let others go first are asked again when nobody has gone
_ALL = (1 << QUEUES) - 1


@part
def serve_turns(nic: Row, budget: int) -> tuple[int, int]:
    """Serve all transmit queues, each up to `budget` frames a turn, and its pool's share. Returns (frames, events).

    Queues that let others go first, or have a share left, are served again, as long as somebody goes on.
    """
    p = nic.port
    t = nic.turn
    allowance = max(budget * _WORK, min((p.now - t.last) // _SHARE_PS, _LONGEST * budget * _WORK))
    t.last = p.now
    frames = 0
    events = 0
    wanted = _ALL
    stuck = 0
    for i in range(2 * budget + _STUCK):
        if wanted == _ALL:
            t.round += 1
        t.turns += 1
        if i == 0:
            t.claims_since = t.begun  # the last call
            t.begun = t.turns
        else:
            t.claims_since = t.turns - 1
        t.yielded = 0
        events &= ~EV_MORE
        moved = t.taken
        for k in range(QUEUES):
            q = t.first + k & QUEUES - 1
            if wanted >> q & 1:
                sent, event = visit(nic, q, budget, allowance)
                frames += sent
                events |= event
                if p.stalled:
                    break
        t.resumed = 0
        if p.stalled:
            break
        stuck = stuck + 1 if t.taken == moved else 0
        if t.yielded and stuck < _STUCK:
            wanted = t.yielded
        elif frames == 0 and events & EV_MORE and i < _ROUNDS and lately(t.contested, p.epoch):
            wanted = _ALL
        else:
            break
    t.first = t.first + 1 & QUEUES - 1
    if t.ready & t.ready - 1:
        t.contested = p.epoch
    t.ready = 0
    return frames, events


@part
def serve_stalled(nic: Row, budget: int) -> tuple[int, int]:
    """Serve the frame that holds up the line, and no other: the line moves on if its receivers take it.

    If its sender has taken it away meanwhile, it is dropped. Returns (frames, events).
    """
    p = nic.port
    q = p.stalled - 1
    nic.turn.first = q
    nic.turn.resumed = p.stalled
    nic.turn.round += 1
    frames, events = visit(nic, q, 1, budget * _WORK)
    if p.stalled and p.stall_epoch != p.epoch:
        drop_seen(nic, nic.tx[q].pool, 1, DROP_WITHDRAWN, 0, 0, 0)
        p.stalled = 0
    return frames, events


@kernel
def visit(nic: Row, q: int, budget: int, allowance: int) -> tuple[int, int]:
    """Serve transmit queue `q`, if its driver has given it anything and its pool may still do something.

    allowance: work of a pool in a round. Returns (frames, events).
    """
    p = nic.port
    r = nic.tx[q]
    if r.regs == 0 or not (load32(r.regs + CONTROL) & ENABLE or r.enabled):
        forget_chain(r)
        return 0, 0
    if p.blocked >> q & 1:
        return 0, 0
    if r.epoch != p.epoch and not latch(r, p.epoch, False):
        return 0, misbehave(nic, q)
    if not r.enabled or r.head == r.tail:
        forget_chain(r)
        return 0, 0
    if not p.tx_enable or not p.tx_pools >> r.pool & 1:
        forget_chain(r)  # when its VF goes on, another VLAN may be in force
        return 0, 0
    pool = r.pool
    nic.turn.ready |= 1 << pool
    if nic.credit[pool, 1] != nic.turn.round:
        nic.credit[pool, 1] = nic.turn.round
        nic.credit[pool, 0] = min(nic.credit[pool, 0] + allowance, allowance)
    alone = not lately(nic.turn.contested, p.epoch)
    held_up = nic.turn.resumed == q + 1  # others wait for its frame
    if nic.credit[pool, 0] <= 0 and not alone and not held_up:
        return 0, EV_MORE
    unit = iommu_at(p.iommu).unit[0]
    walks = unit.page_walks
    begun = nic.turn.work
    nic.turn.work_stop = begun + (allowance * _ALONE if alone else max(nic.credit[pool, 0], 1))
    frames, events = serve_queue(nic, q, budget)
    nic.turn.work += (unit.page_walks - walks) * WALK_WORK
    nic.credit[pool, 0] = 0 if alone else nic.credit[pool, 0] - (nic.turn.work - begun)
    if frames >= budget and nic.credit[pool, 0] > allowance - budget * _WORK:
        nic.turn.yielded |= 1 << q  # what it sends is little work: it goes on when the others had theirs
    publish(r)
    return frames, events
