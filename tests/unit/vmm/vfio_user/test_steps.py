"""Work that does not fit into a call goes on at the next one: in order, to its end, and readable until then."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterator

import pytest

from unit.vmm.vfio_user.peer import Board, Peer, ToldError, memory_file, open_fds, settle
from virtfn.vmm.vfio_user import MmapMapper, RefusedError, Server
from virtfn.vmm.vfio_user.messages import MULTI_COUNT, MULTI_WRITE, REGION_ACCESS, Command


class Patient(Board):
    """A device that does every access byte by byte, and refuses to write 0xEE."""

    def region_read(self, region, offset, count):
        read = bytearray()
        for at in range(offset, offset + count):
            read += super().region_read(region, at, 1)
            yield
        return bytes(read)

    def region_write(self, region, offset, data):
        for n, byte in enumerate(data):
            if byte == 0xEE:
                raise RefusedError(5, "cannot")
            super().region_write(region, offset + n, bytes([byte]))
            yield


class Slow(MmapMapper):
    """A mapper that rests between two halves."""

    def map(self, fd, offset, iova, size, prot):
        yield
        super().map(fd, offset, iova, size, prot)

    def unmap(self, iova, size):
        yield
        if iova in self._placed:
            super().unmap(iova, size)


@pytest.fixture
def board() -> Iterator[Patient]:
    made = Patient()
    yield made
    made.close()


@pytest.fixture
def mapper() -> Slow:
    return Slow()


@pytest.fixture
def server(tmp_path, board, mapper) -> Iterator[Server]:
    with Server(tmp_path / "socket", board, mapper=mapper) as made:
        yield made


def steps(count: int) -> Callable[[], bool]:
    """Let `count` steps be done in a call."""
    left = iter(range(count - 1))
    return lambda: next(left, None) is not None


def waiting(server: Server) -> bool:
    return bool(select.select([server], [], [], 0)[0])


def written(board: Board) -> list[int]:
    return [event[2] for event in board.events if event[0] == "write"]


def test_a_write_goes_on_where_it_stopped(server, board):
    with Peer(server) as peer:
        peer.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 8) + bytes(8))
        number = peer.send(Command.REGION_WRITE, REGION_ACCESS.pack(100, 0, 1) + b"x")
        for done in range(2, 9, 2):
            assert server.serve(1, steps(2)) == 1
            assert written(board) == list(range(done))
            assert waiting(server)
        settle(server)
        assert written(board) == [*range(8), 100], "in order"
        assert [peer.take()[0].id for _ in range(2)] == [number - 1, number]
        assert not waiting(server)


def test_a_read_is_whole(server, board):
    board.memory[:64] = bytes(range(64))
    with Peer(server) as peer:
        peer.send(Command.REGION_READ, REGION_ACCESS.pack(0, 0, 64))
        calls = 0
        while waiting(server):
            server.serve(1, steps(5))
            calls += 1
        assert calls > 10
        assert peer.take()[1][16:] == bytes(range(64))


def test_one_write_of_many_is_refused_as_ever(server, board):
    one = [MULTI_WRITE.pack(8 * n, 0, 2, bytes([1, 0xEE if n == 3 else 2])) for n in range(5)]
    with Peer(server) as peer:
        peer.send(Command.REGION_WRITE_MULTI, MULTI_COUNT.pack(5) + b"".join(one))
        while waiting(server):
            server.serve(1, steps(1))
        assert peer.take()[0].errno == 5
        assert written(board) == [0, 1, 8, 9, 16, 17, 24]


def test_what_a_client_said_before_it_left_is_done(server, board):
    peer = Peer(server)
    peer.write(0, 0, bytes(100), posted=True)
    server.serve(1, steps(10))
    peer.sock.close()
    settle(server)
    assert written(board) == list(range(100))
    assert board.client is None


def test_a_server_may_close_in_the_middle_of_anything(tmp_path, board):
    fd = memory_file(1 << 20)
    before = open_fds()
    for command, body, fds in (
        (Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 8) + bytes(8), []),
        (Command.DMA_MAP, bytes.fromhex("2000000003000000") + bytes(16) + (1 << 20).to_bytes(8, "little"), [fd]),
        (Command.DMA_UNMAP, bytes.fromhex("1800000002000000") + bytes(16), []),
    ):
        server = Server(tmp_path / "socket", board, mapper=(mapper := Slow()))
        peer = Peer(server)
        peer.map(1 << 20, 1 << 20, fd)
        peer.send(command, body, fds)
        server.serve(1, steps(1))
        assert waiting(server)
        server.close()
        assert peer.take()[0].errno == errno.ENODEV
        peer.sock.close()
        assert not mapper._placed
        assert board.client is None
        assert open_fds() == before


def test_the_next_client_waits_until_the_last_one_is_gone_altogether(server, board, mapper):
    fd = memory_file(1 << 20)
    peer = Peer(server)
    for n in range(4):
        peer.map(n << 20, 1 << 20, fd)
    peer.sock.close()
    server.serve(1, steps(2))
    assert board.client is not None
    assert server.client is None
    other = Peer(server)
    assert not mapper._placed
    assert other.read(0, 0, 1) == b"\0"
    assert board.client is server.client
    other.close()


def test_memory_comes_and_goes_in_steps(server, board, mapper):
    fd = memory_file(1 << 20)
    with Peer(server) as peer:
        peer.map(0, 1 << 20, fd)
        assert list(mapper._placed) == [0]
        with pytest.raises(ToldError):
            peer.map(0, 1 << 20, fd)
        peer.unmap(0, 0, 2)
        assert not mapper._placed
        peer.map(0, 1 << 20, fd)


def test_no_message_is_taken_by_others_in_the_middle_of_one(server, board):
    with Peer(server) as peer:
        assert board.client.borrow() >= 0
        peer.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 8) + bytes(8))
        server.serve(1, steps(2))
        assert board.client.borrow() == -1
        peer.take()
        assert board.client.borrow() >= 0
