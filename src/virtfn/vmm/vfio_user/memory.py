r"""The client's memory: which ranges of DMA addresses there are, and where in this process their bytes are.

    iova   | 0 .. a0000 |  hole  | c0000 ........ 20000000 |       a list of intervals, none overlapping
                 \______________________/
               one memory file, mapped once: a machine that boots maps and unmaps all its memory many times

A range comes with a file descriptor, or without one: then only messages reach it. A file is accepted if nobody can
shrink it: touching a page behind the end of a file kills the process that does, as it may in a file of large pages.
Only a memfd says so, and a memfd is memory: no page of it waits for a file system that the client serves, and a
userfaultfd of the client's holds up its own accesses alone. What a client can do is to punch holes while we touch the
pages: each access then waits for the hole that is being made, and gets a page of zeros.

`DmaMapper` is the place for another arrangement of the same memory, such as one range of addresses for many clients.

Spec: vfio-user protocol, DMA_MAP and DMA_UNMAP.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user.messages import PAGE, U64, DmaFlags, RefusedError, check
from virtfn.vmm.vfio_user.steps import Steps

_WANTED = "it must be a memfd with F_SEAL_SHRINK (QEMU: memory-backend-memfd, seal=on)"


class DmaMapper(Protocol):
    """Who places the client's memory in this process. Either method may be a generator that does it in steps."""

    def map(self, fd: int, offset: int, iova: int, size: int, prot: int) -> Steps[None] | None:
        """Place `size` bytes of a file from `offset` on; the client is answered afterwards.

        fd: a memory file that cannot shrink and is large enough; it is closed after the call. prot: PROT_READ,
        PROT_WRITE. Ranges never overlap; all numbers are whole pages.

        Raises VirtfnError if it cannot be done; the client is refused then.
        """

    def unmap(self, iova: int, size: int) -> Steps[None] | None:
        """Take away a range that was placed; nothing may touch it when this is done. It cannot fail.

        One that stops in the middle, since the server closes, is done anew from the start.
        """


@dataclass(frozen=True, slots=True)
class DmaRange:
    """A range of the client's memory. mapped: a file came with it, so that the mapper has it."""

    iova: int
    size: int
    prot: int
    mapped: bool

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.iova + self.size


