"""Interrupt messages: who gets them, and who does not."""

from __future__ import annotations

import pytest

from virtfn.hw.types import Rid
from virtfn.machine.irq import InterruptController
from virtfn.machine.ports import VirtfnError

A, B = Rid(0x100), Rid(0x280)


def test_each_message_is_one_owners():
    irq, heard = InterruptController(), []
    first = irq.allocate(A, lambda: heard.append("a"))
    second = irq.allocate(B, lambda: heard.append("b"))
    assert first != second
    assert irq.send(A, *first)
    assert irq.send(B, *second)
    assert heard == ["a", "b"]
    assert (irq.delivered, irq.spurious) == (2, 0)


def test_what_nobody_asked_for_is_counted_and_goes_nowhere():
    irq, heard = InterruptController(), []
    address, message = irq.allocate(A, lambda: heard.append("a"))
    assert not irq.send(B, address, message)
    assert not irq.send(A, address + 0x1000, message)
    assert not irq.send(A, 0, 0)
    irq.free(address, message)
    irq.free(address, message)
    assert not irq.send(A, address, message)
    assert heard == []
    assert (irq.delivered, irq.spurious) == (0, 4)


def test_watchers_see_every_message():
    irq, seen = InterruptController(), []
    irq.on_message = lambda *message: seen.append(message)
    irq.send(A, 1, 2)
    assert seen == [(A, 1, 2)]


def test_messages_run_out_and_come_back():
    irq = InterruptController()
    taken = [irq.allocate(A, lambda: None) for _ in range(256 * 0xD0)]
    assert len(set(taken)) == len(taken)
    with pytest.raises(VirtfnError, match="no interrupt vectors"):
        irq.allocate(A, lambda: None)
    irq.free(*taken[500])
    assert irq.allocate(B, lambda: None) == taken[500]
