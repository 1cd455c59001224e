"""Watching VFs: what their owners do too often, and what is done about it. An actor of the world.

    card, VM, remapping unit --> totals, four times a window --> a second's share of the window --> over its limit?
                                                                  warn | throttle | quarantine, and tell

It reads counters that are kept anyway: no frame is looked at, and between two looks nothing is done. Where nothing has
happened for a window, a look is one comparison a card. What is over its limit is dealt with once, and again when it has
been below for a window. Nothing is undone but by `release`.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from virtfn.hw.types import Ps, Rid
from virtfn.hw.vtd.regs import Fault
from virtfn.iovm.iovm import Iovm, Vf, VfState
from virtfn.iovm.rules import Action, Kind, Rules
from virtfn.machine.clock import S_PS
from virtfn.machine.netports import Card
from virtfn.machine.ports import Actor, Clock, VirtfnError

__all__ = ["Deed", "Notice", "Watch"]

_LOOKS = 4  # in a window


class Deed(enum.Enum):
    """What was done, or seen: whoever is told of it."""

    SPOOFED = "spoofed"
    WARNED = "warned"
    THROTTLED = "throttled"
    QUARANTINED = "quarantined"
    RELEASED = "released"


class Notice(NamedTuple):
    """One deed. owner: the VM that has the VF. kind: None if a person did it; then `why` is what that person said.

    amount: of what was seen since the last look, in a second where a limit is meant.
    """

    deed: Deed
    vf: Vf
    owner: str
    kind: Kind | None = None
    amount: int = 0
    limit: int = 0
    why: str = ""


Totals = tuple[int, ...]
"""How much there was of each kind, in the order of `Kind`, since the start."""
_SPOOFS = tuple(Kind).index(Kind.SPOOF)


@dataclass(slots=True)
class _History:
    """What one owner of a VF has done within the window, the oldest first; and which limits it is over now."""

    assignment: int
    looks: deque[tuple[int, Totals]] = field(default_factory=deque)
    over: set[Kind] = field(default_factory=set)
    spoofs: int = 0  # that were told of
    quiet_until: int = 0
    why: str = ""

    @property
    def calm(self) -> bool:
        """Whether nothing has happened within the window, and there is nothing to tell."""
        totals = self.looks[-1][1]
        return not self.over and self.spoofs == totals[_SPOOFS] and self.looks[0][1] == totals


@dataclass(slots=True)
class _Post:
    """A card that is watched. rules: by VF. found: at the last look, by VF; calm: that look, with all before it."""

    pf: Rid
    card: Card
    rules: Callable[[int], Rules]
    histories: dict[int, _History] = field(default_factory=dict)
    found: list[tuple[int, Totals] | None] = field(default_factory=list)
    looked: int = 0
    calm: bool = False


class Watch(Actor):
    """The watch over all VFs of a machine. on_notice: is told what was done."""

    def __init__(self, iovm: Iovm, clock: Clock) -> None:
        self.on_notice: Callable[[Notice], None] | None = None
        self._iovm = iovm
        self._clock = clock
        self._posts: list[_Post] = []
        self._faults: Counter[Rid] = Counter()
        self._next = clock.now()
        self._period = S_PS // _LOOKS

    def follow(self, pf: Rid, card: Card, rules: Callable[[int], Rules]) -> None:
        """Watch the VFs of a PF that the IOVM manages. rules: of each, by its number."""
        post = _Post(pf, card, rules)
        self._posts.append(post)
        windows = [rules(vf.index).window_ps for vf in self._iovm.vfs(pf)]
        self._period = min([self._period, *(window // _LOOKS for window in windows)])

    def note_fault(self, fault: Fault) -> None:
        """Take note of a request that the remapping unit has refused."""
        self._faults[fault.rid] += 1

    # Looking.

    def turn(self, now: Ps) -> int:
        """Look, if it is time to; return how many VFs something was done about."""
        if now < self._next:
            return 0
        self._next = Ps(now + self._period)
        return sum([self._look_at(post, now) for post in self._posts])

    def due(self) -> Ps | None:
        """Say when to look again; nobody is woken while no VF has an owner."""
        owned = any(vf.vm is not None for post in self._posts for vf in self._iovm.vfs(post.pf))
        return self._next if owned else None

    def _look_at(self, post: _Post, now: int) -> int:
        seen = list(zip(self._iovm.vfs(post.pf), self._totals(post), strict=True))
        found = [None if vf.vm is None else (vf.assignments, totals) for vf, totals in seen]
        if post.calm:
            if found == post.found:
                post.looked = now
                return 0
            for history in post.histories.values():  # as if each had been looked at till now
                history.looks = deque([(post.looked, history.looks[-1][1])])
        done = sum([self._look(post, vf, totals, now) for vf, totals in seen if vf.vm is not None])
        for gone in post.histories.keys() - {vf.index for vf, _ in seen if vf.vm is not None}:
            del post.histories[gone]
        held = any(vf.throttled is not None for vf, _ in seen)
        post.calm = not held and all(history.calm for history in post.histories.values())
        post.found, post.looked = found, now
        return done

    def _look(self, post: _Post, vf: Vf, totals: Totals, now: int) -> int:
        """Look at one VF; return 1 if something was done about it."""
        history = post.histories.get(vf.index)
        if history is None or history.assignment != vf.assignments:
            post.histories[vf.index] = self._begin(vf, totals, now)
            return 0
        rules = post.rules(vf.index)
        before = history.looks[-1][1]
        self._note_spoofs(vf, history, totals[_SPOOFS], now)
        history.looks.append((now, totals))
        while len(history.looks) > 2 and history.looks[1][0] <= now - rules.window_ps:
            history.looks.popleft()
        done = 0
        if history.over or totals != before:  # else there can only be less than there was
            done = self._judge(vf, rules, history)
        if vf.throttled is not None:
            vf.driver.attend(vf.index)
            done = 1
        return done

    @staticmethod
    def _begin(vf: Vf, totals: Totals, now: int) -> _History:
        return _History(vf.assignments, deque([(now, totals)]), spoofs=totals[_SPOOFS])

    def _note_spoofs(self, vf: Vf, history: _History, total: int, now: int) -> None:
        """Tell of frames that were not the VF's to send, whatever the limit; once a second at most."""
        if total > history.spoofs and now >= history.quiet_until:
            self._tell(Notice(Deed.SPOOFED, vf, _owner(vf), Kind.SPOOF, total - history.spoofs))
            history.spoofs, history.quiet_until = total, now + S_PS

    def _totals(self, post: _Post) -> list[Totals]:
        """Read what there was of each kind, by VF."""
        return [
            (
                conduct.spoofed,
                self._faults[vf.rid] if self._faults else 0,
                conduct.messages,
                0 if vf.vm is None else vf.vm.interrupts,
                conduct.malformed,
                conduct.resets,
            )
            for vf, conduct in zip(self._iovm.vfs(post.pf), post.card.conduct(), strict=False)
        ]

    def _judge(self, vf: Vf, rules: Rules, history: _History) -> int:
        """Act on each limit that the owner of a VF has come to be over; return 1 if there was one."""
        acted = 0
        rates = self._rates(history, rules)
        for kind, limit in rules.limits.items():
            if rates[kind] <= limit.per_second:
                history.over.discard(kind)
            elif kind not in history.over and limit.action is not Action.NONE and vf.state is VfState.ASSIGNED:
                history.over.add(kind)
                self._act(vf, rules, history, kind, rates[kind])
                acted = 1
        return acted

    @staticmethod
    def _rates(history: _History, rules: Rules) -> dict[Kind, int]:
        """Say how many of each kind there were in a second, over the window, also where less of it has passed."""
        (began, first), (now, last) = history.looks[0], history.looks[-1]
        passed = max(now - began, rules.window_ps)
        return {kind: (last[k] - first[k]) * S_PS // passed for k, kind in enumerate(Kind)}

    # Acting.

    def _tell(self, notice: Notice) -> None:
        if self.on_notice is not None:
            self.on_notice(notice)

    def _act(self, vf: Vf, rules: Rules, history: _History, kind: Kind, rate: int) -> None:
        limit = rules.limits[kind]
        why = f"{kind.value}: {rate:,} a second, and {limit.per_second:,} are allowed"
        deed = Deed.WARNED
        try:
            if limit.action is Action.QUARANTINE:
                self._iovm.quarantine(vf)
                deed = Deed.QUARANTINED
            elif limit.action is Action.THROTTLE and vf.throttled is None:
                self._iovm.throttle(vf, rules.throttle_mbps)
                deed = Deed.THROTTLED
        except VirtfnError as refused:
            why = f"{why}; to {limit.action.value} it was refused: {refused}"
        if deed is not Deed.WARNED:
            history.why = why
        self._tell(Notice(deed, vf, _owner(vf), kind, rate, limit.per_second, why))

    def quarantine(self, vf: Vf, why: str = "") -> None:
        """Stop a VF, as a person asks; raises VirtfnError as the IOVM does."""
        self._iovm.quarantine(vf)
        self._history(vf).why = why or "by hand"
        self._tell(Notice(Deed.QUARANTINED, vf, _owner(vf), why=why or "by hand"))

    def release(self, vf: Vf) -> None:
        """Let a VF run again, as a person asks; raises VirtfnError as the IOVM does."""
        self._iovm.release(vf)
        history = self._history(vf)
        history.why = ""
        history.over.clear()
        history.looks.clear()
        history.looks.append((self._clock.now(), self._totals(self._post(vf))[vf.index]))  # what was is forgiven
        self._tell(Notice(Deed.RELEASED, vf, _owner(vf)))

    # What is to be seen.

    def rates(self, vf: Vf) -> dict[Kind, int]:
        """Tell how many of each kind there were in a second, at the last look; zeros for a VF without owner."""
        post = self._post(vf)
        history = post.histories.get(vf.index)
        if history is None or vf.vm is None or history.assignment != vf.assignments:
            return dict.fromkeys(Kind, 0)
        return self._rates(history, post.rules(vf.index))

    def rules(self, vf: Vf) -> Rules:
        """Tell the limits of a VF. Raises VirtfnError (ENODEV) for one that is not watched."""
        return self._post(vf).rules(vf.index)

    def why(self, vf: Vf) -> str:
        """Tell why a VF is stopped or held back; empty if it is not."""
        return self._history(vf).why if vf.state is VfState.QUARANTINED or vf.throttled is not None else ""

    def _post(self, vf: Vf) -> _Post:
        for post in self._posts:
            if post.pf == vf.found.physfn:
                return post
        raise VirtfnError("nobody watches this VF", errno_name="ENODEV")

    def _history(self, vf: Vf) -> _History:
        post = self._post(vf)
        history = post.histories.get(vf.index)
        if history is None or history.assignment != vf.assignments:
            history = self._begin(vf, self._totals(post)[vf.index], self._clock.now())
            post.histories[vf.index] = history
        return history


def _owner(vf: Vf) -> str:
    return "" if vf.vm is None else vf.vm.name