class DmaRanges:
    """The ranges that a client has told of, in the order of their addresses. limit: how many there may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._starts: list[int] = []
        self._ranges: dict[int, DmaRange] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[DmaRange]:
        return (self._ranges[start] for start in self._starts)

    def check_new(self, iova: int, size: int, prot: int, offset: int) -> None:
        """Check a range before it is added.

        Raises RefusedError.
        """
        check(len(self) < self.limit, "too-many-maps", errno.ENOSPC)
        check(0 < prot <= DmaFlags.READ | DmaFlags.WRITE, "map-flags")
        check(size > 0 and not (iova | size | offset) % PAGE, "map-not-whole-pages")
        check(iova + size <= U64 and offset + size <= U64, "map-wraps")
        at = bisect.bisect_left(self._starts, iova + size) - 1
        check(at < 0 or self._ranges[self._starts[at]].end <= iova, "map-overlaps", errno.EEXIST)

    def add(self, new: DmaRange) -> None:
        """Add a range that was checked."""
        bisect.insort(self._starts, new.iova)
        self._ranges[new.iova] = new

    def inside(self, iova: int, size: int) -> list[DmaRange]:
        """List the ranges that are inside, as Linux takes an unmap: none are, where a guest's IOMMU empties a space.

        Raises RefusedError for what would cut one.
        """
        check(size > 0 and not (iova | size) % PAGE, "unmap-not-whole-pages")
        check(iova + size <= U64, "unmap-wraps")
        first = bisect.bisect_left(self._starts, iova)
        found = [self._ranges[start] for start in self._starts[first : bisect.bisect_left(self._starts, iova + size)]]
        before = self._starts[first - 1 : first] if first else []
        cut = any(self._ranges[start].end > iova for start in before) or any(old.end > iova + size for old in found)
        check(not cut, "unmap-cuts-a-range")
        return found

    def remove(self, old: DmaRange) -> None:
        """Remove a range."""
        self._starts.remove(old.iova)
        del self._ranges[old.iova]


def check_file(fd: int, offset: int, size: int, prot: int, *, trusted: bool = False) -> None:
    """Check that `size` bytes from `offset` of a client's file can be mapped, and always will be there.

    trusted: what could take them away is the client's affair, who is believed not to do it. Raises RefusedError.
    """
    # Seals first: to ask for them takes the kernel alone, all else may take the file system that the client serves.
    try:
        seals, access = fcntl.fcntl(fd, fcntl.F_GET_SEALS), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        raise RefusedError(errno.EPERM, "map-not-a-memfd", f"the descriptor is not a memfd's: {_WANTED}") from None
    lasts = trusted or seals & fcntl.F_SEAL_SHRINK != 0
    check(lasts, "map-can-shrink", errno.EPERM, f"the memory file could be shrunk: {_WANTED}")
    end = os.fstat(fd).st_size
    check(
        offset + size <= end,
        "map-beyond-file",
        text=f"the file has {end:#x} bytes, not the {offset + size:#x} that are to be mapped",
    )
    # Of large pages there may be none left when one is touched, and that kills the process too.
    check(
        trusted or os.fstatvfs(fd).f_bsize == mmap.PAGESIZE,
        "map-large-pages",
        text="the memory file is made of large pages, of which there may be too few (QEMU: hugetlb=off)",
    )
    wanted = os.O_RDWR if prot & DmaFlags.WRITE else os.O_RDONLY
    check(access in (wanted, os.O_RDWR), "map-not-permitted", errno.EACCES)


class _Placed(NamedTuple):
    iova: int
    prot: int
    bytes: memoryview


class MmapMapper:
    """Map each memory file once, and read and write its ranges by DMA address.

    max_bytes: how much address space a client's files may take together; max_files: how many it may have, as each takes
    a descriptor of this process.
    """

    def __init__(self, max_bytes: int = 1 << 42, max_files: int = 64) -> None:
        self.max_bytes = max_bytes
        self.max_files = max_files
        # A file stays mapped as long as the view of a range holds it.
        self._files: weakref.WeakValueDictionary[tuple[int, int, bool], mmap.mmap] = weakref.WeakValueDictionary()
        # All of them, also those of a file that has grown since, and is mapped anew.
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._starts: list[int] = []
        self._placed: dict[int, _Placed] = {}

    def map(self, fd: int, offset: int, iova: int, size: int, prot: int) -> None:
        """Map a range; see DmaMapper."""
        whole = memoryview(self._whole(fd, offset + size))
        bisect.insort(self._starts, iova)
        self._placed[iova] = _Placed(iova, prot, whole[offset : offset + size])

    def _whole(self, fd: int, least: int) -> mmap.mmap:
        """Return the mapping of a file, an earlier one if it is long enough."""
        state = os.fstat(fd)
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        key = (state.st_dev, state.st_ino, writable)
        known = self._files.get(key)
        if known is not None and len(known) >= least:
            return known
        taken = sum(len(m) for m in self._mapped)
        if taken + state.st_size > self.max_bytes:
            raise VirtfnError(f"the client's memory files exceed {self.max_bytes:#x} bytes", errno_name="ENOMEM")
        if len(self._mapped) >= self.max_files:
            raise VirtfnError(f"the client has more than {self.max_files} memory files", errno_name="ENOSPC")
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            made = mmap.mmap(fd, state.st_size, mmap.MAP_SHARED, prot)
        except (OSError, ValueError) as e:
            raise VirtfnError(f"cannot map the client's memory: {e}", errno_name="ENOMEM") from None
        self._files[key] = made
        self._mapped.add(made)
        return made

    def unmap(self, iova: int, size: int) -> None:
        """Forget a range; the file is unmapped with its last range."""
        self._starts.remove(iova)
        del self._placed[iova]

    def view(self, iova: int, count: int, prot: int) -> list[memoryview] | None:
        """Find the bytes of an access, range by range; None unless all of it is there and permits `prot`.

        A view that is kept keeps the memory, also after an unmap: let go of it in `dma_unmapped`.
        """
        found: list[memoryview] = []
        while count > 0:
            at = bisect.bisect_right(self._starts, iova) - 1
            if at < 0:
                return None
            placed = self._placed[self._starts[at]]
            piece = placed.bytes[iova - placed.iova :][:count]
            if not len(piece) or placed.prot & prot != prot:
                return None
            found.append(piece)
            iova, count = iova + len(piece), count - len(piece)
        return found

    def read(self, iova: int, count: int) -> bytes | None:
        """Read the client's memory; None if some of it is not mapped or not readable."""
        pieces = self.view(iova, count, mmap.PROT_READ)
        return None if pieces is None else b"".join(pieces)

    def write(self, iova: int, data: bytes) -> bool:
        """Write the client's memory; False, and nothing written, if some of it is not mapped or not writable."""
        pieces = self.view(iova, len(data), mmap.PROT_WRITE)
        if pieces is None:
            return False
        at = 0
        for piece in pieces:
            piece[:] = data[at : at + len(piece)]
            at += len(piece)
        return True
