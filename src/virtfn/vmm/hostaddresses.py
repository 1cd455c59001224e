"""Memory for DMA on a machine without remapping: a guest that is told where its memory is, as Xen's first were.

Devices there use host addresses, and the guest's memory is scattered over the host's: what one buffer may span is one
piece of it. With these addresses in the place of its own, every driver of the guest works unchanged.
"""

from __future__ import annotations

from virtfn.hw.types import Hva, Iova
from virtfn.machine.memory import PAGE, GuestMemory
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import GuestDma

__all__ = ["HostAddresses", "host_address"]


def host_address(memory: GuestMemory, view: int) -> int:
    """Translate an address in the guest's view of its memory to the host's, as the CPU's own second level does."""
    piece, offset = divmod(view - memory.base, memory.chunk)
    return memory.pieces[piece] + offset


class HostAddresses(GuestDma):
    """Memory that the guest's drivers share with their devices, by host physical address."""

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self._guest_addresses: dict[Iova, Iova] = {}

    def alloc(self, size: int, align: int = PAGE) -> tuple[Iova, Hva]:
        """Allocate zeroed memory that is contiguous for the host too: host address, address here.

        Raises VirtfnError for more than a piece of the guest's memory holds, and as without remapping.
        """
        if size > self._memory.chunk:
            raise VirtfnError(f"no {size} bytes of the guest's memory are contiguous for a device", errno_name="ENOMEM")
        # Aligned to a power of two that holds it, an allocation cannot cross into another piece.
        gpa, hva = super().alloc(size, max(align, 1 << max(size - 1, 0).bit_length()))
        address = Iova(host_address(self._memory, hva))
        self._guest_addresses[address] = gpa
        return address, hva

    def free(self, iova: Iova) -> None:
        """Give an allocation back.

        Raises VirtfnError if there is no such allocation.
        """
        super().free(self._guest_addresses.pop(iova, iova))
