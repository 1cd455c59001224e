"""Memory of the client: which maps are taken, which files are refused, what a device reads and writes through it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket

import pytest

from unit.vmm.vfio_user.peer import Peer, ToldError, memory_file, settle
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user import Server
from virtfn.vmm.vfio_user.messages import DMA_MAP, DMA_UNMAP, Command

M = 1 << 20


@pytest.fixture
def file():
    fd = memory_file(4 * M)
    yield fd
    os.close(fd)


def told(call, *args, **kwargs) -> int:
    with pytest.raises(ToldError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def test_memory_is_shared(peer, file, mapper, board):
    peer.map(0, 0xA0000, file)
    peer.map(0xC0000, 2 * M - 0xC0000, file, 0xC0000)
    assert board.events[1:] == [("mapped", 0, 0xA0000, 3), ("mapped", 0xC0000, 2 * M - 0xC0000, 3)]
    os.pwrite(file, b"from the guest", 0xC0010)
    assert mapper.read(0xC0010, 14) == b"from the guest"
    assert mapper.write(0x9FFFC, b"ours")
    assert os.pread(file, 4, 0x9FFFC) == b"ours"
    assert mapper.read(0x9FFFC, 5) is None, "a hole"
    assert mapper.write(0x9FFFE, b"over") is False
    assert os.pread(file, 4, 0x9FFFC) == b"ours"
    assert mapper.read(0xBFFFF, 2) is None
    assert mapper.read(2 * M, 1) is None
    assert mapper.read((1 << 64) - 1, 1) is None
    assert mapper.read(0, 0) == b""


def test_accesses_across_ranges(peer, file, mapper):
    peer.map(M, M, file)
    peer.map(2 * M, M, file, 3 * M)
    assert mapper.write(2 * M - 3, b"abcdef")
    assert os.pread(file, 3, M - 3) == b"abc"
    assert os.pread(file, 3, 3 * M) == b"def"
    assert mapper.read(2 * M - 3, 6) == b"abcdef"


def test_permissions(peer, file, mapper):
    peer.map(0, M, file, prot=1)
    peer.map(M, M, file, prot=2)
    assert mapper.read(0, 4) == bytes(4)
    assert not mapper.write(0, b"x")
    assert mapper.write(M, b"x")
    assert mapper.read(M, 1) is None
    assert not mapper.write(M - 1, b"xx")


def test_a_file_is_mapped_once_and_let_go(peer, file, mapper):
    for iova in (0, M, 2 * M):
        peer.map(iova, M, file, iova)
    assert len(mapper._files) == 1
    peer.unmap(0, M)
    peer.unmap(2 * M, M)
    assert mapper.read(M, 1) == b"\0"
    assert mapper.read(0, 1) is None
    peer.unmap(M, M)
    assert len(mapper._files) == 0


def test_a_file_that_grew(peer, file, mapper):
    peer.map(0, M, file)
    os.ftruncate(file, 8 * M)
    peer.map(7 * M, M, file, 7 * M)
    os.pwrite(file, b"new", 7 * M)
    assert mapper.read(7 * M, 3) == b"new"
    assert mapper.read(0, 1) == b"\0"


def test_too_much_address_space(peer, mapper):
    fd = memory_file(1 << 40)
    assert told(peer.map, 0, M, fd) == errno.ENOMEM
    os.close(fd)
    small = [memory_file(24 * M) for _ in range(3)]
    peer.map(0, M, small[0])
    peer.map(M, M, small[1])
    assert told(peer.map, 2 * M, M, small[2]) == errno.ENOMEM
    peer.unmap(0, M)
    peer.map(2 * M, M, small[2])
    for fd in small:
        os.close(fd)


def test_unmap_answers_with_the_request(peer, file, board, mapper):
    peer.map(0, M, file)
    seen = []
    board.dma_unmapped = lambda iova, size: seen.append((iova, size, mapper.read(0, 1)))
    assert peer.unmap(0, M) == DMA_UNMAP.pack(24, 0, 0, M)
    assert seen == [(0, M, b"\0")], "the device hears while the memory is still there"
    assert peer.unmap(0, M) == DMA_UNMAP.pack(24, 0, 0, M), "as of a space that a guest's IOMMU empties once more"
    assert len(seen) == 1


def test_unmap_takes_all_that_is_inside_and_nothing_else(peer, file, board):
    for n in (1, 2, 4):
        peer.map(n * M, M, file)
    gone = []
    board.dma_unmapped = lambda iova, size: gone.append((iova, size))
    peer.unmap(0, M)
    peer.unmap(3 * M, M)
    assert gone == []
    peer.unmap(0, 4 * M)
    assert gone == [(M, M), (2 * M, M)]
    peer.map(M, 2 * M, file)
    peer.unmap(0, 1 << 48)
    assert gone[2:] == [(M, 2 * M), (4 * M, M)]
    peer.unmap((1 << 64) - 4096, 4096)


def test_unmap_of_what_cannot_be(peer, file):
    peer.map(M, M, file)
    cut = ((M, M // 2), (M + 4096, M - 4096), (M + 4096, 4096), (0, M + 4096), (M + 4096, M))
    for iova, size in (*cut, (0, 0), (M, 0), (M, M + 1), (1, M), ((1 << 64) - 4096, 8192)):
        assert told(peer.unmap, iova, size) == errno.EINVAL
    assert told(peer.unmap, M, M, flags=4) == errno.EINVAL
    assert told(peer.unmap, M, M, flags=1) == errno.ENOTSUP
    assert told(peer.call, Command.DMA_UNMAP, DMA_UNMAP.pack(20, 0, M, M)) == errno.EINVAL
    assert told(peer.call, Command.DMA_UNMAP, DMA_UNMAP.pack(24, 0, M, M) + b"x") == errno.EINVAL
    assert told(peer.call, Command.DMA_UNMAP, bytes(23)) == errno.EINVAL
    peer.unmap(M, M)


def test_unmap_all(peer, file, board, server):
    peer.map(0, M, file)
    peer.map(2 * M, M)
    assert told(peer.unmap, 0, M, flags=2) == errno.EINVAL
    peer.unmap(0, 0, flags=2)
    assert board.events[-2:] == [("unmapped", 0, M), ("unmapped", 2 * M, M)]
    assert len(server.client.ranges) == 0
    peer.unmap(0, 0, flags=2)


def test_memory_without_a_file(peer, mapper, server):
    peer.map(0xFD000000, 0x1000000)
    assert [(r.iova, r.size, r.prot, r.mapped) for r in server.client.ranges] == [(0xFD000000, 0x1000000, 3, False)]
    assert mapper.read(0xFD000000, 4) is None
    assert told(peer.map, 0xFD000000, 0x1000) == errno.EEXIST
    peer.unmap(0xFD000000, 0x1000000)


@pytest.mark.parametrize(("iova", "size"), [(M, M), (M + 4096, 4096), (0, 4 * M), (0, M + 4096), (2 * M - 4096, M)])
def test_maps_that_overlap(peer, file, iova, size):
    peer.map(M, M, file)
    assert told(peer.map, iova, size) == errno.EEXIST
    peer.map(0, M, file)
    peer.map(2 * M, M, file)


@pytest.mark.parametrize(
    ("iova", "size", "offset", "prot"),
    [
        (0, 0, 0, 3),
        (1, 4096, 0, 3),
        (0, 4095, 0, 3),
        (0, 4096, 512, 3),
        (0, 4096, 0, 0),
        (0, 4096, 0, 4),
        (0, 4096, 0, 0xFFFFFFFF),
        ((1 << 64) - 4096, 8192, 0, 3),
        (0, 4096, (1 << 64) - 4096, 3),
        (4096, (1 << 64) - 4096, 0, 3),
        (0, 4096, 4 * M, 3),
        (0, 4 * M, 4096, 3),
    ],
)
def test_maps_that_cannot_be(peer, file, server, iova, size, offset, prot):
    assert told(peer.map, iova, size, file, offset, prot) == errno.EINVAL
    assert len(server.client.ranges) == 0


def test_maps_at_the_ends_of_the_address_space(peer, file, mapper):
    peer.map((1 << 64) - 4096, 4096, file)
    assert mapper.write((1 << 64) - 4, b"last")
    assert mapper.read((1 << 64) - 4, 5) is None
    peer.map(0, (1 << 64) - 4096)


def test_maps_of_wrong_form(peer, file):
    good = DMA_MAP.pack(32, 3, 0, 0, 4096)
    assert told(peer.call, Command.DMA_MAP, good, [file, file]) == errno.EINVAL
    assert told(peer.call, Command.DMA_MAP, good[:-1]) == errno.EINVAL
    assert told(peer.call, Command.DMA_MAP, good + good) == errno.EINVAL
    assert told(peer.call, Command.DMA_MAP, DMA_MAP.pack(31, 3, 0, 0, 4096)) == errno.EINVAL


def test_the_number_of_maps_is_bounded(peer, server):
    for n in range(8):
        peer.map(n << 20, 4096)
    assert told(peer.map, 8 << 20, 4096) == errno.ENOSPC
    peer.unmap(0, 4096)
    peer.map(8 << 20, 4096)


def bad_files(tmp_path):
    """Yield files of every bad sort, with the errno and the reason of each."""
    ends = os.pipe()
    yield ends[0], errno.EPERM, "map-not-a-memfd"
    yield ends[1], errno.EPERM, "map-not-a-memfd"
    yield os.open(tmp_path, os.O_RDONLY), errno.EPERM, "map-not-a-memfd"
    yield os.open("/dev/zero", os.O_RDWR), errno.EPERM, "map-not-a-memfd"
    yield os.eventfd(0), errno.EPERM, "map-not-a-memfd"
    yield socket.socket(socket.AF_UNIX).detach(), errno.EPERM, "map-not-a-memfd"
    yield memory_file(0), errno.EINVAL, "map-beyond-file"
    yield memory_file(4095), errno.EINVAL, "map-beyond-file"
    yield memory_file(M, seals=0), errno.EPERM, "map-can-shrink"
    yield memory_file(M, seals=fcntl.F_SEAL_GROW), errno.EPERM, "map-can-shrink"
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    yield os.open(path, os.O_RDWR), errno.EPERM, "map-not-a-memfd"
    good = memory_file(M)
    yield os.open(f"/proc/self/fd/{good}", os.O_RDONLY), errno.EACCES, "map-not-permitted"
    yield os.open(f"/proc/self/fd/{good}", os.O_PATH), errno.EPERM, "map-not-a-memfd"
    os.close(good)
    sealed = memory_file(M, seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    yield sealed, errno.ENOMEM, "failed"
    large = os.memfd_create("large", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(large, 1 << 30)
    fcntl.fcntl(large, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    yield large, errno.EINVAL, "map-large-pages"


def test_files_of_every_bad_sort(server, peer, tmp_path):
    for fd, number, reason in bad_files(tmp_path):
        assert told(peer.map, 0, 4096, fd) == number, reason
        assert server.counters[f"refused:{reason}"] > 0
        os.close(fd)
    assert len(server.client.ranges) == 0


def test_a_file_that_only_reads_is_read(peer, mapper):
    good = memory_file(M)
    fd = os.open(f"/proc/self/fd/{good}", os.O_RDONLY)
    peer.map(0, M, fd, prot=1)
    peer.map(M, M, good)
    os.pwrite(good, b"text", 0)
    assert mapper.read(0, 4) == b"text"
    assert mapper.write(M, b"TEXT")
    assert mapper.read(0, 4) == b"TEXT"
    os.close(fd)
    os.close(good)


def test_a_refusal_says_how_to_mend_it(server, peer):
    fd = memory_file(M, seals=0)
    assert told(peer.map, 0, M, fd) == errno.EPERM
    assert "memory-backend-memfd" in server.last_refusal
    os.close(fd)
    peer.close()
    assert "memory-backend-memfd" in server.last_refusal


def test_a_mapped_file_cannot_be_shrunk_any_more(peer, file, mapper):
    peer.map(0, 4 * M, file)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(file, 0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    assert mapper.write(4 * M - 1, b"x")


def test_memory_is_gone_with_the_client(server, board, mapper, file):
    with Peer(server) as peer:
        peer.map(0, M, file)
        peer.map(M, M)
    assert board.events[-3:] == [("unmapped", 0, M), ("unmapped", M, M), ("disconnected",)]
    assert mapper.read(0, 1) is None
    assert len(mapper._files) == 0
    with Peer(server) as peer:
        peer.map(0, M, file)
        assert mapper.read(0, 1) == b"\0"


class Arena:
    """A mapper of another kind: notes what it is told, keeps nothing."""

    def __init__(self, peer_is_quiet=lambda: True):
        self.calls = []
        self.failing = False
        self.quiet = peer_is_quiet

    def map(self, fd, offset, iova, size, prot):
        assert os.fstat(fd).st_size >= offset + size
        assert self.quiet(), "the client is answered afterwards"
        if self.failing:
            raise VirtfnError("no room", errno_name="ENOSPC")
        self.calls.append(("map", offset, iova, size, prot))

    def unmap(self, iova, size):
        assert self.quiet(), "the client is answered afterwards"
        self.calls.append(("unmap", iova, size))


def test_another_mapper(tmp_path, board, file):
    arena = Arena()
    with Server(tmp_path / "socket", board, mapper=arena) as server, Peer(server) as peer:

        def nothing_to_read():
            try:
                return not peer.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return True

        arena.quiet = nothing_to_read
        peer.map(0, M, file, M)
        peer.map(M, M)
        peer.unmap(M, M)
        peer.unmap(0, M)
        assert arena.calls == [("map", M, 0, M, mmap.PROT_READ | mmap.PROT_WRITE), ("unmap", 0, M)]
        arena.failing = True
        assert told(peer.map, 0, M, file) == errno.ENOSPC
        assert server.last_refusal == "no room"
        arena.failing = False
        peer.map(0, M, file)
        arena.quiet = lambda: True
        peer.close()
        settle(server)
        assert arena.calls[-1] == ("unmap", 0, M)
