"""Where the command starts, and how signals end it: alike, at each moment, from its first line on.

    before anything is set up    at once: there is nothing to take down
    later                        as Ctrl-C: what was set up is taken down, and a second signal does not disturb that

SIGINT ends with status 130, SIGTERM with 143, SIGHUP with 129. One that whoever started us ignores stays ignored: a
shell script's `command &` ignores SIGINT, and is ended by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Ended", "ended_by_signals", "main"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A signal that ends the command. status: to exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"virtfn: interrupted\n")
    os._exit(128 + number)


def _end(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:
        signal.signal(other, _ignore)
    raise Ended(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. SIG_IGN would be told of as a race where two signals come at once."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end what is done inside by Ended, the first of them."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not Python's
                signal.signal(number, handler)


def main() -> None:
    """Run the command line and exit with its status."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_at_once)
    from virtfn.cli.main import main as run

    run()
