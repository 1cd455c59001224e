"""What crosses between a virtio network device and its driver in a guest of this process: one Protocol."""

from __future__ import annotations

from typing import Protocol

from virtfn.hw.types import Iova, Mac

__all__ = ["RX", "TX", "VirtioDevice"]

RX, TX = 0, 1  # numbers of the queues


class VirtioDevice(Protocol):
    """A network device as its driver sees it. mac, mtu: what it shall use. offered: features, as bits."""

    mac: Mac
    mtu: int
    offered: int

    def reset(self) -> None:
        """Stop: no queue is looked at any more, and nothing of the guest's is touched."""

    def accept(self, features: int) -> bool:
        """Agree on features; False if these cannot be."""

    def set_queue(self, number: int, size: int, desc: Iova, avail: Iova, used: Iova) -> None:
        """Tell where the parts of a queue are. Raises VirtfnError for what cannot be."""

    def start(self) -> None:
        """Begin: queues that were set up run."""

    @property
    def link(self) -> bool:
        """Whether frames can go anywhere."""

    @property
    def needs_reset(self) -> bool:
        """Whether something that made no sense has stopped a queue."""

    def kick(self, number: int) -> int:
        """Return the address of the CHANNEL row (`kernels/virtio/state.py`) that tells the device of a queue."""
