"""A virtual machine whose memory is not shared: its queues work on a mirror of it, which messages keep in step.

    the guest's memory       messages, asked for by nobody who waits          mirror, in the function's domain
      new descriptors     --> DMA_READ, then of what they name to send --> [ descriptors, buffers ]    then the tail
      frames, done bits   <-- DMA_WRITE, before any interrupt           <-- what the device has done   then the head

Mirrored are the writable ranges of a machine that shares no memory at all. The mirror has the addresses that the guest
uses, so the device and the IOMMU work as ever, and what the IOMMU refuses is not in the mirror, nor asked for. Each
queue runs by a copy of its registers: a tail gets there when all that it hands over is in the mirror, and the guest
sees a head when all that it stands for is on its way. One fetch of a queue is under way at a time; if its answer never
comes, that queue stands still. A queue that is reset or set up anew, and all queues when memory goes, start over.

Spec: vfio-user protocol, DMA_READ and DMA_WRITE.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from mmap import PROT_READ, PROT_WRITE

from virtfn.hw.types import Rid
from virtfn.hw.vtd.tables import INTERRUPT_RANGE, INTERRUPT_RANGE_END
from virtfn.machine.memory import CHUNK
from virtfn.machine.meter import Meter
from virtfn.machine.netports import CopiesQueues, QueueCopy
from virtfn.machine.ports import Device, VirtfnError
from virtfn.vmm.vfio_user import Client, DmaMapper, MmapMapper, finish, shared_memory

__all__ = ["Mirror"]

_BATCH = 64  # descriptors in a fetch
_AHEAD = 128  # descriptors that a receive queue has at most: what they take is sent while the others wait
_CHAIN = 1024  # descriptors that a transmit queue has at most: a frame that needs more is never sent
_BATCH_BYTES = 128 << 10  # of buffers in a fetch, unless one alone has more
_MOST_RANGES = 64  # each takes a descriptor of this process
_MOST_READS = 512  # without an answer; beyond it no fetch starts
_DESC_BYTES = 16


@dataclass(slots=True, eq=False)
class _Queue:
    """A queue that runs by `copy`.

    given: the descriptors that the device has, oldest first: index, address, and their bytes as fetched. fetch: the
    reads that the one under way waits for, in a list to tell it from those given up. known: which ring this is about.
    seen: both registers as last looked at; empty to look again.
    """

    copy: QueueCopy
    known: tuple[int, ...] = ()
    given: deque[tuple[int, int, bytes]] = field(default_factory=deque)
    fetch: list[int] | None = None
    seen: object = ()

    def news(self) -> bool:
        """Tell whether there is anything to look at, cheaply: most of the time there is not."""
        before, self.seen = self.seen, self.copy.look()
        return self.seen != before

    def restart(self) -> None:
        """Forget what was fetched and what is under way; the device has nothing of this queue."""
        self.copy.restart()
        self.given.clear()
        self.fetch = None
        self.seen = ()
        self.known = self.copy.ring()

    def follow(self) -> None:
        """Carry over what the driver has set, and that the device has stopped the queue."""
        if self.copy.ring() != self.known or not self.copy.follow():
            self.restart()


class Mirror:
    """The mirror of one function's memory. mapper: places files in its domain. meter: of the guest; copies count there.

    counters: reads and writes with their bytes, reads that the client refused, fetches put off, and ranges that there
    was no room for.
    """

    def __init__(self, device: Device, rid: Rid, mapper: DmaMapper, meter: Meter) -> None:
        self.counters: Counter[str] = Counter()
        self._nic = device if isinstance(device, CopiesQueues) else None
        self._rid = rid
        self._meter = meter
        self._mapper = mapper
        self._client: Client | None = None
        self._queues: list[_Queue] = []
        self._shared: set[int] = set()
        self._wanted: dict[int, tuple[int, int]] = {}
        self._placed: dict[int, tuple[int, int]] = {}
        self._bytes = MmapMapper()
        self._unanswered = 0

    @property
    def running(self) -> bool:
        """Whether the function's queues work on the mirror."""
        return bool(self._queues)

    @property
    def waits(self) -> bool:
        """Whether there is something to look at, or may be, of which no message tells."""
        return bool(self._wanted or self._placed or self._queues)

    # What the function hears of its client.

    def connected(self, client: Client) -> None:
        """Take note of whose memory it is."""
        self._client = client

    def disconnected(self) -> None:
        """Stop: the client and its memory are gone."""
        self._stop()
        self._client = None

    def memory_came(self, iova: int, size: int, prot: int, *, shared: bool) -> None:
        """Take note of memory; what is to be mirrored is with the next `serve`."""
        if shared and prot & PROT_WRITE:
            self._shared.add(iova)
        elif prot & PROT_WRITE:
            self._wanted[iova] = size, prot

    def memory_goes(self, iova: int) -> None:
        """Let go of memory: what the device did there is sent, and nothing touches it any more."""
        self._shared.discard(iova)
        self._wanted.pop(iova, None)
        if iova in self._placed:
            self.post()
            self._take_away(iova)

    # What goes on.

    def serve(self) -> int:
        """Bring mirror and guest closer, without waiting for anything; return how much there was to do."""
        if self._shared or self._nic is None:
            self._stop()
            return 0
        if self._wanted:
            iova, (size, prot) = self._wanted.popitem()
            self._place(iova, size, prot)
            return 1
        if self._placed and not self._queues:
            self._queues = [_Queue(copy) for copy in self._nic.copy_queues(self._rid)]
        done = 0
        for queue in self._queues:
            if queue.news():
                done += self._post(queue)
                queue.follow()
                done += self._fetch(queue)
        return done

    def post(self) -> int:
        """Send what the device has done; return for how many descriptors."""
        return sum(self._post(queue) for queue in self._queues)

    def _stop(self) -> None:
        if self._nic is not None and self._queues:
            self.post()
            self._nic.end_copies([queue.copy for queue in self._queues])
            self._queues = []
        for iova, told in list(self._placed.items()):
            self._take_away(iova)
            self._wanted[iova] = told

    # The mirror.

    def _place(self, iova: int, size: int, prot: int) -> None:
        """Mirror a range; if it cannot be, the IOMMU refuses DMA there."""
        lead = iova % CHUNK  # so that large pages fit
        try:
            if len(self._placed) == _MOST_RANGES:
                raise VirtfnError("there are too many ranges", errno_name="ENOSPC")
            fd = shared_memory(lead + size, "virtfn-mirror")
            try:
                finish(self._mapper.map(fd, lead, iova, size, prot))
                self._see(fd, lead, iova, size, prot)
            finally:
                os.close(fd)
        except VirtfnError:
            self.counters["no-room"] += 1
        else:
            self._placed[iova] = size, prot

    def _see(self, fd: int, lead: int, iova: int, size: int, prot: int) -> None:
        try:
            self._bytes.map(fd, lead, iova, size, prot)
        except VirtfnError:
            finish(self._mapper.unmap(iova, size))
            raise

    def _take_away(self, iova: int) -> None:
        size, _ = self._placed.pop(iova)
        for queue in self._queues:
            queue.restart()
        self._bytes.unmap(iova, size)
        finish(self._mapper.unmap(iova, size))

    def _look(self, iova: int, count: int, prot: int) -> list[memoryview]:
        """Find bytes of the mirror; none unless the IOMMU lets the device at all of them."""
        if iova < INTERRUPT_RANGE_END and iova + count > INTERRUPT_RANGE:
            return []
        return self._bytes.view(iova, count, prot) or []

    # From the guest.

    def _fetch(self, queue: _Queue) -> int:
        """Start to fetch what the tail has handed over since; return how many descriptors."""
        _, base, length, _, enabled = queue.known
        size, tail, given = length // _DESC_BYTES, queue.copy.tail, len(queue.given)
        if queue.fetch is not None or not enabled:
            return 0
        if self._unanswered > _MOST_READS:
            queue.seen = ()
            return 0
        whole = queue.copy.receive and tail == size > 0  # one past the end
        if tail >= size and not whole:
            queue.given.clear()
            queue.copy.hand_over(tail)  # the device judges it
            return 0
        head = queue.copy.head if queue.copy.head < size else 0
        owned = min(size - head, size - 1) if whole else (tail - head) % size
        if owned < given:
            queue.restart()
            return 0
        room = (_AHEAD if queue.copy.receive else _CHAIN) - given
        if owned == given or room < _BATCH // 2:  # few at a time would be many messages
            return 0
        count = min(owned - given, room, _BATCH)
        indices = [(head + given + n) % size for n in range(count)]
        places = [(index, base + index * _DESC_BYTES) for index in indices]
        until_end = min(count, size - indices[0])
        spans = [(places[0][1], until_end * _DESC_BYTES), (base, (count - until_end) * _DESC_BYTES)]
        self._read(queue, spans, lambda: self._fetched(queue, size, places))
        return count

    def _fetched(self, queue: _Queue, size: int, places: list[tuple[int, int]]) -> None:
        """Take descriptors that are in the mirror now; what some of them name to send has to be fetched next."""
        fetched: list[tuple[int, int, bytes]] = []
        buffers: list[tuple[int, int]] = []
        total = 0
        for index, at in places:
            words = b"".join(self._look(at, _DESC_BYTES, PROT_READ))
            if words and not queue.copy.receive:
                named = queue.copy.to_send(words)
                if named is not None:
                    if total and total + named[1] > _BATCH_BYTES:
                        break
                    total += named[1]
                    buffers.append(named)
            fetched.append((index, at, words))
        self._read(queue, buffers, lambda: self._hand_over(queue, size, fetched))

    def _hand_over(self, queue: _Queue, size: int, fetched: list[tuple[int, int, bytes]]) -> None:
        """Let the device have descriptors: all that it needs is in the mirror."""
        queue.fetch = None
        for _, _, words in fetched:
            if words and not queue.copy.receive:
                self._copied(queue.copy.to_send(words))
        queue.given.extend(fetched)
        queue.copy.hand_over((fetched[-1][0] + 1) % size)

    def _read(self, queue: _Queue, spans: list[tuple[int, int]], then: Callable[[], None]) -> None:
        """Ask for bytes of the guest's; when all are in the mirror, go on. What the IOMMU would refuse is left out."""
        wanted = [(iova, count) for iova, count in spans if self._look(iova, count, PROT_READ)]
        fetch = queue.fetch = [len(wanted)]
        for iova, count in wanted:
            if self._client is None or queue.fetch is not fetch:
                return
            self._unanswered += 1
            self.counters["reads"] += 1
            self.counters["read-bytes"] += count
            self._client.dma_read(iova, count, partial(self._answered, queue, fetch, iova, then))
        if not wanted:
            then()

    def _answered(
        self, queue: _Queue, fetch: list[int], iova: int, then: Callable[[], None], data: bytes, number: int
    ) -> None:
        self._unanswered -= 1
        if queue.fetch is not fetch:
            return
        if number in (errno.EAGAIN, errno.ECONNRESET, errno.ENOTCONN):
            self.counters["put-off"] += 1
            queue.fetch, queue.seen = None, ()
        elif number:
            # As where the IOMMU refuses a ring: the queue reads as stopped, and runs when its driver enables it anew.
            self.counters["refused"] += 1
            queue.fetch = None
            queue.copy.stop()
        else:
            for piece in self._look(iova, len(data), PROT_READ):
                piece[:], data = data[: len(piece)], data[len(piece) :]
            fetch[0] -= 1
            if fetch[0] == 0:
                then()

    # To the guest.

    def _post(self, queue: _Queue) -> int:
        """Send what the device has done for a queue, then show its head; nothing once the ring is another one."""
        copy, head, given = queue.copy, queue.copy.head, queue.given
        if copy.ring() != queue.known or head == queue.known[3]:
            return 0
        done, reported = 0, False
        while given and given[0][0] != head:
            _, at, fetched = given.popleft()
            done += 1
            written = b"".join(self._look(at, _DESC_BYTES, PROT_WRITE))
            if not fetched or not written:
                continue
            if copy.receive:
                for place in copy.received(fetched, written):
                    self._write(*place)
                    self._copied(place)
            else:
                reported = reported or copy.reports(fetched)
            if written != fetched:
                self._write(at, _DESC_BYTES)
        if reported and copy.head_word:
            self._write(copy.head_word, 4)
        copy.show_head(head)
        queue.known = copy.ring()
        return done

    def _write(self, iova: int, count: int) -> None:
        """Send bytes of the mirror to where the device put them."""
        pieces = self._look(iova, count, PROT_WRITE)
        if pieces and self._client is not None:
            self.counters["writes"] += 1
            self.counters["written-bytes"] += count
            self._client.dma_write(iova, b"".join(pieces))

    def _copied(self, place: tuple[int, int] | None) -> None:
        """Count what a buffer of a frame had of it, if anything."""
        if place is not None and place[1]:
            self._meter.add("copies")
            self._meter.add("copy_bytes", place[1])
