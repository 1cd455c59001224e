"""Where requests of other threads, and of the control socket, wait for the world to carry them out.

    submit (any thread) -> wakes the world -> turn: pieces, for half a millisecond at most -> the answer, in a Future

Quick requests come first. Long ones are carried out one after the other: each holds what it has read so far. Those that
wait for somebody else have a look every few milliseconds.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Generic, TypeVar

from virtfn.api.session.asking import Answering, Request
from virtfn.hw.types import Ps
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import Actor, Clock, VirtfnError

__all__ = ["Desk"]

MAX_WAITING = 32
_TURN_PS = MS_PS // 2
_LOOK_PS = 5 * MS_PS
_PIECES = 64  # of a turn, where time does not go on

T = TypeVar("T")


class _Job(Generic[T]):
    """A request under way: its pieces, and where its answer goes."""

    def __init__(self, request: Request[T], session: Answering) -> None:
        self.pieces = request.pieces(session)
        self.future: Future[T] = Future()
        self._told = False

    def go_on(self) -> bool:
        """Do a piece; False if that was the last. Once nobody waits for the answer, the request is told so (ECANCELED).

        What it then has to put back, it does in pieces, too.
        """
        try:
            if self.future.cancelled() and not self._told:
                self._told = True
                self.pieces.throw(VirtfnError("nobody waits for the answer any more", errno_name="ECANCELED"))
            else:
                next(self.pieces)
        except StopIteration as end:
            with suppress(InvalidStateError):  # it was cancelled a moment ago
                self.future.set_result(end.value)
            return False
        except Exception as error:  # whoever asked is told, and the lab goes on
            with suppress(InvalidStateError):
                self.future.set_exception(error)
            return False
        return True


class Desk(Actor):
    """The requests that wait, and their turn in the world. session: which carries them out."""

    def __init__(self, session: Answering, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._lock = threading.Lock()
        self._quick: deque[_Job[object]] = deque()
        self._long: deque[_Job[object]] = deque()
        self._waiting: list[_Job[object]] = []
        self._looked = clock.now()
        self._wakes = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._rung = False
        self._open = True

    def submit(self, request: Request[T]) -> Future[T]:
        """Take a request, from any thread; its answer comes when the world has carried it out.

        Raises VirtfnError if the session has ended (ESHUTDOWN), or too many wait (EBUSY).
        """
        with self._lock:
            if not self._open:
                raise VirtfnError("the lab has ended", errno_name="ESHUTDOWN")
            if len(self._quick) + len(self._long) + len(self._waiting) >= MAX_WAITING:
                raise VirtfnError(f"{MAX_WAITING} requests wait already; ask again later", errno_name="EBUSY")
            job = _Job(request, self._session)
            queue = self._waiting if request.waits else self._long if request.long else self._quick
            queue.append(job)  # type: ignore[arg-type]  # its answer is an object
            os.eventfd_write(self._wakes, 1)
            self._rung = True
        return job.future

    def turn(self, now: Ps) -> int:
        """Carry out what fits into half a millisecond; return how many pieces that was."""
        if self._waiting and now - self._looked >= _LOOK_PS:
            self._looked = now
            for job in list(self._waiting):  # more may come meanwhile
                if not job.go_on():
                    self._waiting.remove(job)
        if self._rung:
            self._rung = False
            with suppress(BlockingIOError):
                os.eventfd_read(self._wakes)
        if not (self._quick or self._long):
            return 0
        done = 0
        while done < _PIECES and (queue := self._quick or self._long) and self._clock.now() - now < _TURN_PS:
            if not queue[0].go_on():
                queue.popleft()
            done += 1
        return done

    def fileno(self) -> int:
        """Return the descriptor that can be read when a request has come."""
        return self._wakes

    def due(self) -> Ps | None:
        """Say that there is more to do at once, if there is, or when to look again."""
        if self._quick or self._long:
            return self._clock.now()
        return Ps(self._looked + _LOOK_PS) if self._waiting else None

    def close(self) -> None:
        """Take no more requests, and refuse those that wait."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            os.close(self._wakes)
            jobs = [*self._quick, *self._long, *self._waiting]
            self._quick.clear()
            self._long.clear()
            self._waiting.clear()
        for job in jobs:
            with suppress(Exception):  # whatever one leaves behind, the others are told
                job.pieces.close()
            with suppress(InvalidStateError):
                job.future.set_exception(VirtfnError("the lab has ended meanwhile", errno_name="ESHUTDOWN"))
