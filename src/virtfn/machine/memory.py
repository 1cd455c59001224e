"""The machine's physical memory, and the guests' views of it.

`HostMemory` is one shared mapping; the host physical address of a byte is its address in this process. A guest's
physical memory is made of chunks of it, taken in shuffled order:

    host physical   | c7 | c2 | tables | c9 | c0 | ...     what the IOMMU's page tables name
    guest view      | c0 | c1 | c2 | ...                   one contiguous range: the CPU's own second-level paging

The guest's drivers use the view, as a CPU does through nested paging; devices go through the IOMMU to the scattered
chunks. Memory that other processes share (virtual machines') gets addresses in the same range, behind our own: each
machine has a room there, of a size that is fixed before it says anything.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Gpa, Hpa, Hva
from virtfn.kernels.ranges import forget_memory, machine_memory, raw_memory
from virtfn.machine.ports import VirtfnError

__all__ = ["CHUNK", "PAGE", "GuestMemory", "HostMemory", "MappedFile", "Room", "SharedRegion", "view_bytes"]

PAGE = 4096
CHUNK = 2 << 20
# What the checked build calls it.
_MACHINE, _VIEW, _REGISTERS = "the machine's memory", "a guest's memory, as its driver sees it", "registers"
_FOREIGN = "another process's memory"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MADV_REMOVE = 9
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FAILED = ctypes.c_void_p(-1).value


def _map(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    where = _libc.mmap(address, size, protection, flags, fd, offset)
    if where == _MAP_FAILED:
        number = ctypes.get_errno()
        name = "EACCES" if number in (errno.EACCES, errno.EPERM) else "ENOMEM"
        raise VirtfnError(f"cannot map {size} bytes: {os.strerror(number)}", errno_name=name)
    return int(where)


def view_bytes(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Look at `size` bytes of this process at `address`, as (size,) uint8."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))


def _leave_empty(address: int, size: int) -> None:
    """Back addresses by nothing in particular: whoever is let through to them by mistake does no harm."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    _map(address, size, _RW, flags, -1, 0)


