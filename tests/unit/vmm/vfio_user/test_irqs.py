"""SET_IRQS in all its forms, and who gets which eventfd when."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys

import pytest

from unit.vmm.vfio_user.peer import TEAR_DOWN, TRIGGER_FD, Board, Peer, ToldError, open_fds
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user import Irq, Limits, Server
from virtfn.vmm.vfio_user.messages import IRQ_SET, Command, IrqSet

INTX, MSI, MSIX, ERR = range(4)
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = (
    IrqSet.NONE, IrqSet.BOOL, IrqSet.EVENTFD, IrqSet.MASK, IrqSet.UNMASK, IrqSet.TRIGGER,
)  # fmt: skip


def told(call, *args, **kwargs) -> int:
    with pytest.raises(ToldError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def count(fd: int) -> int:
    """Take what an eventfd has counted."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def events():
    fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(6)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def interrupts(server, peer):
    return server.client.interrupts


def test_as_qemu_does_it(peer, interrupts, events):
    peer.set_irqs(TRIGGER_FD, ERR, 0, 1, fds=[events[5]])
    peer.set_irqs(TRIGGER_FD, MSIX, 0, 1)  # a dummy, to enable
    assert not interrupts.trigger(MSIX, 0)
    before = open_fds()
    for v in range(3):
        peer.set_irqs(TRIGGER_FD, MSIX, v, 1, fds=[events[v]])
    assert open_fds() == before + 3
    for v in (0, 2, 2):
        assert interrupts.trigger(MSIX, v)
    assert [count(fd) for fd in events] == [1, 0, 2, 0, 0, 0]
    peer.set_irqs(TRIGGER_FD, MSIX, 0, 1, fds=[events[3]])  # up again: a new one in place of the old
    assert open_fds() == before + 3
    assert interrupts.trigger(MSIX, 0)
    assert (count(events[0]), count(events[3])) == (0, 1)
    peer.set_irqs(TEAR_DOWN, MSIX, 0, 0)
    assert open_fds() == before
    assert not interrupts.trigger(MSIX, 1)
    assert interrupts.trigger(ERR, 0)
    peer.set_irqs(TRIGGER_FD, ERR, 0, 1)
    assert not interrupts.trigger(ERR, 0)
    peer.set_irqs(TEAR_DOWN, INTX, 0, 0)
    peer.set_irqs(TEAR_DOWN, 77, 0, 0)


def test_several_at_once_and_fewer_than_asked(peer, interrupts, events):
    peer.set_irqs(TRIGGER_FD, MSI, 0, 4, fds=events[:4])
    assert all(interrupts.wanted(MSI, v) for v in range(4))
    peer.set_irqs(TRIGGER_FD, MSI, 1, 3, fds=events[4:])
    assert [interrupts.trigger(MSI, v) for v in range(4)] == [True, True, True, False]
    assert [count(fd) for fd in events] == [1, 0, 0, 0, 1, 1]


def test_masks(peer, interrupts, events):
    peer.set_irqs(TRIGGER_FD, MSI, 0, 4, fds=events[:4])
    peer.set_irqs(NONE | MASK, MSI, 1, 2)
    assert [interrupts.trigger(MSI, v) for v in (0, 1, 2, 2)] == [True, False, False, False]
    assert [count(fd) for fd in events[:4]] == [1, 0, 0, 0]
    assert interrupts.masked(MSI, 1)
    peer.set_irqs(BOOL | UNMASK, MSI, 0, 4, b"\1\0\1\1")
    assert [count(fd) for fd in events[:4]] == [0, 0, 1, 0], "what waited comes once, nothing else does"
    peer.set_irqs(NONE | UNMASK, MSI, 0, 4)
    assert [count(fd) for fd in events[:4]] == [0, 1, 0, 0]
    peer.set_irqs(NONE | UNMASK, MSI, 0, 4)
    assert [count(fd) for fd in events[:4]] == [0, 0, 0, 0]


def test_an_automasked_interrupt_comes_once_until_it_is_unmasked(peer, interrupts, events):
    peer.set_irqs(TRIGGER_FD, INTX, 0, 1, fds=events[:1])
    assert interrupts.trigger(INTX, 0)
    assert not interrupts.trigger(INTX, 0)
    assert count(events[0]) == 1
    peer.set_irqs(NONE | UNMASK, INTX, 0, 1)
    assert count(events[0]) == 1
    assert interrupts.masked(INTX, 0)
    peer.set_irqs(TEAR_DOWN, INTX, 0, 0)
    assert not interrupts.masked(INTX, 0)


