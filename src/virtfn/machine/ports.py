"""What crosses between the machine's parts: Protocols only, nothing else crosses.

A `Device` answers the bus; its `DeviceHost` gives it memory, interrupts and time. A driver holds `Bar`s and a
`DmaMemory`, and gets interrupts through a callback. DMA and messages always name their requester. What is peculiar to
the network is in `netports.py`.
"""

from __future__ import annotations

import enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Hpa, Hva, Iova, Ps, Rid

__all__ = [
    "Actor",
    "Bar",
    "Clock",
    "ConfigSpace",
    "Device",
    "DeviceHost",
    "DeviceTlb",
    "DmaDomain",
    "DmaMemory",
    "Mapping",
    "Reset",
    "TranslationAgent",
    "VirtfnError",
    "WalksTables",
]


class VirtfnError(Exception):
    """Root of every error that virtfn raises on purpose.

    errno_name: the errno that iproute2 would show, or empty. details: lines that are to be shown below, as they are.
    """

    def __init__(self, message: str, *, errno_name: str = "", details: str = "") -> None:
        super().__init__(message)
        self.errno_name = errno_name
        self.details = details


class Reset(enum.Enum):
    """Kinds of reset that reach a function from outside its registers."""

    POWER_ON = "power on"
    FLR = "function level reset"
    WAKE = "D3hot to D0"


class Clock(Protocol):
    """Time, in integer picoseconds."""

    def now(self) -> Ps:
        """Return the time now."""

    def sleep(self, duration_ps: int) -> None:
        """Let `duration_ps` pass."""


class Actor(Protocol):
    """Who has something to do again and again: a card with its guests, a wire, virtual machines, a door to ask at."""

    def turn(self, now: Ps) -> int:
        """Do what there is to do, for a bounded time; return how much it was."""

    def due(self) -> Ps | None:
        """Say when the next turn is wanted, though nothing wakes; None, as by default, if it need not be."""
        return None

    def fileno(self) -> int:
        """Return the descriptor that can be read when there is something to do; -1, as by default, if there is none."""
        return -1


class Device(Protocol):
    """A card on the bus: one or more functions, each named by its routing ID.

    bus: the bus number that the card captured; the port above sets it with every Type 0 configuration write.
    """

    bus: int

    def rids(self) -> list[Rid]:
        """List the routing IDs that answer configuration accesses now, VFs included."""

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a function's configuration space; all ones if nobody answers."""

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a function's configuration space."""

    def bar_read(self, rid: Rid, bar: int, offset: int, size: int) -> int:
        """Read from a function's BAR; all ones outside it."""

    def bar_write(self, rid: Rid, bar: int, offset: int, size: int, value: int) -> None:
        """Write to a function's BAR; ignored outside it."""

    def bar_at(self, address: int, *, io: bool = False) -> tuple[Rid, int, int] | None:
        """Find who claims an address of memory or I/O space now: routing ID, BAR number (6: ROM), offset in it."""

    def bar_mappings(self, rid: Rid, bar: int) -> list[Mapping]:
        """List the parts of a BAR that may be mapped into a guest, so that their accesses do not trap.

        Raises VirtfnError if the system refuses what it takes to share them.
        """

    def end_mappings(self, rid: Rid) -> None:
        """Take what is mapped of a function away from other processes: their accesses reach nothing from now on.

        Raises VirtfnError if the system refuses memory for it.
        """


class Mapping:
    """A part of a BAR backed by shared memory: `bytes` is the memory from `offset` on, as (size,) uint8."""

    __slots__ = ("bytes", "fd", "fd_offset", "offset")

    def __init__(self, offset: int, memory: npt.NDArray[np.uint8], fd: int, fd_offset: int) -> None:
        self.offset = offset
        self.bytes = memory
        self.fd = fd
        self.fd_offset = fd_offset


class DmaDomain(Protocol):
    """What the devices of one address space can reach. rids: the requesters attached to it."""

    rids: set[Rid]

    def limit_tables(self, most: int) -> None:
        """Let its tables take so many pages at most."""

    def map(self, iova: Iova, hpa: Hpa, nbytes: int, read: bool = True, write: bool = True) -> None:
        """Let devices reach memory by addresses from `iova` on. Raises VirtfnError for what cannot be."""

    def unmap(self, iova: Iova, nbytes: int) -> int:
        """Take away what is mapped in a range, from caches too; return how many bytes were."""

    def destroy(self) -> None:
        """Give up an empty domain. Raises VirtfnError while a requester is attached."""


class DeviceHost(Protocol):
    """What a device may ask of the machine it sits in."""

    def dma_read(self, rid: Rid, iova: Iova, length: int) -> bytes | None:
        """Read guest memory through the IOMMU as requester `rid`; None after a recorded fault."""

    def dma_write(self, rid: Rid, iova: Iova, payload: bytes) -> bool:
        """Write guest memory through the IOMMU as requester `rid`; False after a recorded fault."""

    def msi(self, rid: Rid, address: int, message: int) -> None:
        """Send a message-signalled interrupt as requester `rid`."""

    def now(self) -> Ps:
        """Return the time now."""


class DeviceTlb(Protocol):
    """A requester that caches translations, or asks for pages."""

    def invalidate(self, address: int, nbytes: int, itag: int) -> None:
        """Forget translations of `nbytes`, a power of two, at `address`; 2**64 are all.

        The agent is told by `complete_device_tlb`, at once or later, when no request made with them is under way any
        more.
        """

    def serve(self) -> None:
        """Answer what can be answered now: the agent looks while it waits."""

    def page_response(self, prgi: int, code: int) -> None:
        """Take the answer to page request group `prgi`: a ResponseCode, or one of the reserved codes."""


class TranslationAgent(Protocol):
    """What translates for devices that have a device TLB; the remapping unit."""

    @property
    def device_tlbs(self) -> dict[Rid, DeviceTlb]:
        """The device TLBs by requester; whoever plugs one in, or takes it away, keeps it true."""

    def complete_device_tlb(self, rid: Rid, itag: int) -> None:
        """Take the answer of `rid` to the invalidation that it was sent with `itag`."""

    def page_request(self, rid: Rid, address: Iova, read: bool, write: bool, last: bool, prgi: int) -> None:
        """Take a request of `rid` for the page at `address`: one of group `prgi`, and the `last` of it or not."""


class WalksTables(Protocol):
    """Whoever walks translation tables for requesters."""

    def walks(self, rid: Rid) -> int:
        """Count the page walks for a requester, since the start."""


class ConfigSpace(Protocol):
    """A function's configuration space as its driver or an operating system sees it."""

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""


class Bar(Protocol):
    """A BAR as a driver sees it: 32-bit registers, and the address of a page where accesses do not trap."""

    def read(self, offset: int) -> int:
        """Read the 32-bit register at `offset`."""

    def write(self, offset: int, value: int) -> None:
        """Write the 32-bit register at `offset`."""

    def mapped(self, offset: int) -> Hva | None:
        """Return the address where a plain load or store reaches register `offset`, or None if it traps."""

    def trapped(self, offset: int, value: int) -> Hva | None:
        """Return the address of a 32-bit word where a store traps, and reaches the register, in compiled code.

        None, as by default, if there is none. value: what the register holds now.
        """
        return None


class DmaMemory(Protocol):
    """Memory that a driver shares with its device."""

    def alloc(self, size: int, align: int = 4096) -> tuple[Iova, Hva]:
        """Allocate zeroed memory: the address to give the device, and the address to use here.

        Raises VirtfnError when memory is exhausted.
        """

    def free(self, iova: Iova) -> None:
        """Give an allocation back."""
