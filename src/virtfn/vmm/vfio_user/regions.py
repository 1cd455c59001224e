"""What a device offers its client: regions and interrupt types.

    region 0..5 BARs, 6 ROM, 7 configuration space, 8 VGA; more are the device's own
    interrupt type 0 INTx, 1 MSI, 2 MSI-X, 3 ERR, 4 REQ

A part of a region that a file backs may be mapped by the client: its loads and stores then come without a message,
and the device polls.
"""

from __future__ import annotations

import enum
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user.messages import PAGE, IrqFlags

_MOST_IRQS = 2048  # of MSI-X


class RegionIndex(enum.IntEnum):
    """Regions of a PCI device."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class IrqIndex(enum.IntEnum):
    """Interrupt types of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


@dataclass(frozen=True, slots=True)
class Region:
    """A region of a device. size: bytes; 0: it is not there.

    fd, fd_offset: a file that backs the region, and where in it the region's first byte would be. The file belongs to
    the device and must stay open while it is served. areas: (offset, size) of the parts that the client may map, whole
    pages; without areas it may map all of a region that has a file.
    """

    size: int = 0
    read: bool = True
    write: bool = True
    fd: int | None = None
    fd_offset: int = 0
    areas: tuple[tuple[int, int], ...] = ()

    def validate(self, index: int) -> None:
        """Check that what may be mapped exists, and that no client can take it away.

        Raises VirtfnError.
        """
        if not 0 <= self.size < 1 << 63:
            raise VirtfnError(f"region {index}: its size cannot be {self.size}")
        if self.fd is None:
            if self.areas:
                raise VirtfnError(f"region {index}: areas to map need a file")
            return
        if self.fd_offset < 0 or self.fd_offset % PAGE:
            raise VirtfnError(f"region {index}: file offset {self.fd_offset:#x} is not a page's")
        try:
            file_size = os.fstat(self.fd).st_size
        except OSError as e:
            raise VirtfnError(f"region {index}: {e.strerror} ({self.fd})") from None
        for offset, size in self.areas or ((0, self.size),):
            if size <= 0 or offset < 0 or offset % PAGE or size % PAGE or offset + size > self.size:
                raise VirtfnError(f"region {index}: area {offset:#x}+{size:#x} is not made of its pages")
            if self.fd_offset + offset + size > file_size:
                raise VirtfnError(f"region {index}: the file of {file_size:#x} bytes ends before area {offset:#x}")
        try:
            seals = fcntl.fcntl(self.fd, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        if not seals & fcntl.F_SEAL_SHRINK:
            raise VirtfnError(f"region {index}: a client could shrink its file; it must be a memfd with F_SEAL_SHRINK")


@dataclass(frozen=True, slots=True)
class Irq:
    """An interrupt type: how many interrupts, and what can be done with them."""

    count: int = 0
    flags: IrqFlags = IrqFlags.EVENTFD

    def validate(self, index: int) -> None:
        """Check that a client which asks for all of them at once asks for little.

        Raises VirtfnError.
        """
        if not 0 <= self.count <= _MOST_IRQS:
            raise VirtfnError(f"interrupt type {index}: it has 0..{_MOST_IRQS} interrupts, not {self.count}")


def split(offset: int, count: int, widest: int = 4) -> Iterator[tuple[int, int]]:
    """Cut an access into naturally aligned pieces of 1, 2, 4 .. `widest` bytes: (offset, size)."""
    end = offset + count
    while offset < end:
        size = widest
        while offset % size or offset + size > end:
            size >>= 1
        yield offset, size
        offset += size


def shared_memory(size: int, name: str = "vfio-user") -> int:
    """Make a file for a region's pages: zeroed, of fixed size. Returns its descriptor, which the caller closes.

    Raises VirtfnError if the system refuses it.
    """
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, -(-size // PAGE) * PAGE)
    except (OSError, OverflowError) as e:
        if fd >= 0:
            os.close(fd)
        raise VirtfnError(f"no file of {size} bytes can be had: {e}", errno_name="ENOMEM") from None
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
