"""The machine's physical memory, and the guests' views of it.

`HostMemory` is one shared mapping; the host physical address of a byte is its address in this process. A guest's
physical memory is made of chunks of it, taken in shuffled order:

    host physical   | c7 | c2 | tables | c9 | c0 | ...     what the IOMMU's page tables name
    guest view      | c0 | c1 | c2 | ...                   one contiguous range: the CPU's own second-level paging

The guest's drivers use the view, as a CPU does through nested paging; devices go through the IOMMU to the scattered
chunks.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Gpa, Hpa, Hva
from virtfn.machine.ports import VirtfnError

__all__ = ["CHUNK", "PAGE", "GuestMemory", "HostMemory", "SharedRegion", "view_bytes"]

PAGE = 4096
CHUNK = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MADV_REMOVE = 9
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value


def _map(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    where = _libc.mmap(address, size, protection, flags, fd, offset)
    if where == _MAP_FAILED:
        raise VirtfnError(f"cannot map {size} bytes: {os.strerror(ctypes.get_errno())}", errno_name="ENOMEM")
    return int(where)


def view_bytes(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Look at `size` bytes of this process at `address`, as (size,) uint8."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))


class HostMemory:
    """All physical memory of the software machine: `size` bytes, handed out in aligned pieces.

    Raises VirtfnError when the system refuses the memory. Pages cost nothing until they are touched.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-size // CHUNK) * CHUNK
        # Reserve with slack so that the mapping can start on a chunk boundary: large pages need aligned addresses.
        whole = _map(None, self.size + CHUNK, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.fd = os.memfd_create("virtfn-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._reserved = (whole, self.size + CHUNK)
        self.base = Hpa(-(-whole // CHUNK) * CHUNK)
        _map(self.base, self.size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, self.fd, 0)
        self.bytes = view_bytes(self.base, self.size)
        self._chunks = list(range(0, self.size, CHUNK))
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

    def contains(self, address: int, size: int = 1) -> bool:
        """Tell whether `size` bytes at `address` are memory of this machine."""
        return self.base <= address and address + size <= self.base + self.size

    def close(self) -> None:
        """Unmap everything; views made of it must not be used afterwards."""
        if not self._closed:
            self._closed = True
            self.bytes = np.zeros(0, np.uint8)
            _libc.munmap(*self._reserved)
            os.close(self.fd)


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
        try:
            self._map_pieces()
        except VirtfnError:
            self.close()
            raise
        self.bytes = view_bytes(self.base, size)

    def _map_pieces(self) -> None:
        rights, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
        for i, hpa in enumerate(self.pieces):
            _map(self.base + i * self.chunk, self.chunk, rights, flags, self._host.fd, hpa - self._host.base)

    def mappings(self) -> list[tuple[Gpa, Hpa, int]]:
        """List (guest address, host address, bytes) of every piece, for whoever fills page tables."""
        return [(Gpa(i * self.chunk), hpa, self.chunk) for i, hpa in enumerate(self.pieces)]

    def close(self) -> None:
        """Unmap the view and give the memory back, zeroed."""
        if self._chunks:
            self.bytes = np.zeros(0, np.uint8)
            _libc.munmap(*self._reserved)
            self._host.free_chunks(self._chunks)
            self._chunks = []
            self.pieces = []


class SharedRegion:
    """A piece of memory that other processes can map by its `fd`: the registers behind a BAR. size: bytes."""

    def __init__(self, name: str, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self.base = Hva(_map(None, self.size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self.fd, 0))
        self.bytes = view_bytes(self.base, self.size)

    def close(self) -> None:
        """Unmap it; views made of it must not be used afterwards."""
        if self.size:
            _libc.munmap(self.base, self.size)
            os.close(self.fd)
            self.size = 0
            self.bytes = np.zeros(0, np.uint8)
