"""Front ends in plain Python, for tests: memory in several regions, queues written by hand, canaries around."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from reference.virtio import Descriptor, Header
from virtfn.devices.virtio import OFFERED, BackEnd, Bridge
from virtfn.hw.types import Iova, Mac
from virtfn.kernels.ranges import machine_memory_of

RX, TX = 0, 1
NEXT, WRITE, INDIRECT = 1, 2, 4
GUARD = 4096
CANARY = 0xC5
REGIONS = ((0, 0x20000), (0x20000, 0x20000), (0x1_0000_0000, 0x40000))


class Memory:
    """Parts of memory with canaries before and behind each."""

    def __init__(self, regions: Sequence[tuple[int, int]] = REGIONS) -> None:
        self.parts = []
        for gpa, size in regions:
            whole = np.full(size + 2 * GUARD, CANARY, np.uint8)
            inner = whole[GUARD:-GUARD]
            inner[:] = 0
            self.parts.append((gpa, size, machine_memory_of(inner, "a front end's memory"), inner, whole))

    def table(self) -> list[tuple[int, int, int]]:
        return [(gpa, size, here) for gpa, size, here, _, _ in self.parts]

    def sound(self) -> bool:
        return all(bool((w[:GUARD] == CANARY).all() and (w[-GUARD:] == CANARY).all()) for *_, w in self.parts)

    def read(self, gpa: int, size: int) -> bytes | None:
        """Read bytes, across parts that adjoin; None if some are nobody's."""
        found = b""
        while len(found) < size:
            at = gpa + len(found)
            for first, length, _, inner, _ in self.parts:
                if first <= at < first + length:
                    found += inner[at - first : at - first + size - len(found)].tobytes()
                    break
            else:
                return None
        return found

    def write(self, gpa: int, content: bytes) -> None:
        """Write bytes, across parts that adjoin; those at addresses that are nobody's are lost."""
        while content:
            for first, length, _, inner, _ in self.parts:
                if first <= gpa < first + length:
                    run = min(len(content), first + length - gpa)
                    inner[gpa - first : gpa - first + run] = np.frombuffer(content[:run], np.uint8)
                    gpa, content = gpa + run, content[run:]
                    break
            else:
                return


class Queue:
    """A queue as its driver has it."""

    def __init__(self, memory: Memory, at: int, size: int) -> None:
        self.memory, self.size = memory, size
        self.desc, self.avail = at, at + 16 * size
        self.used = -(-(self.avail + 6 + 2 * size) // 4) * 4
        self.end = self.used + 6 + 8 * size
        self.index = self.seen = 0
        self.next = 0

    def descriptor(self, i: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.desc + 16 * i, struct.pack("<QIHH", address & (1 << 64) - 1, length, flags, following))

    def table(self) -> list[Descriptor]:
        raw = self.memory.read(self.desc, 16 * self.size)
        assert raw is not None
        return list(struct.iter_unpack("<QIHH", raw))

    def offer(self, head: int) -> None:
        """Make a chain available."""
        self.memory.write(self.avail + 4 + 2 * (self.index % self.size), struct.pack("<H", head))
        self.index = (self.index + 1) & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.index))

    def chain(self, parts: Sequence[tuple[int, int]], write: bool = False) -> int:
        """Write descriptors, one after the other, of a circle; return the first."""
        head = self.next
        for k, (address, length) in enumerate(parts):
            last = k == len(parts) - 1
            flags = (WRITE if write else 0) | (0 if last else NEXT)
            self.descriptor(self.next, address, length, flags, (self.next + 1) % self.size)
            self.next = (self.next + 1) % self.size
        return head

    def reap(self) -> list[tuple[int, int]]:
        """Take what was given back: heads and lengths."""
        index = self.word(self.used + 2)
        taken = []
        while self.seen != index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            raw = self.memory.read(at, 8)
            assert raw is not None
            taken.append(struct.unpack("<II", raw))
            self.seen = (self.seen + 1) & 0xFFFF
        return taken

    def word(self, at: int) -> int:
        raw = self.memory.read(at, 2)
        assert raw is not None
        return int.from_bytes(raw, "little")

    def set_flags(self, value: int) -> None:
        self.memory.write(self.avail, struct.pack("<H", value))

    def set_event(self, value: int) -> None:
        self.memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", value & 0xFFFF))

    @property
    def kicks_off(self) -> int:
        return self.word(self.used)

    @property
    def kick_event(self) -> int:
        return self.word(self.used + 4 + 8 * self.size)


class FrontEnd:
    """A front end with both queues, at a port of a bridge. DATA: where its free memory begins, in each region."""

    DATA = 0x8000

    def __init__(
        self, bridge: Bridge, *, size: int = 64, features: int = OFFERED, regions: Sequence[tuple[int, int]] = REGIONS
    ) -> None:
        self.memory = Memory(regions)
        self.back = BackEnd(self.memory.table())
        self.features = features
        assert self.back.accept(features)
        self.rx = Queue(self.memory, 0x0000, size)
        self.tx = Queue(self.memory, 0x4000, size)
        self.called: list[int] = []
        self.at = self.DATA
        self.buffers: dict[int, list[tuple[int, int]]] = {}
        self.start()
        self.port = bridge.add(self.back, self.called.append)

    def start(self) -> None:
        for number, queue in ((RX, self.rx), (TX, self.tx)):
            self.back.set_queue(number, queue.size, Iova(queue.desc), Iova(queue.avail), Iova(queue.used))
        self.back.start()

    def kick(self) -> None:
        self.back.channels["pending"][:2] = 1

    def room(self, size: int) -> int:
        """Take memory, in a circle."""
        if self.at + size > 0x40000:
            self.at = self.DATA
        self.at += size
        return self.at - size

    def send(self, frame: bytes, header: Header | None = None) -> int:
        """Send a frame by one descriptor."""
        raw = (header or Header()).pack() + frame
        at = self.room(len(raw))
        self.memory.write(at, raw)
        head = self.tx.chain([(at, len(raw))])
        self.tx.offer(head)
        self.kick()
        return head

    def receive_into(self, parts: Sequence[tuple[int, int]]) -> int:
        """Make a receive buffer of several parts available."""
        head = self.rx.chain(parts, write=True)
        self.buffers[head] = list(parts)
        self.rx.offer(head)
        return head

    def fill(self, count: int, size: int = 1536) -> None:
        for _ in range(count):
            self.receive_into([(self.room(size), size)])

    def refill(self, count: int = 40, size: int = 1536) -> None:
        """Let so many buffers be available, where fewer are."""
        self.fill(count - ((self.rx.index - self.rx.seen) & 0xFFFF), size)

    def received(self) -> list[tuple[Header, bytes]]:
        """Take the frames that came, each put together from its buffers."""
        taken = self.rx.reap()
        frames = []
        while taken:
            raw = self._content(*taken.pop(0))
            header, buffers = Header.unpack(raw)
            for _ in range(buffers - 1):
                raw += self._content(*taken.pop(0))
            frames.append((header, raw[12:]))
        return frames

    def _content(self, head: int, length: int) -> bytes:
        raw = b""
        for address, size in self.buffers.pop(head):
            part = self.memory.read(address, size)
            assert part is not None
            raw += part
        return raw[:length]


def ether(target: int, source: int, payload: bytes = b"", kind: int = 0x88B5) -> bytes:
    return target.to_bytes(6, "little") + source.to_bytes(6, "little") + kind.to_bytes(2, "big") + payload


def mac(n: int) -> Mac:
    return Mac(0x02 | n << 40)
