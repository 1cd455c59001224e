from __future__ import annotations

import contextlib
import signal

import pytest


@pytest.fixture
def hurry():
    """A context that fails after so many seconds, also in the middle of a system call."""

    @contextlib.contextmanager
    def within(seconds: float):
        def late(*_: object) -> None:
            raise AssertionError(f"it waited for more than {seconds} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return within
