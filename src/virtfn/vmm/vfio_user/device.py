"""What a device is to the library: it tells what it has, answers accesses, and hears of its client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from virtfn.vmm.vfio_user.client import Client
from virtfn.vmm.vfio_user.regions import Irq, Region
from virtfn.vmm.vfio_user.steps import Steps


class VfioUserDevice(Protocol):
    """A PCI device behind a socket. Subclass it, or have the same methods.

    Regions and interrupt types are asked for once, when the server starts. An access is within a readable or writable
    region, of any size: `split` cuts it into aligned ones. A device refuses an access with RefusedError; any other
    VirtfnError is told to the client as EIO. No method may block: the client, with all its virtual CPUs, is waiting.

    An access that takes long is better done in steps, by a generator: where `Server.serve` is called with `going`,
    others may be served between them. The client's next message is looked at when all are done.
    """

    def regions(self) -> Mapping[int, Region]:
        """Tell the regions by index; those left out are not there."""

    def irqs(self) -> Mapping[int, Irq]:
        """Tell the interrupt types by index; those left out are not there."""

    def region_read(self, region: int, offset: int, count: int) -> bytes | Steps[bytes]:
        """Read `count` bytes of a region."""

    def region_write(self, region: int, offset: int, data: bytes) -> Steps[None] | None:
        """Write to a region."""

    def reset(self) -> None:
        """Reset the device: the machine was reset, or the device has just been plugged."""
        return

    def connected(self, client: Client) -> None:
        """Take note of a client; what it offers (memory, interrupts) lasts until `disconnected`."""
        return

    def disconnected(self) -> None:
        """Forget the client; its memory and interrupts are gone already."""
        return

    def dma_mapped(self, iova: int, size: int, prot: int) -> None:
        """Take note of memory that can be accessed now. prot: PROT_READ, PROT_WRITE."""
        return

    def dma_unmapped(self, iova: int, size: int) -> None:
        """Let go of memory, before the client is told that it is unmapped."""
        return
