"""The world: a clock, and actors that take turns. The one place that decides whose turn it is, and how long to rest.

    lane     an actor whose work is compiled: lanes work at the same time, each in a thread, where there are processors
    rester   the actor that knows best how to rest: it waits in compiled code, and moves frames meanwhile

A step is one turn of each. When nobody had anything to do, the world rests: until a descriptor can be read, or the
first actor is due. With a virtual clock it jumps there, so that the same work takes the same steps.

Python alone changes what it owns: no lane is under way while an actor has its turn.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from virtfn.hw.types import Ps
from virtfn.kernels.stray import CHECKED
from virtfn.machine.clock import MS_PS, WallClock
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import Actor, Clock

__all__ = ["Lane", "PatientClock", "Rester", "World"]

T = TypeVar("T")

_LONGEST_PS = 20 * MS_PS  # of a rest: whoever waits for something that is no actor looks again after it


class Lane(Actor, Protocol):
    """An actor whose turn is `begin`, `work` in compiled code beside other lanes, and `end`."""

    def begin(self) -> bool:
        """Do what comes before the work; False if there is none now."""

    def work(self) -> None:
        """Work. No other lane's state may be touched, and nothing of Python's."""

    def end(self) -> int:
        """Do what the work calls for; return how much was done."""


class Rester(Actor, Protocol):
    """An actor that rests for all: what it does in its turn does not keep the world from it."""

    def rest(self, limit_ps: int) -> None:
        """Do what compiled code can, then rest for `limit_ps` at most, or until there is something else to do."""


class World:
    """Actors and their clock. They may come and go between steps, and in their turns."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lanes: list[Lane] = []
        self._actors: list[Actor] = []
        self._rester: Rester | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._idle: set[int] = set()  # lanes that had nothing to do in the last step: a thread each would cost more
        self._side_by_side = len(os.sched_getaffinity(0)) > 1 and not CHECKED  # which knows one call at a time

    @classmethod
    def of(cls, clock: Clock, lane: Lane) -> World:
        """Make a world of one lane."""
        world = cls(clock)
        world.add_lane(lane)
        return world

    def add(self, actor: Actor) -> None:
        """Take an actor in: it has its turns after those that are there."""
        self._actors.append(actor)

    def add_lane(self, lane: Lane) -> None:
        """Take a lane in."""
        self._lanes.append(lane)

    def rest_by(self, rester: Rester) -> None:
        """Let an actor rest for all, instead of the one that did before."""
        self._rester = rester

    def remove(self, actor: Actor) -> None:
        """Let an actor go, whatever it is here."""
        if actor is self._rester:
            self._rester = None
        self._lanes = [lane for lane in self._lanes if lane is not actor]
        self._actors = [other for other in self._actors if other is not actor]

    def step(self) -> bool:
        """Give each its turn; return whether anybody but the rester had something to do."""
        done = self._work()
        for actor in list(self._actors):
            done += actor.turn(self.clock.now())
        if self._rester is not None:
            if done:
                self._rester.rest(0)
            self._rester.turn(self.clock.now())
        return done > 0

    def _work(self) -> int:
        lanes = [lane for lane in self._lanes if lane.begin()]
        here = lanes
        others: list[Future[None]] = []
        busy = [lane for lane in lanes if id(lane) not in self._idle] if self._side_by_side else []
        if len(busy) > 1:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lane")
            others = [self._threads.submit(lane.work) for lane in busy[1:]]
            here = [busy[0], *(lane for lane in lanes if id(lane) in self._idle)]
        try:
            for lane in here:
                lane.work()
        finally:
            wait(others)  # whatever happens here, what they work on must not go away
        for other in others:
            other.result()
        done = [lane.end() for lane in lanes]
        self._idle = {id(lane) for lane, moved in zip(lanes, done, strict=True) if not moved}
        return sum(done)

    def serve(self, limit_ps: int) -> None:
        """Let lanes and the rester go on for a moment, at most `limit_ps`: an actor waits in the middle of its turn."""
        moved = self._work()
        if self._rester is not None:
            self._rester.turn(self.clock.now())
            self._rester.rest(0 if moved else limit_ps)
        elif not moved:
            self.clock.sleep(limit_ps)

    def rest(self, longest_ps: int = _LONGEST_PS) -> None:
        """Wait until there is something to do, or somebody is due; `longest_ps` at most."""
        limit = self._until_due(longest_ps)
        if self._rester is not None:
            self._rester.rest(limit)
            return
        poll = select.poll()
        for fd in {fd for actor in (*self._lanes, *self._actors) if (fd := actor.fileno()) >= 0}:
            poll.register(fd, select.POLLIN)
        if not isinstance(self.clock, WallClock):
            if not poll.poll(0):
                self.clock.sleep(limit)
        elif limit >= MS_PS:
            self._rest_but_for_looks(poll, limit, self.clock.now() + longest_ps)
        else:  # poll cannot tell such a short time
            self.clock.sleep(limit)

    def _until_due(self, longest_ps: int) -> int:
        """Say how long it is until the first is due, at most."""
        now = self.clock.now()
        due = [when for actor in (*self._lanes, *self._actors) if (when := actor.due()) is not None]
        return min(max(min(due, default=now + longest_ps) - now, 0), longest_ps)

    def _rest_but_for_looks(self, poll: select.poll, limit_ps: int, end: int) -> None:
        """Rest, but let those who are due have their turns: while they find nothing to do, the others sleep on."""
        while limit_ps > 0 and not poll.poll(limit_ps / MS_PS):
            now = self.clock.now()
            due = [actor for actor in self._actors if (when := actor.due()) is not None and when <= now]
            if sum([actor.turn(now) for actor in due]) or now >= end:
                return
            limit_ps = self._until_due(end - now)

    def tick(self, longest_ps: int = _LONGEST_PS) -> None:
        """Take a step, and rest if there was nothing to do: what whoever waits calls again and again."""
        if not self.step():
            self.rest(longest_ps)

    def until(self, done: Callable[[], bool], limit_ps: int | None = None, *, longest_ps: int = _LONGEST_PS) -> bool:
        """Go on until `done`, which is asked between steps; False if `limit_ps` is over before.

        longest_ps: of a rest, where `done` depends on nothing but signals and what actors do in their turns.
        """
        end = None if limit_ps is None else self.clock.now() + limit_ps
        while not done():
            if end is not None and self.clock.now() >= end:
                return False
            self.tick(longest_ps)
        return True

    def finish(self, pieces: InPieces[T]) -> T:
        """Go on until what looks whether something has come has found it; return that."""
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self.tick()

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


class PatientClock:
    """The world's clock, for who waits in the middle of a turn: lanes and rester go on meanwhile."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> Ps:
        """Return the time now."""
        return self._world.clock.now()

    def sleep(self, duration_ps: int) -> None:
        """Let time pass, and those go on who need no turn of an actor."""
        end = self.now() + duration_ps
        while (left := end - self.now()) > 0:
            self._world.serve(min(left, MS_PS))