def test_events_about_masks(peer, interrupts, events):
    peer.set_irqs(EVENTFD | MASK, MSI, 0, 1, fds=events[:1])
    peer.set_irqs(EVENTFD | UNMASK, MSI, 0, 1, fds=events[1:2])
    peer.set_irqs(TRIGGER_FD, MSI, 0, 1, fds=events[2:3])
    peer.set_irqs(NONE | MASK, MSI, 0, 1)
    peer.set_irqs(NONE | MASK, MSI, 0, 1)
    assert [count(fd) for fd in events[:3]] == [1, 0, 0]
    interrupts.trigger(MSI, 0)
    interrupts.unmask(MSI, 0)
    assert [count(fd) for fd in events[:3]] == [0, 1, 1]


def test_a_client_may_trigger_itself(peer, events):
    peer.set_irqs(TRIGGER_FD, MSIX, 0, 3, fds=events[:3])
    peer.set_irqs(NONE | TRIGGER, MSIX, 1, 2)
    peer.set_irqs(BOOL | TRIGGER, MSIX, 0, 3, b"\1\0\7")
    assert [count(fd) for fd in events[:3]] == [1, 1, 2]


@pytest.mark.parametrize(
    ("flags", "index", "start", "number", "data", "fds"),
    [
        (0, MSIX, 0, 1, b"", 0),
        (NONE, MSIX, 0, 1, b"", 0),
        (TRIGGER, MSIX, 0, 1, b"", 0),
        (NONE | BOOL | TRIGGER, MSIX, 0, 1, b"\1", 0),
        (NONE | MASK | TRIGGER, MSI, 0, 1, b"", 0),
        (TRIGGER_FD | 0x40, MSIX, 0, 1, b"", 1),
        (TRIGGER_FD | 1 << 31, MSIX, 0, 1, b"", 1),
        (TRIGGER_FD, MSIX, 3, 1, b"", 1),
        (TRIGGER_FD, MSIX, 2, 2, b"", 1),
        (TRIGGER_FD, MSIX, 0, 0xFFFFFFFF, b"", 1),
        (TRIGGER_FD, MSIX, 0xFFFFFFFF, 0xFFFFFFFF, b"", 1),
        (TRIGGER_FD, 4, 0, 1, b"", 1),
        (TRIGGER_FD, 0xFFFFFFFF, 0, 1, b"", 1),
        (TRIGGER_FD, MSIX, 0, 0, b"", 0),
        (TRIGGER_FD, MSIX, 0, 1, b"", 2),
        (TRIGGER_FD, MSIX, 0, 1, b"data", 1),
        (TEAR_DOWN, MSIX, 1, 0, b"", 0),
        (TEAR_DOWN, MSIX, 0, 0, b"x", 0),
        (NONE | MASK, MSI, 0, 0, b"", 0),
        (NONE | MASK, MSIX, 0, 1, b"", 0),
        (EVENTFD | UNMASK, MSIX, 0, 1, b"", 1),
        (BOOL | TRIGGER, MSIX, 0, 3, b"\1\1", 0),
        (BOOL | TRIGGER, MSIX, 0, 3, b"\1\1\1\1", 0),
    ],
)
def test_what_is_refused_changes_nothing(peer, interrupts, events, flags, index, start, number, data, fds):
    peer.set_irqs(TRIGGER_FD, MSIX, 0, 3, fds=events[:3])
    before = open_fds()
    assert told(peer.set_irqs, flags, index, start, number, data, events[3 : 3 + fds]) == errno.EINVAL
    assert open_fds() == before
    assert [interrupts.trigger(MSIX, v) for v in range(3)] == [True] * 3
    assert [count(fd) for fd in events] == [1, 1, 1, 0, 0, 0]


def test_short_messages(peer):
    assert told(peer.call, Command.DEVICE_SET_IRQS, b"") == errno.EINVAL
    assert told(peer.call, Command.DEVICE_SET_IRQS, bytes(19)) == errno.EINVAL
    assert told(peer.call, Command.DEVICE_SET_IRQS, IRQ_SET.pack(19, TRIGGER_FD, MSIX, 0, 1)) == errno.EINVAL


def test_descriptors_that_are_no_eventfds(peer, server, events, tmp_path):
    ends = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    before = open_fds()
    for fd in (*ends, folder):
        assert told(peer.set_irqs, TRIGGER_FD, MSIX, 0, 2, fds=[events[0], fd]) == errno.EINVAL
    assert open_fds() == before
    assert not server.client.interrupts.wanted(MSIX, 0)
    assert server.counters["refused:irq-not-an-eventfd"] == 3
    for fd in (*ends, folder):
        os.close(fd)


