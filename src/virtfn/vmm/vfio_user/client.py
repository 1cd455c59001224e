"""A client as its device sees it: memory, interrupts, and DMA by messages.

Spec: vfio-user protocol specification 0.9.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from virtfn.vmm.connection import Connection, Message
from virtfn.vmm.vfio_user.eventfds import Signals
from virtfn.vmm.vfio_user.irqs import Interrupts
from virtfn.vmm.vfio_user.limits import Limits
from virtfn.vmm.vfio_user.memory import DmaRanges
from virtfn.vmm.vfio_user.messages import Capabilities, Command, Header
from virtfn.vmm.vfio_user.regions import Irq
from virtfn.vmm.vfio_user.transfers import Done, Transfers


class Client:
    """A client, as the device sees it. Everything here does nothing any more when the client is gone.

    interrupts: to raise them; ranges: the memory that it told of; capabilities: what it can take, None before VERSION.
    irqs: the device's interrupt types. resting: asked whether no request of the client is in the middle.
    """

    def __init__(
        self,
        connection: Connection[Header],
        irqs: Mapping[int, Irq],
        signals: Signals | None,
        limits: Limits,
        counters: Counter[str],
        resting: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._counters = counters
        self._resting = resting
        self._transfers = Transfers(connection, 1, 0, 0)
        self.interrupts = Interrupts(irqs, signals, limits.max_eventfds)
        self.ranges = DmaRanges(limits.max_dma_maps)
        self.capabilities: Capabilities | None = None

    def dma_read(self, iova: int, count: int, done: Done) -> None:
        """Ask for `count` bytes of the client's memory by messages."""
        self._transfers.read(iova, count, done)

    def dma_write(self, iova: int, data: bytes, done: Done | None = None) -> None:
        """Write to the client's address space by messages; without `done` the client is not asked to answer.

        A write of four bytes to the address of a message-signalled interrupt raises it. A client that does not take
        posted writes is dropped when too many wait; an answered write that has no room is done with EAGAIN.
        """
        self._transfers.write(iova, data, done)

    def borrow(self) -> int:
        """Return the socket for somebody who speaks the protocol faster, until the next call of anything here.

        Whole messages may be read and sent, no descriptors. -1 while the stream or a request is in the middle.
        """
        return self._connection.fileno() if self._connection.idle and self._resting() else -1

    def account(self, reads: int, writes: int, *, cut: bool) -> None:
        """Take the socket back: so many reads and writes were answered. cut: a message was sent in part."""
        for command, count in ((Command.REGION_READ, reads), (Command.REGION_WRITE, writes)):
            if count:
                self._counters[command.name] += count
        if cut:
            self._connection.lose("stalled")

    @property
    def process(self) -> int:
        """The process that has connected; 0: one that is not seen here."""
        return self._connection.process

    # For its session.

    def agree(self, theirs: Capabilities) -> None:
        """Begin: VERSION is agreed on."""
        limits = self._limits
        largest = min(theirs.max_data_xfer_size, limits.max_data_xfer_size)
        self._transfers = Transfers(self._connection, largest, limits.max_transfers, limits.max_output // 2)
        self.capabilities = theirs

    def answered(self, message: Message[Header]) -> str:
        """Take the answer to a message of ours; return what is wrong with it, or nothing."""
        return self._transfers.answered(message)

    def end(self) -> None:
        """Take its interrupts back, and give transfers up."""
        self.interrupts.close()
        self._transfers.abandon()
