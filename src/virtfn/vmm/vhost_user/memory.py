"""The client's memory: regions of guest addresses, and of the client's own, in files that are mapped here.

    guest        | 0 .. a0000 | c0000 .. 20000000 | ...        what descriptors name
    client       | 7f.. ...                                    what messages name
    here         one memory file, mapped once                  what kernels touch

A file is taken if nobody can shrink it, and it is not made of large pages (`vfio_user/memory.py` says why); of a client
that is trusted, any memory file is.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from virtfn.kernels.virtio.state import REGIONS
from virtfn.machine.memory import MappedFile
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user.memory import check_file
from virtfn.vmm.vfio_user.messages import RefusedError
from virtfn.vmm.vhost_user.limits import Limits
from virtfn.vmm.vhost_user.messages import BadMessageError, check

__all__ = ["ClientMemory", "Region"]

_RW = mmap.PROT_READ | mmap.PROT_WRITE
_END = 1 << 62


class Region(NamedTuple):
    """A part of the guest's memory: guest address, bytes, address in the client, offset in the file."""

    gpa: int
    size: int
    uva: int
    offset: int


class ClientMemory:
    """Regions, and the files that they are in."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._regions: dict[Region, tuple[int, int]] = {}
        self._files: dict[tuple[int, int], MappedFile] = {}

    def table(self) -> list[tuple[int, int, int]]:
        """List (guest address, bytes, address here) of every region."""
        return [(r.gpa, r.size, self._files[file].base + r.offset) for r, file in self._regions.items()]

    def find(self, uva: int, size: int) -> int:
        """Find where `size` bytes at an address of the client are; 0 unless all are in one region."""
        for region, file in self._regions.items():
            if region.uva <= uva and uva + size <= region.uva + region.size:
                return self._files[file].base + region.offset + uva - region.uva
        return 0

    def replace(self, regions: list[Region], fds: list[int]) -> None:
        """Let these regions be all there are; their files are mapped, and the descriptors stay the caller's.

        Raises BadMessageError, and leaves all as it was.
        """
        before, self._regions = self._regions, {}
        try:
            for region, fd in zip(regions, fds, strict=True):
                self._add(region, fd)
        except BadMessageError:
            self._regions = before
            raise
        finally:
            self._let_go()

    def add(self, region: Region, fd: int) -> None:
        """Add a region.

        Raises BadMessageError.
        """
        try:
            self._add(region, fd)
        finally:
            self._let_go()

    def _add(self, region: Region, fd: int) -> None:
        check(len(self._regions) < REGIONS, "too-many-regions")
        check(region.size > 0 and max(*region) < _END and region.gpa + region.size <= _END, "region-size")
        check(region.offset % mmap.PAGESIZE == 0 and region.gpa % mmap.PAGESIZE == 0, "region-not-whole-pages")
        for other in self._regions:
            apart = other.gpa + other.size <= region.gpa or region.gpa + region.size <= other.gpa
            check(apart, "region-overlaps")
        try:
            check_file(fd, region.offset, region.size, _RW, trusted=self._limits.trusted)
        except RefusedError as e:
            raise BadMessageError(e.reason, str(e)) from None
        self._regions[region] = self._map(fd, region.offset + region.size)

    def _map(self, fd: int, least: int) -> tuple[int, int]:
        """Map a file, unless it is; return what it is known by."""
        state = os.fstat(fd)
        file = state.st_dev, state.st_ino
        known = self._files.get(file)
        if known is not None:
            check(least <= known.size, "file-has-grown")
            return file
        taken = sum(mapped.size for mapped in self._files.values())
        check(taken + state.st_size <= self._limits.max_bytes, "too-much-memory")
        check(len(self._files) < self._limits.max_files, "too-many-files")
        try:
            self._files[file] = MappedFile(fd, state.st_size)
        except VirtfnError as e:
            raise BadMessageError("map-failed", str(e)) from None
        return file

    def remove(self, gpa: int, size: int, uva: int) -> None:
        """Take a region away.

        Raises BadMessageError if there is no such.
        """
        found = [region for region in self._regions if region[:3] == (gpa, size, uva)]
        check(bool(found), "no-such-region")
        del self._regions[found[0]]
        self._let_go()

    def _let_go(self) -> None:
        used = set(self._regions.values())
        for file in [file for file in self._files if file not in used]:
            self._files.pop(file).close()

    def close(self) -> None:
        """Forget all regions, and unmap all files."""
        self._regions.clear()
        self._let_go()
