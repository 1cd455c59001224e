"""DMA by messages: requests to the client, cut to what it takes, answered in any order, or not at all."""

from __future__ import annotations

import errno
import struct

import pytest

from unit.vmm.vfio_user.peer import Peer, settle
from virtfn.vmm.vfio_user import Limits, Server
from virtfn.vmm.vfio_user.messages import DMA_ACCESS, NO_REPLY, Command

READ, WRITE = Command.DMA_READ, Command.DMA_WRITE


@pytest.fixture
def results():
    return []


@pytest.fixture
def done(results):
    return lambda data, number: results.append((data, number))


def test_read(peer, board, results, done):
    board.client.dma_read(0x1234, 5, done)
    header, address, count, data = peer.take_dma(READ)
    assert (address, count, data, header.flags, header.size) == (0x1234, 5, b"", 0, 32)
    assert results == []
    peer.answer(header, DMA_ACCESS.pack(address, count) + b"hello")
    settle(peer.server)
    assert results == [(b"hello", 0)]


@pytest.mark.parametrize("body", [b"", DMA_ACCESS.pack(64, 4), struct.pack("<QI", 64, 4)])
def test_write(peer, board, results, done, body):
    board.client.dma_write(64, b"data", done)
    header, *rest = peer.take_dma(WRITE)
    assert rest == [64, 4, b"data"]
    peer.answer(header, body)
    settle(peer.server)
    assert results == [(b"", 0)]


def test_a_message_signalled_interrupt(peer, board):
    board.client.dma_write(0xFEE01000, (0x4021).to_bytes(4, "little"))
    header, address, count, data = peer.take_dma(WRITE)
    assert (header.flags, header.size) == (NO_REPLY, 36)
    assert (address, count, data) == (0xFEE01000, 4, b"\x21\x40\0\0")
    assert peer.quiet()


def test_large_transfers_are_cut(server, board, results, done):
    with Peer(server, max_data_xfer_size=4096) as peer:
        board.client.dma_read(1 << 32, 10_000, done)
        asked = [peer.take_dma(READ) for _ in range(3)]
        assert [(a, c) for _, a, c, _ in asked] == [(1 << 32, 4096), (4096 + (1 << 32), 4096), (8192 + (1 << 32), 1808)]
        for n in (2, 0, 1):
            header, address, count, _ = asked[n]
            assert results == []
            peer.answer(header, DMA_ACCESS.pack(address, count) + bytes([n]) * count)
            settle(server)
        assert results.pop() == (b"\0" * 4096 + b"\1" * 4096 + b"\2" * 1808, 0)
        board.client.dma_write(0, bytes(5000), done)
        board.client.dma_write(0, bytes(5000))
        sizes = [(h.flags, c) for h, _, c, _ in (peer.take_dma(WRITE) for _ in range(4))]
        assert sizes == [(0, 4096), (0, 904), (NO_REPLY, 4096), (NO_REPLY, 904)]


def test_answers_fit_a_socket_whole(peer, board, done):
    board.client.dma_read(0, 100_000, done)
    asked = [peer.take_dma(READ) for _ in range(4)]
    assert [count for _, _, count, _ in asked] == [32768, 32768, 32768, 1696]


def test_an_error_of_one_part_is_the_transfers(server, board, results, done):
    with Peer(server, max_data_xfer_size=4096) as peer:
        board.client.dma_read(0, 8192, done)
        (first, *_), (second, address, count, _) = peer.take_dma(READ), peer.take_dma(READ)
        peer.answer(first, number=errno.EFAULT)
        settle(server)
        assert results == []
        peer.answer(second, DMA_ACCESS.pack(address, count) + bytes(count))
        settle(server)
        assert results == [(b"", errno.EFAULT)]


@pytest.mark.parametrize(
    "body",
    [b"", DMA_ACCESS.pack(64, 4), DMA_ACCESS.pack(64, 4) + b"abc", DMA_ACCESS.pack(64, 4) + b"abcde",
     DMA_ACCESS.pack(65, 4) + b"abcd", DMA_ACCESS.pack(64, 5) + b"abcd"],
)  # fmt: skip
def test_a_wrong_answer(peer, board, server, results, done, body):
    board.client.dma_read(64, 4, done)
    header, *_ = peer.take_dma(READ)
    peer.answer(header, body)
    settle(server)
    assert results == [(b"", errno.EIO)]
    assert server.counters["refused:wrong-reply"] == 1