def test_a_full_eventfd_blocks_nobody(peer, interrupts):
    blocking = os.eventfd((1 << 32) - 1)
    os.write(blocking, ((1 << 64) - 2 - ((1 << 32) - 1)).to_bytes(8, "little"))
    peer.set_irqs(TRIGGER_FD, MSIX, 0, 1, fds=[blocking])
    assert interrupts.trigger(MSIX, 0)
    assert interrupts.trigger(MSIX, 0), "it is signalled already"
    assert os.eventfd_read(blocking) == (1 << 64) - 1
    assert interrupts.trigger(MSIX, 0)
    assert os.eventfd_read(blocking) == 1
    os.close(blocking)


_FILL = """
import mmap, os, sys, time
event, progress = int(sys.argv[1]), mmap.mmap(int(sys.argv[2]), 8)
full = (2**64 - 2).to_bytes(8, "little")
os.write(event, full)
print("x", end="", flush=True)
while True:
    os.read(event, 8)
    os.write(event, full)
    before, until = progress[:], time.monotonic() + 0.05
    while progress[:] == before:
        if time.monotonic() > until:
            time.sleep(3600)  # who waits for room now waits for ever
"""


def test_an_eventfd_that_is_filled_all_the_time_blocks_nobody(peer, hurry):
    """The client makes room, and fills it between a look of the server's and its write, which would wait."""
    event, shared = os.eventfd(0), os.memfd_create("progress")
    os.ftruncate(shared, 8)
    peer.set_irqs(TRIGGER_FD, MSIX, 0, 1, fds=[event])
    command = [sys.executable, "-c", _FILL, str(event), str(shared)]
    child = subprocess.Popen(command, pass_fds=[event, shared], stdout=subprocess.PIPE)
    with mmap.mmap(shared, 8) as progress:
        try:
            assert child.stdout.read(1) == b"x"
            with hurry(20):
                for n in range(50_000):
                    peer.server.client.interrupts.trigger(MSIX, 0)
                    progress[:] = n.to_bytes(8, "little")
                peer.set_irqs(NONE | TRIGGER, MSIX, 0, 1)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            os.close(event)
            os.close(shared)


def test_a_client_has_so_many_eventfds_and_no_more(tmp_path):
    board = Board()
    board.irqs = lambda: {2: Irq(2048)}
    event = os.eventfd(0)
    with Server(tmp_path / "socket", board, limits=Limits(max_eventfds=20)) as server, Peer(server) as peer:
        peer.set_irqs(TRIGGER_FD, MSIX, 0, 10, fds=[event] * 10)
        peer.set_irqs(TRIGGER_FD, MSIX, 2038, 10, fds=[event] * 10)
        before = open_fds()
        assert told(peer.set_irqs, TRIGGER_FD, MSIX, 10, 1, fds=[event]) == errno.ENOSPC
        peer.set_irqs(TRIGGER_FD, MSIX, 0, 10, fds=[event] * 10)
        assert open_fds() == before
        peer.set_irqs(TRIGGER_FD, MSIX, 0, 1)
        peer.set_irqs(TRIGGER_FD, MSIX, 10, 1, fds=[event])
    os.close(event)
    board.irqs = lambda: {2: Irq(2049)}
    with pytest.raises(VirtfnError, match="2048"):
        Server(tmp_path / "socket", board)
    board.close()


def test_a_file_with_the_name_of_an_eventfd_is_none(peer, tmp_path, hurry):
    os.mkfifo(tmp_path / "[eventfd]")
    pipe = os.open(tmp_path / "[eventfd]", os.O_RDWR)
    with hurry(5):
        assert told(peer.set_irqs, TRIGGER_FD, MSIX, 0, 1, fds=[pipe]) == errno.EINVAL
    os.close(pipe)


def test_eventfds_are_closed_with_the_client(server, events):
    before = open_fds()
    with Peer(server) as peer:
        peer.set_irqs(TRIGGER_FD, MSIX, 0, 3, fds=events[:3])
        interrupts = server.client.interrupts
    assert open_fds() == before
    assert not interrupts.trigger(MSIX, 0)


def test_vectors_that_do_not_exist(interrupts):
    assert not interrupts.trigger(MSIX, 99)
    assert not interrupts.trigger(99, 0)
    assert not interrupts.masked(MSI, 99)
