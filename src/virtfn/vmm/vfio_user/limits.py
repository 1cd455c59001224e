"""How much one client may have."""

from __future__ import annotations

from dataclasses import dataclass

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.closing import MOST_RIGHTS
from virtfn.vmm.vfio_user.messages import HEADER, MULTI_COUNT, MULTI_WRITE, REGION_ACCESS

_LEAST_XFER = 4096  # a client reads the configuration space in one piece


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one client may have.

    max_msg_fds: descriptors in a message; max_data_xfer_size: bytes in an access; max_dma_maps: ranges of memory;
    max_output: bytes that it has not taken yet; max_transfers: DMA messages that it has not answered yet;
    max_multi: writes in one message; max_eventfds: eventfds that it gave for interrupts.
    """

    max_msg_fds: int = 16
    max_data_xfer_size: int = 1 << 20
    max_dma_maps: int = 4096
    max_output: int = 8 << 20
    max_transfers: int = 1024
    max_multi: int = 1024
    max_eventfds: int = 256

    def __post_init__(self) -> None:
        """Check that they fit together.

        Raises VirtfnError.
        """
        if not 0 <= self.max_msg_fds <= MOST_RIGHTS or self.max_data_xfer_size < _LEAST_XFER:
            raise VirtfnError(f"a message takes 0..{MOST_RIGHTS} descriptors and {_LEAST_XFER} bytes or more")
        if self.max_output < 2 * self.largest_message:
            raise VirtfnError(f"max_output must be {2 * self.largest_message} or more: room for two messages")

    @property
    def largest_message(self) -> int:
        """The size of the largest message that makes sense."""
        multi = MULTI_COUNT.size + self.max_multi * MULTI_WRITE.size
        return HEADER.size + max(REGION_ACCESS.size + self.max_data_xfer_size, multi)
