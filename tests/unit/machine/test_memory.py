"""Host memory in pieces, guests' views of it, and what remains in memory that was given back: nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from virtfn.machine.memory import CHUNK, PAGE, GuestMemory, HostMemory, SharedRegion, view_bytes
from virtfn.machine.ports import VirtfnError


@pytest.fixture
def host():
    made = HostMemory(8 * CHUNK)
    yield made
    made.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_chunks_are_aligned_disjoint_and_run_out(host):
    chunks = host.alloc_chunks(8, random.Random(3))
    assert len(set(chunks)) == 8
    assert all(c % CHUNK == 0 and host.contains(c, CHUNK) for c in chunks)
    assert chunks != sorted(chunks)
    with pytest.raises(VirtfnError, match="exhausted") as caught:
        host.alloc_chunks(1)
    assert caught.value.errno_name == "ENOMEM"
    with pytest.raises(VirtfnError):
        host.alloc_page()


def test_memory_given_back_is_zero_and_costs_nothing(host):
    (chunk,) = host.alloc_chunks(1)
    view_bytes(chunk, CHUNK)[:] = 0xFF
    used = os.fstat(host.fd).st_blocks
    host.free_chunks([chunk])
    assert os.fstat(host.fd).st_blocks <= used - CHUNK // 512
    assert not view_bytes(chunk, CHUNK).any()


def test_pages_are_zeroed_when_they_are_taken(host):
    page = host.alloc_page()
    view_bytes(page, PAGE)[:] = 1
    host.free_page(page)
    assert host.alloc_page() == page
    assert not view_bytes(page, PAGE).any()


def test_contains_knows_the_ends(host):
    assert host.contains(host.base, host.size)
    assert not host.contains(host.base, host.size + 1)
    assert not host.contains(host.base - 1)


@pytest.mark.parametrize("chunk", [PAGE, CHUNK])
def test_the_guests_view_and_the_hosts_are_the_same_bytes(host, chunk):
    guest = GuestMemory(host, 2 * CHUNK, random.Random(5), chunk)
    for gpa, hpa, size in guest.mappings()[:: max(1, len(guest.pieces) // 16)]:
        guest.bytes[gpa] = gpa >> 12 & 0xFF
        assert view_bytes(hpa, 1)[0] == gpa >> 12 & 0xFF
        view_bytes(hpa, size)[size - 1] = 0x77
        assert guest.bytes[gpa + size - 1] == 0x77
    assert sum(size for _, _, size in guest.mappings()) == guest.size
    guest.close()
    guest.close()
    assert len(host.alloc_chunks(8)) == 8


@pytest.mark.parametrize(
    ("size", "chunk"), [(0, CHUNK), (-CHUNK, CHUNK), (CHUNK + 1, CHUNK), (CHUNK, 8192), (CHUNK, 0)]
)
def test_sizes_that_cannot_be_are_refused(host, size, chunk):
    with pytest.raises(VirtfnError) as caught:
        GuestMemory(host, size, random.Random(1), chunk)
    assert caught.value.errno_name == "EINVAL"


def test_a_guest_that_does_not_fit_leaves_nothing_behind(host):
    before = mappings()
    with pytest.raises(VirtfnError):
        GuestMemory(host, 9 * CHUNK, random.Random(1))
    assert mappings() == before
    assert len(host.alloc_chunks(8)) == 8


def test_a_view_that_cannot_be_mapped_gives_its_chunks_back(host, monkeypatch):
    def refuse(self):
        raise VirtfnError("cannot map", errno_name="ENOMEM")

    before = mappings()
    monkeypatch.setattr(GuestMemory, "_map_pieces", refuse)
    with pytest.raises(VirtfnError, match="cannot map"):
        GuestMemory(host, CHUNK, random.Random(1))
    assert mappings() == before
    assert len(host.alloc_chunks(8)) == 8


def test_closing_twice_is_harmless():
    memory, region = HostMemory(CHUNK), SharedRegion(100)
    assert region.size == PAGE
    for _ in range(2):
        memory.close()
        region.close()


def test_memory_that_the_system_does_not_have_is_a_clear_error():
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VirtfnError, match="cannot map") as caught:
        HostMemory(1 << 47)
    assert caught.value.errno_name == "ENOMEM"
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_shared_part_of_a_region_is_a_file_of_its_own():
    region = SharedRegion(4 * PAGE)
    fds = [region.share("test", PAGE * n, PAGE, lead=PAGE) for n in (1, 2)]
    region.bytes[:] = np.repeat(np.arange(4, dtype=np.uint8), PAGE)
    for n, fd in enumerate(fds, 1):
        assert os.pread(fd, 3 * PAGE, 0) == bytes(PAGE) + bytes([n]) * PAGE
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    os.pwrite(fds[0], b"x", PAGE)
    assert region.bytes[PAGE] == ord("x")
    region.close()


def test_pages_that_are_withdrawn_are_out_of_reach_and_keep_what_they_hold():
    region, before = SharedRegion(2 * PAGE), open_fds()
    kept = os.dup(region.share("test", PAGE, PAGE))
    region.bytes[PAGE] = 5
    region.withdraw(PAGE, PAGE)
    os.pwrite(kept, b"x", 0)
    assert region.bytes[PAGE] == 5
    again = region.share("test", PAGE, PAGE)
    os.pwrite(kept, b"y", 0)
    assert os.pread(again, 1, 0) == b"\x05"
    os.pwrite(again, b"z", 0)
    assert region.bytes[PAGE] == ord("z")
    os.close(kept)
    region.close()
    assert open_fds() == before


def test_memory_of_others_has_addresses_here():
    host = HostMemory(CHUNK, foreign=6 * CHUNK)
    room = host.room(6 * CHUNK)
    fd = os.memfd_create("other")
    os.ftruncate(fd, 3 * CHUNK)
    where = room.adopt(fd, 3 * CHUNK)
    assert where == host.base + CHUNK
    assert host.contains(where, 3 * CHUNK)
    os.pwrite(fd, b"theirs", 5)
    assert host.bytes[CHUNK + 5 : CHUNK + 11].tobytes() == b"theirs"
    host.bytes[CHUNK] = 7
    assert os.pread(fd, 1, 0) == b"\x07"
    second = room.adopt(fd, PAGE)
    with pytest.raises(VirtfnError, match="it may share 12 MiB in all") as caught:
        room.adopt(fd, 3 * CHUNK)
    assert caught.value.errno_name == "ENOMEM"
    room.abandon(where)
    assert not host.bytes[CHUNK : 4 * CHUNK].any()
    host.bytes[CHUNK] = 9
    assert os.pread(fd, 1, 0) == b"\x07"
    room.abandon(second)
    with pytest.raises(VirtfnError, match="nothing was adopted"):
        room.abandon(second)
    assert room.adopt(fd, 6 * CHUNK) == where, "the holes are one again"
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    room.abandon(where)
    with pytest.raises(VirtfnError, match="cannot map") as caught:
        room.adopt(read_only, CHUNK)
    assert caught.value.errno_name == "EACCES"
    assert len(host.alloc_chunks(1)) == 1
    host.close()
    os.close(read_only)
    os.close(fd)


def test_each_machine_has_a_room_of_its_own():
    host = HostMemory(CHUNK, foreign=8 * CHUNK)
    greedy, other = host.room(4 * CHUNK), host.room(3 * CHUNK + 1)
    with pytest.raises(VirtfnError, match="foreign_bytes") as caught:
        host.room(CHUNK)
    assert caught.value.errno_name == "ENOMEM"
    fd = os.memfd_create("other")
    os.ftruncate(fd, 8 * CHUNK)
    with pytest.raises(VirtfnError, match="it may share 8 MiB in all"):
        greedy.adopt(fd, 8 * CHUNK)
    pieces = [greedy.adopt(fd, 1) for _ in range(4)]
    for piece in pieces[::2]:
        greedy.abandon(piece)
    with pytest.raises(VirtfnError, match="in all"):
        greedy.adopt(fd, 2 * CHUNK)  # in two pieces
    assert other.adopt(fd, 3 * CHUNK + 1)
    for room in (greedy, other, other):
        room.close()
    assert host.room(8 * CHUNK).adopt(fd, 8 * CHUNK)
    host.close()
    os.close(fd)
