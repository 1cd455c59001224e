"""Signals that end what is done: alike, whichever it is, and the first of them alone.

One that whoever started us ignores stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["ENDING", "Ended", "ended_by_signals"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A signal that ends the command. status: to exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def _end(number: int, frame: FrameType | None) -> None:
    for other in ENDING:
        signal.signal(other, _ignore)
    raise Ended(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. SIG_IGN would be told of as a race where two signals come at once."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end what is done inside by Ended, the first of them."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not Python's
                signal.signal(number, handler)
