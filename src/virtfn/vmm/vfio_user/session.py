"""One connected client and its requests.

    accepted --VERSION--> served --end of stream, nonsense, or too slow--> ended

The device hears of the client after VERSION, and hears of its end once everything of it is gone.

Spec: vfio-user protocol specification 0.9.2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.connection import Connection, DroppedError, Message
from virtfn.vmm.vfio_user.client import Client
from virtfn.vmm.vfio_user.device import VfioUserDevice
from virtfn.vmm.vfio_user.eventfds import Signals
from virtfn.vmm.vfio_user.limits import Limits
from virtfn.vmm.vfio_user.memory import DmaMapper, DmaRange, check_file
from virtfn.vmm.vfio_user.messages import (
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    IRQ_INFO,
    MAJOR,
    MINOR,
    MULTI_COUNT,
    MULTI_WRITE,
    NO_REPLY,
    REGION_ACCESS,
    REGION_INFO,
    SPARSE_AREA,
    SPARSE_MMAP,
    VERSION,
    Capabilities,
    Command,
    Header,
    RefusedError,
    RegionFlags,
    UnmapFlags,
    at_start,
    check,
    error_reply,
    exactly,
    parse_version,
    reply,
)
from virtfn.vmm.vfio_user.regions import Irq, IrqIndex, Region, RegionIndex
from virtfn.vmm.vfio_user.steps import Going, Steps

_DEVICE_FLAGS = 3  # can be reset, is a PCI device
_CAP_SPARSE_MMAP = 1
_MULTI_BYTES = 8
_NO_SUCH_IRQ = "no-such-interrupt-type"
_AT_THE_END = 256  # requests that are refused when the server hangs up


class Offer(NamedTuple):
    """What a server has for its clients, the same for each."""

    device: VfioUserDevice
    regions: Mapping[int, Region]
    irqs: Mapping[int, Irq]
    signals: Signals | None
    mapper: DmaMapper
    limits: Limits


class _Answer(NamedTuple):
    body: bytes = b""
    fds: tuple[int, ...] = ()


_Outcome: TypeAlias = _Answer | Steps[_Answer]


class Session:
    """The server's end of a connection. client: what the device sees of it."""

    def __init__(self, connection: Connection[Header], offer: Offer, counters: Counter[str]) -> None:
        self._connection = connection
        self._offer = offer
        self._counters = counters
        self.client = Client(connection, offer.irqs, offer.signals, offer.limits, counters, lambda: not self.unfinished)
        self.last_refusal = ""
        self._request: Header | None = None  # that has no answer yet
        self._under_way: tuple[Header, Steps[_Answer]] | None = None
        self._handlers: dict[int, Callable[[bytes, list[int]], _Outcome]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._device_reset,
        }

    @property
    def lost(self) -> str:
        """Why the connection came to its end, or empty."""
        return self._connection.lost

    @property
    def unfinished(self) -> bool:
        """Whether a request is in the middle: there is something to do, whatever the socket says."""
        return self._under_way is not None

    def serve(self, events: int, budget: int, going: Going) -> int:
        """Serve up to `budget` messages while `going`; return how many, one that is not done yet included.

        Raises DroppedError at the end.
        """
        connection, served = self._connection, 0
        if events & ~select.EPOLLIN:
            connection.flush()
        while served < budget and (served == 0 or going()):
            if self._under_way is None:
                message = None if connection.lost or connection.paused else connection.receive()
                if message is None:
                    break
                try:
                    self._take(message)
                finally:
                    self._counters["fds-not-wanted"] += message.close_fds()
            served += 1
            self._go_on(going)
        if connection.lost and self._under_way is None:
            raise DroppedError(connection.lost)
        return served

    def end(self) -> Steps[None]:
        """Give back everything of this client, and tell the device."""
        self._refuse_the_rest()
        self._connection.close()
        self.client.end()
        for old in list(self.client.ranges):
            yield from self._unmap(old)
            yield
        if self.client.capabilities is not None:
            self._offer.device.disconnected()

    def _refuse_the_rest(self) -> None:
        """Answer the requests that nobody will carry out: a processor of QEMU's waits for each, however long."""
        gone = RefusedError(errno.ENODEV, "server-closed")
        if self._request is not None:
            self._refuse(self._request, gone)
        self._under_way = None
        self._connection.receive_no_more()
        with contextlib.suppress(DroppedError):
            for _ in range(_AT_THE_END):
                message = None if self._connection.lost else self._connection.receive()
                if message is None:
                    break
                message.close_fds()
                if not message.header.is_reply:
                    self._refuse(message.header, gone)

    def _take(self, message: Message[Header]) -> None:
        header = message.header
        if header.is_reply and self.client.capabilities is not None:
            wrong = self.client.answered(message)
            self._counters["replies"] += 1
            if wrong:
                self._counters[f"refused:{wrong}"] += 1
            return
        if header.is_reply:
            self._connection.lose("no-version")
            return
        known = header.command in Command.__members__.values()
        self._counters[Command(header.command).name if known else "UNKNOWN"] += 1
        handler = self._handlers.get(header.command)
        self._request = header
        try:
            if handler is None:
                raise RefusedError(*((errno.ENOTSUP, "not-supported") if known else (errno.ENOSYS, "unknown-command")))
            check((header.command == Command.VERSION) == (self.client.capabilities is None), "version-first")
            outcome = handler(message.body, message.fds)
        except VirtfnError as e:
            self._refuse(header, e)
            return
        if isinstance(outcome, _Answer):
            self._answer(header, outcome)
        else:
            self._under_way = header, outcome

    def _go_on(self, going: Going) -> None:
        """Do what is under way, until it is done or there is no time."""
        if self._under_way is None:
            return
        (header, steps), self._under_way = self._under_way, None
        try:
            next(steps)
            while going():
                next(steps)
        except StopIteration as end:
            self._answer(header, end.value)
        except VirtfnError as e:
            self._refuse(header, e)
        else:
            self._under_way = header, steps

    def _answer(self, header: Header, answer: _Answer) -> None:
        self._request = None
        if not header.flags & NO_REPLY:
            self._connection.send(reply(header, answer.body), answer.fds)
        if header.command == Command.VERSION:
            self._offer.device.connected(self.client)

    def _refuse(self, header: Header, error: VirtfnError) -> None:
        """Count a refusal and tell the client; without an agreed version there is nothing more to say."""
        self._request = None
        if isinstance(error, RefusedError):
            number, reason = error.errno, error.reason
        else:
            number, reason = getattr(errno, error.errno_name or "EIO", errno.EIO), "failed"
        self._counters[f"refused:{reason}"] += 1
        if reason != _NO_SUCH_IRQ:  # which is an answer to who asks what there is, as each QEMU does
            self.last_refusal = str(error)
        if not header.flags & NO_REPLY:
            self._connection.send(error_reply(header, number))
        if self.client.capabilities is None:
            self._connection.lose("no-version")

    # Requests: the start.

    def _version(self, body: bytes, fds: list[int]) -> _Answer:
        major, minor, theirs = parse_version(body)
        check(major == MAJOR, "version-major", text=f"the client speaks version {major}.{minor}, not {MAJOR}.{MINOR}")
        limits = self._offer.limits
        ours = Capabilities(limits.max_msg_fds, limits.max_data_xfer_size, limits.max_dma_maps, theirs.write_multiple)
        self._connection.largest = limits.largest_message
        self.client.agree(theirs)
        return _Answer(VERSION.pack(MAJOR, min(minor, MINOR)) + ours.to_json())

    def _device_info(self, body: bytes, fds: list[int]) -> _Answer:
        argsz, *_ = at_start(DEVICE_INFO, body)
        check(argsz >= DEVICE_INFO.size, "argsz")
        return _Answer(DEVICE_INFO.pack(DEVICE_INFO.size, _DEVICE_FLAGS, self._num_regions, self._num_irqs))

    @property
    def _num_regions(self) -> int:
        return max(len(RegionIndex), *(i + 1 for i in self._offer.regions), 0)

    @property
    def _num_irqs(self) -> int:
        return max(len(IrqIndex), *(i + 1 for i in self._offer.irqs), 0)

    def _region_info(self, body: bytes, fds: list[int]) -> _Answer:
        argsz, _, index, *_ = at_start(REGION_INFO, body)
        check(argsz >= REGION_INFO.size, "argsz")
        check(index < self._num_regions, "no-such-region")
        region = self._offer.regions.get(index, Region())
        flags = (RegionFlags.READ if region.read else 0) | (RegionFlags.WRITE if region.write else 0)
        if region.size == 0:
            return _Answer(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        sparse = b""
        if region.areas:
            flags |= RegionFlags.CAPS
            sparse = SPARSE_MMAP.pack(_CAP_SPARSE_MMAP, 1, 0, len(region.areas), 0)
            sparse += b"".join(SPARSE_AREA.pack(*area) for area in region.areas)
        attached = () if region.fd is None else (region.fd,)
        if attached:
            flags |= RegionFlags.MMAP
        needed = REGION_INFO.size + len(sparse)
        at = REGION_INFO.size if sparse else 0
        head = REGION_INFO.pack(needed, flags, index, at, region.size, region.fd_offset)
        # What does not fit is asked for again, with room for it; the descriptor comes with the whole.
        return _Answer(head) if argsz < needed else _Answer(head + sparse, attached)

    def _irq_info(self, body: bytes, fds: list[int]) -> _Answer:
        argsz, _, index, _ = at_start(IRQ_INFO, body)
        check(argsz >= IRQ_INFO.size, "argsz")
        check(index < self._num_irqs, _NO_SUCH_IRQ)
        irq = self._offer.irqs.get(index, Irq())
        # As Linux says of a function without it. QEMU takes that in silence, and complains of a count of none.
        check(irq.count > 0 or index != IrqIndex.ERR, _NO_SUCH_IRQ)
        return _Answer(IRQ_INFO.pack(IRQ_INFO.size, irq.flags, index, irq.count))

    # Requests: memory and interrupts.

    def _dma_map(self, body: bytes, fds: list[int]) -> Steps[_Answer]:
        argsz, prot, offset, iova, size = exactly(DMA_MAP, body)
        check(argsz >= DMA_MAP.size, "argsz")
        check(len(fds) <= 1, "map-with-fds")
        self.client.ranges.check_new(iova, size, prot, offset if fds else 0)
        return self._place(fds.pop() if fds else None, offset, iova, size, prot)

    def _place(self, fd: int | None, offset: int, iova: int, size: int, prot: int) -> Steps[_Answer]:
        if fd is not None:
            try:
                check_file(fd, offset, size, prot)
                yield from self._offer.mapper.map(fd, offset, iova, size, prot) or ()
            except BaseException:
                self._connection.closer.close(fd)
                raise
            os.close(fd)  # a guest with an IOMMU sends more of them than the closer's thread may have time for
        self.client.ranges.add(DmaRange(iova, size, prot, fd is not None))
        self._offer.device.dma_mapped(iova, size, prot)
        return _Answer()

    def _dma_unmap(self, body: bytes, fds: list[int]) -> Steps[_Answer]:
        argsz, flags, iova, size = at_start(DMA_UNMAP, body)
        check(not flags & UnmapFlags.GET_DIRTY_BITMAP, "not-supported", errno.ENOTSUP)
        exactly(DMA_UNMAP, body)
        check(argsz >= DMA_UNMAP.size, "argsz")
        check(flags in (0, UnmapFlags.ALL), "unmap-flags")
        check(not flags & UnmapFlags.ALL or iova == size == 0, "unmap-all-of-some")
        ranges = self.client.ranges
        for n, old in enumerate(list(ranges) if flags & UnmapFlags.ALL else ranges.inside(iova, size)):
            if n:
                yield
            yield from self._unmap(old)
        return _Answer(body)

    def _unmap(self, old: DmaRange) -> Steps[None]:
        self._offer.device.dma_unmapped(old.iova, old.size)
        if old.mapped:
            yield from self._offer.mapper.unmap(old.iova, old.size) or ()
        self.client.ranges.remove(old)

    def _set_irqs(self, body: bytes, fds: list[int]) -> _Answer:
        self.client.interrupts.set(body, fds)
        return _Answer()

    # Requests: accesses.

    def _region(self, index: int, offset: int, count: int, *, write: bool) -> None:
        """Check an access."""
        region = self._offer.regions.get(index, Region())
        check(region.size > 0, "no-such-region")
        check(0 < count <= self._offer.limits.max_data_xfer_size, "access-size")
        check(offset + count <= region.size, "access-beyond-region")
        check(region.write if write else region.read, "access-not-permitted", errno.EACCES)

    def _region_read(self, body: bytes, fds: list[int]) -> Steps[_Answer]:
        offset, index, count = exactly(REGION_ACCESS, body)
        self._region(index, offset, count, write=False)
        data = self._offer.device.region_read(index, offset, count)
        if not isinstance(data, bytes):
            data = yield from data
        if len(data) != count:
            raise VirtfnError(f"the device read {len(data)} bytes of region {index}, not {count}")
        return _Answer(body + data)

    def _region_write(self, body: bytes, fds: list[int]) -> Steps[_Answer]:
        offset, index, count = at_start(REGION_ACCESS, body)
        check(len(body) == REGION_ACCESS.size + count, "wrong-size")
        self._region(index, offset, count, write=True)
        yield from self._write(index, offset, body[REGION_ACCESS.size :])
        return _Answer(body[: REGION_ACCESS.size])

    def _write(self, index: int, offset: int, data: bytes) -> Steps[None]:
        steps = self._offer.device.region_write(index, offset, data)
        if steps is not None:
            yield from steps

    def _region_write_multi(self, body: bytes, fds: list[int]) -> Steps[_Answer]:
        (writes,) = at_start(MULTI_COUNT, body)
        check(0 < writes <= self._offer.limits.max_multi, "multi-count", errno.E2BIG)
        check(len(body) == MULTI_COUNT.size + writes * MULTI_WRITE.size, "wrong-size")
        accesses = list(MULTI_WRITE.iter_unpack(body[MULTI_COUNT.size :]))
        for offset, index, count, _ in accesses:
            check(count <= _MULTI_BYTES, "access-size")
            self._region(index, offset, count, write=True)
        for n, (offset, index, count, data) in enumerate(accesses):
            if n:
                yield
            yield from self._write(index, offset, data[:count])
        return _Answer(body[: MULTI_COUNT.size])

    def _device_reset(self, body: bytes, fds: list[int]) -> _Answer:
        check(not body, "wrong-size")
        self._offer.device.reset()
        return _Answer()
