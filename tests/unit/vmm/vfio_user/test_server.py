"""The socket: who may connect, one client at a time, what happens when it stalls, dies, or talks nonsense."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest

from unit.vmm.vfio_user.peer import Board, Peer, ToldError, open_fds, settle, version
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user import Limits, Region, Server, shared_memory
from virtfn.vmm.vfio_user.messages import HEADER, NO_REPLY, REGION_ACCESS, Command


def test_the_socket_is_private_and_removed(tmp_path, board):
    path = tmp_path / "socket"
    old = os.umask(0)
    try:
        server = Server(path, board)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.close()
    assert not path.exists()
    server.close()
    assert server.serve() == 0


def test_a_stale_socket_is_replaced_and_nothing_else(tmp_path, board):
    path = tmp_path / "socket"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with Server(path, board), pytest.raises(VirtfnError, match="another server listens"):
        Server(path, board)
    path.write_text("precious")
    with pytest.raises(VirtfnError, match="not a socket"):
        Server(path, board)
    assert path.read_text() == "precious"
    with pytest.raises(VirtfnError, match="cannot listen"):
        Server(tmp_path / "nowhere" / "socket", board)
    with pytest.raises(VirtfnError, match="cannot listen"):
        Server(tmp_path / ("x" * 200), board)


def test_a_successors_socket_is_left_alone(tmp_path, board):
    first = Server(tmp_path / "socket", board)
    first.path.unlink()
    with Server(tmp_path / "socket", board) as second:
        first.close()
        Peer(second).close()


def test_one_client_at_a_time(server, peer):
    with Peer(server, hello=False) as second:
        for _ in range(2):
            with pytest.raises(ToldError) as told:
                second.call(Command.VERSION, version({}))
            assert told.value.errno == errno.EBUSY
        second.send(Command.VERSION, version({}), flags=NO_REPLY)
        assert second.quiet()
        second.send(Command.VERSION, bytes(5000))
        assert second.ended()
    assert server.counters["turned-away"] == 1
    assert peer.read(7, 0, 4) == bytes(4)
    peer.close()
    with Peer(server) as third:
        assert third.read(7, 0, 4) == bytes(4)
    assert server.counters["connected"] == 2
    assert server.counters["dropped:client-closed"] == 2


def test_few_others_are_kept_at_the_door(server, peer):
    before = open_fds()
    others = [Peer(server, hello=False) for _ in range(20)]
    assert open_fds() == before + 20 + 4, "each has a socket here, four have one at the server"
    assert [other.ended() for other in others] == [True] * 16 + [False] * 4
    others[-1].raw(bytes(3))
    assert peer.read(7, 0, 4) == bytes(4)
    for other in others:
        other.close()
    assert open_fds() == before
    assert server.counters["turned-away"] == 20


def test_the_next_client_waits_for_what_the_last_one_left(server, board):
    first = Peer(server)
    for n in range(100):
        first.write(7, 0, bytes([n]), posted=True)
    first.sock.close()
    second = socket.socket(socket.AF_UNIX)
    second.connect(str(server.path))
    assert server.serve(budget=10) == 10
    assert "turned-away" not in server.counters
    settle(server)
    assert board.memory[0] == 99, "posted writes count, also those of a dead client"
    assert server.counters["connected"] == 2
    second.close()


def test_who_has_hung_up_at_the_door_keeps_nobody_out(server):
    for _ in range(3):
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(str(server.path))
        gone.close()
    Peer(server).close()
    assert "turned-away" not in server.counters


def test_the_device_hears_of_the_client(server, board):
    assert server.client is None
    with Peer(server, hello=False):
        assert server.client is None
    assert board.events == [], "without VERSION there was no client"
    with Peer(server):
        assert server.client is board.client is not None
    assert board.events == [("connected",), ("disconnected",)]
    assert server.client is None


def test_a_call_is_bounded(server, peer):
    for _ in range(100):
        peer.write(7, 0, b"x", posted=True)
    assert server.serve(budget=30) == 30
    assert server.serve(budget=30) == 30
    assert settle(server) == 40


def test_messages_in_pieces(server, peer):
    body = REGION_ACCESS.pack(0x40, 7, 8) + b"12345678"
    content = HEADER.pack(9, Command.REGION_WRITE, HEADER.size + len(body), 0, 0) + body
    for byte in content:
        assert peer.quiet()
        peer.raw(bytes([byte]))
    header, answer, _ = peer.take()
    assert (header.id, answer) == (9, body[:16])
    peer.raw(content + content[:20])
    assert peer.take()[1] == body[:16]
    assert peer.quiet()
    peer.raw(content[20:])
    assert peer.take()[1] == body[:16]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HEADER.pack(1, 4, 15, 0, 0), "undersized-message"),
        (HEADER.pack(1, 4, 0, 0, 0), "undersized-message"),
        (HEADER.pack(1, 4, 1 << 31, 0, 0), "oversized-message"),
        (HEADER.pack(1, 4, 16, 2, 0), "unknown-message-type"),
        (HEADER.pack(1, 4, 16, 15, 0), "unknown-message-type"),
    ],
)
def test_a_stream_that_makes_no_sense_ends(server, peer, content, reason):
    peer.raw(content)
    assert peer.ended()
    assert server.counters[f"dropped:{reason}"] == 1
    Peer(server).close()


def test_a_message_cut_short(server, peer):
    peer.raw(HEADER.pack(1, 4, 32, 0, 0) + b"half")
    peer.close()
    assert server.counters["dropped:cut-message"] == 1


def test_too_many_descriptors_end_the_connection(server, peer):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(17)]
    try:
        peer.raw(HEADER.pack(1, Command.DEVICE_RESET, 16, 0, 0), fds)
        assert peer.ended()
        with Peer(server) as again:
            for fd in fds[:-1]:  # each byte of the header with one descriptor
                again.raw(b"\0", [fd])
            assert again.ended()
    finally:
        for fd in fds:
            os.close(fd)
    assert server.counters["dropped:too-many-fds"] == 1
    assert server.counters["dropped:undersized-message"] == 1


def test_descriptors_that_nobody_wants_are_closed(server, peer):
    fd = os.open("/dev/null", os.O_RDONLY)
    assert peer.call(Command.DEVICE_RESET, b"", [fd] * 16) == b""
    os.close(fd)
    assert server.counters["fds-not-wanted"] == 16


def test_a_client_that_never_reads_is_left_unread(tmp_path, board):
    limits = Limits(max_data_xfer_size=0x1000, max_output=128 << 10)
    with Server(tmp_path / "socket", board, limits=limits) as server, Peer(server) as peer:
        asked = 0
        try:
            while asked < 100_000:
                peer.send(Command.REGION_READ, REGION_ACCESS.pack(0, 7, 0x1000))
                asked += 1
                settle(server)
        except BlockingIOError:
            pass
        assert asked < 100_000, "requests pile up at the client"
        answered = len([e for e in board.events if e[0] == "read"])
        assert answered < asked
        for _ in range(asked):
            assert peer.take()[0].size == 32 + 0x1000
        assert len([e for e in board.events if e[0] == "read"]) == asked, "once it reads, all is answered"


def test_a_client_that_takes_nothing_is_dropped(tmp_path, board):
    with Server(tmp_path / "socket", board, limits=Limits(max_data_xfer_size=0x1000, max_output=128 << 10)) as server:
        with Peer(server) as peer:
            for _ in range(1000):
                if board.client is None:
                    break
                board.client.dma_write(0, bytes(0x1000))
                if board.client._connection.lost:
                    settle(server)
            assert board.client is None
            assert server.counters["dropped:stalled"] == 1
            assert peer.ended()
        Peer(server).close()


def test_a_client_that_dies_while_it_is_left_unread(tmp_path, board):
    with Server(tmp_path / "socket", board, limits=Limits(max_data_xfer_size=0x1000, max_output=128 << 10)) as server:
        peer = Peer(server)
        while not board.client._connection.paused:
            board.client.dma_write(0, bytes(0x1000))
        peer.close()
        assert board.client is None
        Peer(server).close()


def test_a_device_may_close_its_server(tmp_path, board):
    server = Server(tmp_path / "socket", board)
    peer = Peer(server)
    board.region_write = lambda *_: server.close()
    peer.write(7, 0, b"x", posted=True)
    server.serve()
    assert board.client is None
    assert not server.path.exists()
    peer.sock.close()


def test_a_server_that_closes_leaves_no_request_without_an_answer(tmp_path, board):
    """QEMU does not give up a request at the end of the stream: its processor would stand still until a timeout."""
    server = Server(tmp_path / "socket", board)
    peer = Peer(server)
    read = REGION_ACCESS.pack(0, 7, 4)
    asked = [peer.send(Command.REGION_READ, read) for _ in range(3)]
    peer.send(Command.REGION_WRITE, read + bytes(4), flags=NO_REPLY)
    server.close()
    with pytest.raises(BrokenPipeError):
        peer.send(Command.REGION_READ, read)
    for number in asked:
        header, _, _ = peer.take()
        assert (header.id, header.errno) == (number, errno.ENODEV)
    assert peer.ended()
    assert server.counters["refused:server-closed"] == 4
    peer.sock.close()


def test_a_request_whose_device_closes_the_server_is_answered(tmp_path, board):
    server = Server(tmp_path / "socket", board)
    peer = Peer(server)
    board.region_write = lambda *_: server.close()
    peer.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 7, 1) + b"x")
    assert peer.take()[0].errno == errno.ENODEV
    assert peer.ended()
    peer.sock.close()


def test_an_exception_of_the_device_leaves_the_server_in_order(server, peer, board):
    board.failing = KeyError("a bug")
    with pytest.raises(KeyError):
        peer.read(7, 0, 4)
    board.failing = None
    assert peer.read(7, 0, 4) == bytes(4)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Region(-1), "size"),
        (Region(0x1000, areas=((0, 0x1000),)), "need a file"),
        (Region(0x1000, fd=9999), "Bad file descriptor"),
        (Region(0x1000, fd=-2, fd_offset=0x1000, areas=((0, 0x1000),)), "Bad file descriptor"),
        ({"fd_offset": 5}, "file offset"),
        ({"areas": ((0x800, 0x1000),)}, "area"),
        ({"areas": ((0x1000, 0x2000),)}, "area"),
        ({"areas": ((0, 0),)}, "area"),
        ({"fd_offset": 0x1000}, "ends before"),
        ({"size": 0x1800}, "area"),
    ],
)
def test_regions_that_cannot_be(tmp_path, region, message):
    fd = shared_memory(0x2000)
    if isinstance(region, dict):
        region = Region(**{"size": 0x2000, "fd": fd, **region})
    board = Board()
    board.regions = lambda: {0: region}
    with pytest.raises(VirtfnError, match=message):
        Server(tmp_path / "socket", board)
    assert not (tmp_path / "socket").exists()
    os.close(fd)
    board.close()


def test_a_region_that_a_client_could_shrink_is_refused(tmp_path, board):
    for fd in (os.memfd_create("open"), os.open(tmp_path, os.O_RDONLY | os.O_TMPFILE | os.O_RDWR)):
        os.ftruncate(fd, 0x1000)
        board.regions = lambda fd=fd: {0: Region(0x1000, fd=fd)}
        with pytest.raises(VirtfnError, match="F_SEAL_SHRINK"):
            Server(tmp_path / "socket", board)
        os.close(fd)


@pytest.mark.parametrize("numbers", [{"max_msg_fds": 254}, {"max_data_xfer_size": 8}, {"max_output": 1 << 20}])
def test_limits_that_do_not_fit(numbers):
    with pytest.raises(VirtfnError):
        Limits(**numbers)


def test_no_answer_where_none_is_wanted(server, peer):
    peer.send(Command.DEVICE_GET_INFO, b"too short", flags=NO_REPLY)
    peer.send(Command.REGION_READ, REGION_ACCESS.pack(0, 7, 4), flags=NO_REPLY)
    peer.send(99, b"", flags=NO_REPLY)
    assert peer.quiet()
    assert server.counters["refused:wrong-size"] == 1
    assert server.counters["refused:unknown-command"] == 1
