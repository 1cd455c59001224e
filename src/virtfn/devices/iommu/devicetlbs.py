"""Device TLBs: the caches of translations in devices, which must be told, and must answer, when a translation ends.

    invalidate --> tag --> DeviceTlb.invalidate ...... complete(rid, tag) --> tag is free
                                  no answer in time: its tag is free, and whoever waits is told

Spec: VT-d, device-TLB invalidation; PCI Express, Address Translation Services.
"""

from __future__ import annotations

from typing import NamedTuple

from virtfn.hw.types import Ps, Rid
from virtfn.machine.ports import Clock, DeviceTlb

__all__ = ["TAGS", "DeviceTlbs"]

TAGS = 32


class _Outstanding(NamedTuple):
    rid: Rid
    queue: int  # whose depth counts
    since: Ps


class DeviceTlbs:
    """The requesters with a device TLB, and the invalidations that they have not answered.

    targets: by requester ID; whoever plugs a device in or takes it away changes it. clock: without one, nothing times
    out.
    """

    def __init__(self, clock: Clock | None, timeout_ps: int) -> None:
        self.targets: dict[Rid, DeviceTlb] = {}
        self._clock = clock
        self._timeout_ps = timeout_ps
        self._outstanding: dict[int, _Outstanding] = {}

    def reset(self) -> None:
        """Forget what is outstanding."""
        self._outstanding.clear()

    @property
    def tags(self) -> set[int]:
        """The tags that have not been answered."""
        return set(self._outstanding)

    def has_room(self, queue: int, depth: int) -> bool:
        """Tell whether one more invalidation may be sent: a tag is free, and `queue` has fewer than `depth`."""
        used = sum(one.queue == queue for one in self._outstanding.values())
        return len(self._outstanding) < TAGS and used < depth

    def invalidate(self, rid: Rid, queue: int, address: int, nbytes: int) -> bool:
        """Ask a requester to forget translations; False if it has no device TLB. There must be room."""
        target = self.targets.get(rid)
        if target is None:
            return False
        itag = next(tag for tag in range(TAGS) if tag not in self._outstanding)
        # Noted before it is sent: the answer may come from within.
        self._outstanding[itag] = _Outstanding(rid, queue, self._now())
        target.invalidate(address, nbytes, itag)
        return True

    def complete(self, rid: Rid, itag: int) -> bool:
        """Take an answer; False if nobody asked `rid` under that tag."""
        one = self._outstanding.get(itag)
        if one is None or one.rid != rid:
            return False
        del self._outstanding[itag]
        return True

    def serve(self) -> None:
        """Let those answer who owe an answer."""
        if not self._outstanding:
            return
        for rid in {one.rid for one in self._outstanding.values()}:
            if rid in self.targets:
                self.targets[rid].serve()

    def expire(self) -> list[Rid]:
        """Give up what was not answered in time, and say by whom; a later answer is unexpected."""
        if not self._outstanding:
            return []
        deadline = self._now() - self._timeout_ps
        late = [tag for tag, one in self._outstanding.items() if one.since <= deadline]
        return [self._outstanding.pop(tag).rid for tag in late]

    def respond(self, rid: Rid, prgi: int, code: int) -> bool:
        """Answer a page request group; False if there is nobody to answer."""
        target = self.targets.get(rid)
        if target is not None:
            target.page_response(prgi, code)
        return target is not None

    def _now(self) -> Ps:
        return Ps(0) if self._clock is None else self._clock.now()
