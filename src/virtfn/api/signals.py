"""Signals that end what is done: alike, whichever it is, and the first of them alone.

One that whoever started us ignores stays ignored.

Python raises where it happens to be, and that may be where exceptions get lost: a destructor, a callback of the
import system. So an exception that is gone before it has arrived is raised again a moment later; and an error that
comes meanwhile is what became of it: a callback that was cut short returned nothing. Python tells of each that it
loses; of these, nobody needs to hear.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

__all__ = ["ENDING", "Ended", "ended_by_signals"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.01
_waiting: list[object] = []
"""Who waits for signals now."""
_came: list[int] = []
"""The signal that has come, if one has."""


class Ended(KeyboardInterrupt):
    """A signal that ends the command. status: to exit with. arrived: whether it got to where it is waited for."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number
        self.arrived = False

    def __del__(self) -> None:
        if not self.arrived and _waiting:  # nobody unwinds for it any more
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _end(number: int, frame: FrameType | None) -> None:
    for other in ENDING:
        signal.signal(other, _ignore)
    _came.append(number)
    signal.signal(signal.SIGALRM, partial(_again, number))
    raise Ended(number)


def _again(number: int, _: int, frame: FrameType | None) -> None:
    raise Ended(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. SIG_IGN would be told of as a race where two signals come at once."""


def _tell(before: Callable[[sys.UnraisableHookArgs], object], lost: sys.UnraisableHookArgs) -> None:
    """Tell of an exception that Python has lost, unless it is a signal's: that comes again."""
    if not issubclass(lost.exc_type, Ended):
        before(lost)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end what is done inside by Ended, the first of them, whatever has been made of it on its way."""
    before = {}
    told = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in ENDING}
        sys.unraisablehook = partial(_tell, told)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    _waiting.append(before)
    try:
        yield
    except BaseException as error:
        ended = _ended(error) or (Ended(_came[0]) if _came and isinstance(error, Exception) else None)
        if ended is None:
            raise
        ended.arrived = True
        signal.setitimer(signal.ITIMER_REAL, 0)  # of one that got lost, if this is another
        raise ended from None
    finally:
        _waiting.pop()
        _came.clear()
        if before:
            sys.unraisablehook = told
        for number, handler in before.items():
            if handler is not None:  # None: not Python's
                signal.signal(number, handler)


def _ended(error: BaseException | None) -> Ended | None:
    """Find the signal that an exception comes from."""
    while error is not None and not isinstance(error, Ended):
        error = error.__cause__ or error.__context__
    return error
