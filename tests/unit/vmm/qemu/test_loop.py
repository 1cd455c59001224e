"""A guest's loop may be held up; whoever ends it is not."""

from __future__ import annotations

import threading
import time

import pytest

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import loop as loops
from virtfn.vmm.qemu.loop import Loop
from virtfn.vmm.qemu.wait import Watch


async def nothing() -> None:
    return


def test_a_loop_that_is_held_up_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_STOP_S", 0.1)
    loop, release = Loop("held"), threading.Event()
    loop.post(lambda: release.wait(20))
    began = time.monotonic()
    with pytest.raises(VirtfnError, match="did not come"):
        loop.call(nothing(), "an answer", timeout_s=0.1, watch=Watch())
    loop.stop()
    assert time.monotonic() - began < 10
    release.set()
    loop._thread.join()