def test_answers_that_nobody_asked_for(peer, board, server, results, done):
    board.client.dma_read(64, 4, done)
    header, *_ = peer.take_dma(READ)
    peer.answer(header._replace(id=header.id + 1), bytes(20))
    peer.answer(header._replace(command=WRITE), bytes(20))
    peer.answer(header._replace(command=99), bytes(20))
    settle(server)
    assert results == []
    assert server.counters["refused:unexpected-reply"] == 3
    peer.answer(header, DMA_ACCESS.pack(64, 4) + b"good")
    peer.answer(header, DMA_ACCESS.pack(64, 4) + b"more")
    settle(server)
    assert results == [(b"good", 0)]
    assert server.counters["refused:unexpected-reply"] == 4


def test_transfers_of_nothing_and_nowhere(peer, board, results, done):
    board.client.dma_read(0, 0, done)
    board.client.dma_write(0, b"", done)
    board.client.dma_read((1 << 64) - 4, 5, done)
    board.client.dma_write(-1, b"x", done)
    board.client.dma_write(0, b"")
    assert results == [(b"", 0), (b"", 0), (b"", errno.EFAULT), (b"", errno.EFAULT)]
    assert peer.quiet()


def test_transfers_end_with_the_client(server, board, results, done):
    with Peer(server) as peer:
        client = board.client
        client.dma_read(0, 4, lambda data, number: (done(data, number), client.dma_read(0, 4, done)))
        client.dma_write(0, b"x", done)
        assert not peer.quiet()
    assert sorted(results) == [(b"", errno.ECONNRESET), (b"", errno.ECONNRESET), (b"", errno.ENOTCONN)]
    client.dma_read(0, 4, done)
    client.dma_write(0, b"x", done)
    client.dma_write(0, b"x")
    assert results[3:] == [(b"", errno.ENOTCONN)] * 2


def test_too_many_transfers(tmp_path, board, results, done):
    with Server(tmp_path / "socket", board, limits=Limits(max_transfers=4)) as server, Peer(server) as peer:
        for _ in range(5):
            board.client.dma_read(0, 4, done)
        assert results == [(b"", errno.EAGAIN)]
        header, address, count, _ = peer.take_dma(READ)
        peer.answer(header, DMA_ACCESS.pack(address, count) + bytes(4))
        settle(server)
        board.client.dma_read(0, 4, done)
        assert results == [(b"", errno.EAGAIN), (bytes(4), 0)]
        results.clear()
        board.client.dma_write(0, bytes(5 << 20), done)
        assert results == [(b"", errno.EAGAIN)]


def test_a_request_is_not_kept_waiting_for_an_answer(peer, board, results, done):
    board.client.dma_read(0, 4, done)
    number = peer.send(Command.DEVICE_RESET)
    header, *_ = peer.take_dma(READ)
    answer, _, _ = peer.take()
    assert (answer.id, answer.command) == (number, Command.DEVICE_RESET)
    peer.answer(header, DMA_ACCESS.pack(0, 4) + b"late")
    settle(peer.server)
    assert results == [(b"late", 0)]


def test_numbers_come_round(peer, board, server, results, done):
    board.client.dma_read(0, 4, done)
    kept, *_ = peer.take_dma(READ)
    for _ in range(0x10000):
        board.client.dma_write(0, b"x")
        peer.sock.recv(33)
    board.client.dma_read(8, 4, done)
    other, *_ = peer.take_dma(READ)
    assert other.id != kept.id
    peer.answer(other, DMA_ACCESS.pack(8, 4) + b"2222")
    peer.answer(kept, DMA_ACCESS.pack(0, 4) + b"1111")
    settle(server)
    assert results == [(b"2222", 0), (b"1111", 0)]


@pytest.mark.parametrize(("number", "seen"), [(0xFFFFFFFF, errno.EIO), (4096, errno.EIO), (errno.EPERM, errno.EPERM)])
def test_an_error_has_an_errno_that_exists(peer, board, results, done, number, seen):
    board.client.dma_write(0, b"x", done)
    header, *_ = peer.take_dma(WRITE)
    peer.answer(header, number=number)
    settle(peer.server)
    assert results == [(b"", seen)]
