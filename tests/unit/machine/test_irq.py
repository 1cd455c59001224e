"""Vectors: who gets them, and who does not."""

from __future__ import annotations

import pytest

from virtfn.machine.irq import InterruptController
from virtfn.machine.ports import VirtfnError


def test_each_vector_is_one_owners():
    irq, heard = InterruptController(), []
    first = irq.allocate(lambda: heard.append("a"))
    second = irq.allocate(lambda: heard.append("b"))
    assert first != second
    assert irq.deliver(*first)
    assert irq.deliver(*second)
    assert heard == ["a", "b"]
    assert (irq.delivered, irq.spurious) == (2, 0)


def test_what_nobody_waits_for_is_counted_and_goes_nowhere():
    irq, heard = InterruptController(), []
    destination, vector = irq.allocate(lambda: heard.append("a"))
    assert not irq.deliver(destination + 1, vector)
    assert not irq.deliver(destination, vector + 1)
    irq.free(destination, vector)
    irq.free(destination, vector)
    assert not irq.deliver(destination, vector)
    assert heard == []
    assert (irq.delivered, irq.spurious) == (0, 3)


def test_vectors_run_out_and_come_back():
    irq = InterruptController()
    taken = [irq.allocate(lambda: None) for _ in range(256 * 0xD0)]
    assert len(set(taken)) == len(taken)
    with pytest.raises(VirtfnError, match="no interrupt vectors"):
        irq.allocate(lambda: None)
    irq.free(*taken[500])
    assert irq.allocate(lambda: None) == taken[500]