class _Holes:
    """What is left of a range of addresses: first fit, whole chunks."""

    def __init__(self, start: int, size: int) -> None:
        self._free = [(start, size)]

    @property
    def largest(self) -> int:
        """How many are left in one piece."""
        return max((length for _, length in self._free), default=0)

    def take(self, size: int) -> int | None:
        """Take so many bytes; return where they start, or None if nowhere so many are left in one piece."""
        wanted = -(-size // CHUNK) * CHUNK
        for i, (start, length) in enumerate(self._free):
            if wanted <= length:
                self._free[i] = start + wanted, length - wanted
                return start
        return None

    def give_back(self, start: int, size: int) -> None:
        """Give them back."""
        merged: list[tuple[int, int]] = []
        for hole in sorted([*self._free, (start, -(-size // CHUNK) * CHUNK)]):
            if merged and sum(merged[-1]) == hole[0]:
                merged[-1] = merged[-1][0], merged[-1][1] + hole[1]
            else:
                merged.append(hole)
        self._free = merged


class HostMemory:
    """All physical memory of the software machine: `size` bytes, handed out in aligned pieces, and `foreign` of others.

    Raises VirtfnError when the system refuses the memory. Pages cost nothing until they are touched.
    """

    def __init__(self, size: int, foreign: int = 0) -> None:
        own = -(-size // CHUNK) * CHUNK
        self.size = own + -(-foreign // CHUNK) * CHUNK
        # Reserve with slack so that the mapping can start on a chunk boundary: large pages need aligned addresses.
        whole = _map(None, self.size + CHUNK, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self._reserved = (whole, self.size + CHUNK)
        self.base = Hpa(-(-whole // CHUNK) * CHUNK)
        try:
            self.fd = os.memfd_create("virtfn-memory", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, own)
            _map(self.base, own, _RW, mmap.MAP_SHARED | _MAP_FIXED, self.fd, 0)
            if self.size > own:
                _leave_empty(self.base + own, self.size - own)
        except VirtfnError:
            _libc.munmap(*self._reserved)
            os.close(self.fd)
            raise
        self.bytes = view_bytes(self.base, self.size)
        machine_memory(self.base, self.size, _MACHINE)
        self._chunks = list(range(0, own, CHUNK))
        self._holes = _Holes(own, self.size - own)
        self._pages: list[int] = []
        self._closed = False

    def alloc_chunks(self, count: int, rng: random.Random | None = None) -> list[Hpa]:
        """Take `count` zeroed chunks of 2 MiB, in shuffled order if `rng` is given.

        Raises VirtfnError when memory is exhausted.
        """
        if count > len(self._chunks):
            raise VirtfnError(
                f"host memory is exhausted: {count} chunks asked, {len(self._chunks)} left", errno_name="ENOMEM"
            )
        if rng is None:
            taken, self._chunks = self._chunks[:count], self._chunks[count:]
        else:
            taken = rng.sample(self._chunks, count)
            gone = set(taken)
            self._chunks = [c for c in self._chunks if c not in gone]
        return [Hpa(self.base + c) for c in taken]

    def free_chunks(self, chunks: list[Hpa]) -> None:
        """Give chunks back, zeroed, so that nothing of their owner remains."""
        for chunk in chunks:
            offset = chunk - self.base
            # Pages that the system takes back read as zero, and what was never touched stays so.
            if _libc.madvise(chunk, CHUNK, _MADV_REMOVE):
                self.bytes[offset : offset + CHUNK] = 0
            self._chunks.append(offset)

    def alloc_page(self) -> Hpa:
        """Take one zeroed 4 KiB page.

        Raises VirtfnError when memory is exhausted.
        """
        if not self._pages:
            (chunk,) = self.alloc_chunks(1)
            self._pages = list(range(chunk + CHUNK - PAGE, chunk - PAGE, -PAGE))
        page = self._pages.pop()
        offset = page - self.base
        self.bytes[offset : offset + PAGE] = 0
        return Hpa(page)

    def free_page(self, page: Hpa) -> None:
        """Give a page back."""
        self._pages.append(page)

    def room(self, size: int | None = None) -> Room:
        """Set addresses aside for what one virtual machine shares, `size` bytes of it at most; all, if it is None.

        Raises VirtfnError when there are not so many left.
        """
        size = self._holes.largest if size is None else size
        start = self._holes.take(size)
        if start is None:
            raise VirtfnError(
                f"no room is left for {size >> 20} MiB of a virtual machine's; give the host more foreign_bytes",
                errno_name="ENOMEM",
            )
        return Room(self, start, size, self._holes)

    def contains(self, address: int, size: int = 1) -> bool:
        """Tell whether `size` bytes at `address` are memory of this machine."""
        return self.base <= address and address + size <= self.base + self.size

    def close(self) -> None:
        """Unmap everything; views made of it must not be used afterwards."""
        if not self._closed:
            self._closed = True
            forget_memory(self.base, self.size, _MACHINE)
            self.bytes = np.zeros(0, np.uint8)
            _libc.munmap(*self._reserved)
            os.close(self.fd)


class Room:
    """Addresses in the host's memory for the files that one virtual machine shares. Made by `HostMemory.room`.

    What the machine does with its files, takes and breaks up its own room, and nobody else's.
    """

    def __init__(self, memory: HostMemory, start: int, size: int, outer: _Holes) -> None:
        self.size = size
        self._base = memory.base
        self._start = start
        self._outer = outer
        self._holes = _Holes(start, -(-size // CHUNK) * CHUNK)
        self._adopted: dict[Hpa, int] = {}

    def adopt(self, fd: int, size: int) -> Hpa:
        """Give the first `size` bytes of a file addresses here, starting with a chunk; the file may be closed.

        The file must not shrink as long as it is adopted. Raises VirtfnError when there is no room for it, or it cannot
        be mapped for reading and writing.
        """
        start = self._holes.take(size)
        if start is None:
            raise VirtfnError(
                f"{size >> 20} MiB do not fit beside what the virtual machine shares already: it may share "
                f"{self.size >> 20} MiB in all",
                errno_name="ENOMEM",
            )
        where = Hpa(self._base + start)
        try:
            _map(where, size, _RW, mmap.MAP_SHARED | _MAP_FIXED | _MAP_NORESERVE, fd, 0)
        except VirtfnError:
            self._empty(start, size)  # what was there may be gone
            raise
        self._adopted[where] = size
        return where

    def abandon(self, where: Hpa) -> None:
        """Let go of a file that was adopted: from now on its addresses read zero, and writes there are lost.

        Raises VirtfnError if nothing was adopted there.
        """
        if where not in self._adopted:
            raise VirtfnError(f"nothing was adopted at {where:#x}", errno_name="EINVAL")
        self._empty(where - self._base, self._adopted.pop(where))

    def _empty(self, start: int, size: int) -> None:
        _leave_empty(self._base + start, -(-size // CHUNK) * CHUNK)
        self._holes.give_back(start, size)

    def close(self) -> None:
        """Let go of all files, and give the room back. Closing twice is harmless."""
        for where in list(self._adopted):
            self.abandon(where)
        if self.size:
            self._outer.give_back(self._start, self.size)
            self.size = 0


class GuestMemory:
    """Physical memory of one guest: addresses 0..size-1, backed by scattered chunks of host memory.

    chunk: granularity of the scatter, 2 MiB or 4 KiB. The view has an inaccessible page before and after it.
    """

    def __init__(self, host: HostMemory, size: int, rng: random.Random, chunk: int = CHUNK) -> None:
        if size <= 0 or size % CHUNK:
            raise VirtfnError(f"guest memory is a multiple of 2 MiB, not {size} bytes", errno_name="EINVAL")
        if chunk not in (PAGE, CHUNK):
            raise VirtfnError(
                f"guest memory is scattered in pieces of 4 KiB or 2 MiB, not {chunk}", errno_name="EINVAL"
            )
        self.size = size
        self.chunk = chunk
        self._host = host
        self._chunks = host.alloc_chunks(size // CHUNK, rng)
        pieces = [Hpa(c + o) for c in self._chunks for o in range(0, CHUNK, chunk)]
        if chunk != CHUNK:
            rng.shuffle(pieces)
        self.pieces: list[Hpa] = pieces
        self._reserved = (
            _map(None, size + 2 * CHUNK, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
            size + 2 * CHUNK,
        )
        self.base = Hva(self._reserved[0] + PAGE)
        self.bytes = np.zeros(0, np.uint8)
        try:
            self._map_pieces()
        except VirtfnError:
            self.close()
            raise
        self.bytes = view_bytes(self.base, size)
        raw_memory(self.base, size, _VIEW)

    def _map_pieces(self) -> None:
        flags = mmap.MAP_SHARED | _MAP_FIXED
        for i, hpa in enumerate(self.pieces):
            _map(self.base + i * self.chunk, self.chunk, _RW, flags, self._host.fd, hpa - self._host.base)

    def mappings(self) -> list[tuple[Gpa, Hpa, int]]:
        """List (guest address, host address, bytes) of every piece, for whoever fills page tables."""
        return [(Gpa(i * self.chunk), hpa, self.chunk) for i, hpa in enumerate(self.pieces)]

    def close(self) -> None:
        """Unmap the view and give the memory back, zeroed."""
        if self._chunks:
            if self.bytes.size:
                forget_memory(self.base, self.size, _VIEW)
            self.bytes = np.zeros(0, np.uint8)
            _libc.munmap(*self._reserved)
            self._host.free_chunks(self._chunks)
            self._chunks = []
            self.pieces = []


class MappedFile:
    """A file of another process's memory, mapped whole, for reading and writing. size: bytes.

    The file must not shrink; it may be closed. Raises VirtfnError if the system refuses.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self.base = Hva(_map(None, size, _RW, mmap.MAP_SHARED | _MAP_NORESERVE, fd, 0))
        machine_memory(self.base, size, _FOREIGN)

    def close(self) -> None:
        """Unmap it. Closing twice is harmless."""
        if self.size:
            forget_memory(self.base, self.size, _FOREIGN)
            _libc.munmap(self.base, self.size)
            self.size = 0


class SharedRegion:
    """Memory of a device, parts of which other processes can map: the registers behind a BAR. size: bytes."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self.base = Hva(_map(None, self.size, _RW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        self.bytes = view_bytes(self.base, self.size)
        raw_memory(self.base, self.size, _REGISTERS)
        self._files: dict[int, int] = {}

    def share(self, name: str, offset: int, size: int, lead: int = 0) -> int:
        """Back whole pages by a file of their own, which cannot change its size; return its descriptor.

        lead: bytes of the file before them. Whoever gets the file reaches nothing else of the region. What the pages
        hold stays. Raises VirtfnError if the system refuses the file.
        """
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as e:
            raise VirtfnError(f"no memory can be shared: {e.strerror}", errno_name="ENOMEM") from None
        try:
            os.ftruncate(fd, lead + size)
            os.pwrite(fd, self.bytes[offset : offset + size].data, lead)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            _map(self.base + offset, size, _RW, mmap.MAP_SHARED | _MAP_FIXED, fd, lead)
        except VirtfnError:
            os.close(fd)
            raise
        self._files[offset] = fd
        return fd

    def withdraw(self, offset: int, size: int) -> None:
        """Share pages no more: whoever has their file reaches a copy that nobody looks at. What they hold stays."""
        held = self.bytes[offset : offset + size].copy()
        _map(self.base + offset, size, _RW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1, 0)
        self.bytes[offset : offset + size] = held
        os.close(self._files.pop(offset))

    def close(self) -> None:
        """Unmap it; views made of it must not be used afterwards."""
        if self.size:
            forget_memory(self.base, self.size, _REGISTERS)
            _libc.munmap(self.base, self.size)
            for fd in self._files.values():
                os.close(fd)
            self.size = 0
            self.bytes = np.zeros(0, np.uint8)
