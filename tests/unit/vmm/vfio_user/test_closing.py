"""What a client sends may be anything: nobody waits for the end of it.

A TCP connection whose peer does not read, with SO_LINGER set, holds up whoever closes it last.
"""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from unit.vmm.vfio_user.peer import Lingering, ToldError, memory_file
from virtfn.vmm.vfio_user.messages import DMA_MAP, DMA_UNMAP, HEADER, IRQ_SET, Command


@pytest.fixture
def lingering(server, peer):
    """Makes such connections; they go before the server does, which then has to have closed everything."""
    made: list[Lingering] = []

    def make() -> Lingering:
        made.append(Lingering())
        return made[-1]

    yield make
    for one in made:
        one.release()
    until = time.monotonic() + 10
    while server.closing and time.monotonic() < until:
        time.sleep(0.001)


def serve(server, times: int = 8) -> None:
    for _ in range(times):
        server.serve()


def message(command: int, body: bytes = b"", number: int = 9) -> bytes:
    return HEADER.pack(number, command, HEADER.size + len(body), 0, 0) + body


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (Command.DEVICE_RESET, b""),
        (Command.DEVICE_SET_IRQS, IRQ_SET.pack(20, 0x24, 2, 0, 1)),
        (Command.DMA_MAP, DMA_MAP.pack(32, 3, 0, 0, 4096)),
        (99, b""),
    ],
    ids=["unwanted", "eventfd", "memory", "unknown"],
)
def test_with_a_message(server, peer, lingering, hurry, command, body):
    with hurry(5):
        lingering().put(peer.sock, message(command, body))
        serve(server)
        assert len(peer.sock.recv(100)) == HEADER.size
    assert server.closing == 1


def test_in_the_middle_of_a_message(server, peer, lingering, hurry):
    with hurry(5):
        whole = message(Command.REGION_WRITE, bytes(64))
        peer.raw(whole[:20])
        lingering().put(peer.sock, whole[20:])
        serve(server)
    assert server.closing == 1


def test_out_of_band(server, peer, lingering, hurry):
    with hurry(5):
        lingering().put(peer.sock, b"x", socket.MSG_OOB)
        peer.raw(bytes(64))
        serve(server)


def test_more_than_may_come(server, peer, lingering, hurry):
    with hurry(5):
        lingering().put(peer.sock, message(Command.DEVICE_RESET), copies=200)
        serve(server)
    assert server.counters["dropped:too-many-fds"] == 1


def test_left_unread(server, peer, lingering, hurry):
    with hurry(5):
        peer.raw(message(Command.DEVICE_GET_INFO, b"") + bytes(64))  # nonsense, which ends the connection
        lingering().put(peer.sock, bytes(64))
        serve(server)
        assert server.client is None
        assert server.closing == 1
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(server.path))
            serve(server)
            assert server.counters["connected"] == 2


def test_with_one_who_is_told_to_go_or_never_let_in(server, peer, lingering, hurry):
    with hurry(5):
        other = socket.socket(socket.AF_UNIX)
        other.connect(str(server.path))
        lingering().put(other, message(Command.VERSION))
        serve(server)
        late = socket.socket(socket.AF_UNIX)
        late.connect(str(server.path))
        lingering().put(late, message(Command.VERSION))
        server.close()
        other.close()
        late.close()


def test_who_holds_up_too_much_is_let_in_no_more(server, peer, lingering, hurry):
    held = lingering()
    null = os.open("/dev/null", os.O_RDONLY)
    with hurry(20):
        held.put(peer.sock, message(Command.DEVICE_RESET))
        for _ in range(2):
            peer.raw(message(Command.DEVICE_RESET), [null] * 16)
        serve(server)
        assert server.counters["dropped:fds-not-closed"] == 1
        assert server.closing == 33, "one that lingers, and those behind it"
        again = socket.socket(socket.AF_UNIX)
        again.connect(str(server.path))
        serve(server)
        assert server.counters["connected"] == 1
        held.release()
        until = time.monotonic() + 10
        while server.counters["connected"] == 1 and time.monotonic() < until:
            serve(server)
        assert server.counters["connected"] == 2
        again.close()
    os.close(null)


def test_memory_that_is_mapped_is_closed_at_once(server, peer, lingering, hurry):
    """Else a client that maps page by page, as QEMU does for a guest's IOMMU, holds up too much on a busy machine."""
    with hurry(5):
        lingering().put(peer.sock, message(Command.DEVICE_RESET))  # the thread has no time
        serve(server)
        memory = memory_file(4096)
        for _ in range(100):
            peer.raw(message(Command.DMA_MAP, DMA_MAP.pack(32, 3, 0, 0, 4096)), [memory])
            peer.raw(message(Command.DMA_UNMAP, DMA_UNMAP.pack(24, 0, 0, 4096)))
            serve(server, 2)
        os.close(memory)
        assert server.client is not None, server.counters
        assert server.counters["DMA_UNMAP"] == 100
    assert server.closing == 1


def test_a_pipe_is_no_memory_and_no_eventfd(server, peer):
    ends = os.pipe()
    with pytest.raises(ToldError) as caught:
        peer.map(0, 4096, ends[0])
    assert caught.value.errno == errno.EPERM
    for fd in ends:
        os.close(fd)
