from __future__ import annotations

import contextlib
import signal

import pytest

from unit.waits import watching


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


@pytest.fixture(autouse=True)
def _nothing_waits(request):
    """Look at every call on what others hold, in all tests of this folder."""
    if "qemu" in request.path.parts or request.path.name == "test_nothing_waits.py":  # asyncio polls in its own thread
        yield None
        return
    with watching() as watched:
        yield watched
