"""Each request of the protocol: what it answers, and each errno."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from unit.vmm.vfio_user.peer import Peer, ToldError, settle, version
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user import RefusedError, split
from virtfn.vmm.vfio_user.messages import (
    DEVICE_INFO,
    IRQ_INFO,
    MULTI_WRITE,
    NO_REPLY,
    REGION_ACCESS,
    REGION_INFO,
    VERSION,
    Command,
)


def told(call, *args, **kwargs) -> int:
    with pytest.raises(ToldError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


# VERSION.


def test_version_as_qemu_sends_it(server):
    offer = {
        "pgsizes": 4096,
        "max_msg_fds": 16,
        "max_dma_maps": 65535,
        "max_data_xfer_size": 1048576,
        "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
        "write_multiple": True,
    }
    with Peer(server, hello=False) as peer:
        answer = peer.call(Command.VERSION, version(offer, minor=3))
        assert VERSION.unpack_from(answer) == (0, 0)
        assert answer.endswith(b"\0")
    with Peer(server, **offer) as peer:
        assert peer.offered == {
            "max_msg_fds": 16,
            "max_data_xfer_size": 1 << 20,
            "max_dma_maps": 8,
            "write_multiple": True,
            "pgsizes": 4096,
        }
        assert told(peer.call, Command.VERSION, version(offer)) == errno.EINVAL, "once"
        assert server.client is not None


def test_what_a_client_leaves_out(server):
    for body in (VERSION.pack(0, 0), VERSION.pack(0, 0) + b"\0", VERSION.pack(0, 0) + b"{}\0", version({})):
        with Peer(server, hello=False) as peer:
            peer.call(Command.VERSION, body)
            capabilities = server.client.capabilities
            assert (capabilities.max_msg_fds, capabilities.max_data_xfer_size) == (1, 1 << 20)
            assert (capabilities.max_dma_maps, capabilities.write_multiple) == (65535, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0",
        VERSION.pack(1, 0) + b"{}\0",
        VERSION.pack(0, 0) + b"{}",
        VERSION.pack(0, 0) + b"[]\0",
        VERSION.pack(0, 0) + b"nonsense\0",
        VERSION.pack(0, 0) + b"\xff\xfe\0",
        VERSION.pack(0, 0) + b"[" * 3000 + b"\0",
        VERSION.pack(0, 0) + b'{"capabilities": ' + b"9" * 3000 + b"}\0",
        VERSION.pack(0, 0) + b'{"capabilities": []}\0',
        version({"max_msg_fds": -1}),
        version({"max_msg_fds": True}),
        version({"max_msg_fds": 1.5}),
        version({"max_data_xfer_size": 0}),
        version({"max_data_xfer_size": 1 << 70}),
        version({"max_dma_maps": "many"}),
        version({"write_multiple": 1}),
        version({"pgsizes": 1 << 21}),
    ],
)
def test_a_version_that_cannot_be_served(server, body):
    with Peer(server, hello=False) as peer:
        assert told(peer.call, Command.VERSION, body) == errno.EINVAL
        assert peer.ended()
    assert server.counters["dropped:no-version"] == 1
    assert server.last_refusal
    Peer(server).close()


def test_a_version_too_large(server):
    with Peer(server, hello=False) as peer:
        peer.send(Command.VERSION, version({"x": "y" * 5000}))
        assert peer.ended()
    assert server.counters["dropped:oversized-message"] == 1


def test_nothing_before_version(server, board):
    for command in (*Command, 0, 999):
        if command != Command.VERSION:
            with Peer(server, hello=False) as peer:
                peer.send(command, bytes(16))
                assert peer.ended()
    with Peer(server, hello=False) as peer:
        peer.send(Command.DMA_READ, flags=1)
        assert peer.ended()
    assert board.events == []
    assert server.counters["dropped:no-version"] == len(Command) + 2


# What the device is.


def test_device_info(peer):
    answer = peer.call(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0))
    assert DEVICE_INFO.unpack(answer) == (16, 3, 9, 5)
    assert told(peer.call, Command.DEVICE_GET_INFO, DEVICE_INFO.pack(15, 0, 0, 0)) == errno.EINVAL
    assert told(peer.call, Command.DEVICE_GET_INFO, b"") == errno.EINVAL


def test_region_info_in_two_steps(peer, board):
    head, fds = peer.region_info(0)
    assert REGION_INFO.unpack(head) == (80, 0xF, 0, 32, 0x8000, 0)
    assert fds == [], "nothing but the size that is needed"
    whole, fds = peer.region_info(0, argsz=80)
    assert whole[:32] == head
    assert struct.unpack("<HHIII", whole[32:48]) == (1, 1, 0, 2, 0)
    assert struct.unpack("<QQQQ", whole[48:]) == (0x2000, 0x2000, 0x6000, 0x1000)
    (fd,) = fds
    assert os.fstat(fd).st_ino == os.fstat(board.file).st_ino
    os.close(fd)


def test_region_info_of_other_kinds(peer):
    whole, (fd,) = peer.region_info(2)
    assert REGION_INFO.unpack(whole) == (32, 7, 2, 0, 0x4000, 0x4000)
    os.close(fd)
    assert REGION_INFO.unpack(peer.region_info(4)[0]) == (32, 1, 4, 0, 0x1000, 0)
    assert REGION_INFO.unpack(peer.region_info(7)[0]) == (32, 3, 7, 0, 0x1000, 0)
    assert REGION_INFO.unpack(peer.region_info(1)[0]) == (32, 0, 1, 0, 0, 0)
    assert REGION_INFO.unpack(peer.region_info(8)[0]) == (32, 0, 8, 0, 0, 0)
    assert told(peer.region_info, 9) == errno.EINVAL
    assert told(peer.region_info, 0, argsz=31) == errno.EINVAL


def test_irq_info(peer):
    def ask(index, argsz=16):
        return IRQ_INFO.unpack(peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(argsz, 0, index, 0)))

    assert ask(0) == (16, 7, 0, 1)
    assert ask(2) == (16, 1, 2, 3)
    assert ask(4) == (16, 1, 4, 0)
    assert told(ask, 5) == errno.EINVAL
    assert told(ask, 2, argsz=8) == errno.EINVAL


def test_what_is_not_offered(peer, server):
    region_fds = struct.pack("<IIII", 4096, 0, 0, 0)
    assert told(peer.call, Command.DEVICE_GET_REGION_IO_FDS, region_fds) == errno.ENOTSUP
    for command in (Command.DIRTY_PAGES, Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE,
                    Command.DMA_READ, Command.DMA_WRITE):  # fmt: skip
        assert told(peer.call, command, bytes(24)) == errno.ENOTSUP
    for command in (0, 19, 0xFFFF):
        assert told(peer.call, command, bytes(24)) == errno.ENOSYS
    assert server.counters["refused:not-supported"] == 7
    assert server.counters["UNKNOWN"] == 3


def test_reset(peer, board):
    assert peer.call(Command.DEVICE_RESET) == b""
    assert board.events[-1] == ("reset",)
    assert told(peer.call, Command.DEVICE_RESET, b"x") == errno.EINVAL


# Accesses.


def test_accesses(peer, board):
    peer.write(0, 0x10, b"\x01\x02\x03\x04")
    assert peer.read(0, 0x12, 2) == b"\x03\x04"
    peer.write(7, 0xFFC, b"last")
    peer.write(0, 0x20, b"x", posted=True)
    assert peer.quiet()
    assert board.events[1:] == [
        ("write", 0, 0x10, b"\x01\x02\x03\x04"),
        ("read", 0, 0x12, 2),
        ("write", 7, 0xFFC, b"last"),
        ("write", 0, 0x20, b"x"),
    ]
    assert len(peer.read(7, 0, 4096)) == 4096


@pytest.mark.parametrize(
    ("region", "offset", "count", "number"),
    [
        (7, 0x1000, 1, errno.EINVAL),
        (7, 0xFFE, 4, errno.EINVAL),
        (7, (1 << 64) - 2, 4, errno.EINVAL),
        (7, 0, 0, errno.EINVAL),
        (0, 0, 0xFFFFFFFF, errno.EINVAL),
        (1, 0, 4, errno.EINVAL),
        (9, 0, 4, errno.EINVAL),
        (0xFFFFFFFF, 0, 4, errno.EINVAL),
    ],
)
def test_accesses_to_nowhere(peer, board, region, offset, count, number):
    assert told(peer.call, Command.REGION_READ, REGION_ACCESS.pack(offset, region, count)) == number
    if count < 5:
        assert told(peer.write, region, offset, bytes(count)) == number
    assert board.events == [("connected",)]


def test_accesses_of_wrong_form(peer):
    assert told(peer.write, 4, 0, b"x") == errno.EACCES
    assert peer.read(4, 0, 1) == b"\0"
    assert told(peer.call, Command.REGION_READ, bytes(15)) == errno.EINVAL
    assert told(peer.call, Command.REGION_READ, bytes(17)) == errno.EINVAL
    assert told(peer.call, Command.REGION_WRITE, REGION_ACCESS.pack(0, 7, 8) + bytes(7)) == errno.EINVAL
    assert told(peer.call, Command.REGION_WRITE, REGION_ACCESS.pack(0, 7, 8) + bytes(9)) == errno.EINVAL


def test_a_device_that_refuses_or_fails(peer, board, server):
    board.failing = RefusedError(errno.EBUSY, "busy")
    assert told(peer.read, 7, 0, 4) == errno.EBUSY
    board.failing = VirtfnError("broken")
    assert told(peer.write, 7, 0, b"x") == errno.EIO
    assert server.last_refusal == "broken"
    board.failing = VirtfnError("full", errno_name="ENOSPC")
    assert told(peer.write, 7, 0, b"x") == errno.ENOSPC
    board.failing = None
    board.region_read = lambda *_: b"short"
    assert told(peer.read, 7, 0, 4) == errno.EIO


def multi(*writes: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    return struct.pack("<Q", len(writes) if count is None else count) + b"".join(MULTI_WRITE.pack(*w) for w in writes)


def test_many_writes_in_one(peer, board):
    body = multi((0, 7, 4, b"abcd"), (8, 0, 8, b"12345678"), (4, 7, 1, b"x"))
    assert peer.call(Command.REGION_WRITE_MULTI, body) == struct.pack("<Q", 3)
    assert board.events[1:] == [("write", 7, 0, b"abcd"), ("write", 0, 8, b"12345678"), ("write", 7, 4, b"x")]
    peer.send(Command.REGION_WRITE_MULTI, body, flags=NO_REPLY)
    assert peer.quiet()
    assert len(board.events) == 7


@pytest.mark.parametrize(
    ("body", "number"),
    [
        (b"", errno.EINVAL),
        (multi(), errno.E2BIG),
        (multi((0, 7, 4, b""), count=1 << 62), errno.E2BIG),
        (multi((0, 7, 4, b""), count=2), errno.EINVAL),
        (multi((0, 7, 4, b""), (0, 7, 4, b""), count=1), errno.EINVAL),
        (multi((0, 7, 4, b""), (0, 7, 9, b"")), errno.EINVAL),
        (multi((0, 7, 4, b""), (0, 4, 4, b"")), errno.EACCES),
        (multi((0, 7, 4, b""), (0xFFF, 7, 4, b"")), errno.EINVAL),
    ],
)
def test_many_writes_of_wrong_form_write_nothing(peer, board, body, number):
    assert told(peer.call, Command.REGION_WRITE_MULTI, body) == number
    assert board.events == [("connected",)]


def test_split():
    assert list(split(0, 8)) == [(0, 4), (4, 4)]
    assert list(split(1, 6)) == [(1, 1), (2, 2), (4, 2), (6, 1)]
    assert list(split(8, 16, widest=8)) == [(8, 8), (16, 8)]
    assert list(split(3, 0)) == []


def test_counters_are_a_plain_copy(server, peer):
    settle(server)
    counters = server.counters
    counters.clear()
    assert server.counters == {"connected": 1, "VERSION": 1}
