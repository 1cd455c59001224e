"""A hostile front end: rings, tables and headers of anything, changed while read. Its neighbours notice nothing."""

from __future__ import annotations

import random
import struct
import threading

import pytest

from reference.virtio import Header
from unit.virtiorig import INDIRECT, NEXT, REGIONS, WRITE, FrontEnd, Queue, ether, mac
from virtfn.devices.virtio import OFFERED, Bridge
from virtfn.kernels.stray import CHECKED

EDGES = [0, 1, 7, 8, 12, 16, 26, 0x4000, 0x8000, 0x1FFF0, 0x20000, 0x3FFF0, 0x40000, 1 << 32, (1 << 32) + 0x3FFF0,
         1 << 63, (1 << 64) - 1, (1 << 64) - 16]  # fmt: skip
LENGTHS = [0, 1, 11, 12, 13, 16, 26, 32, 64, 160, 1536, 4096, 65535, 65562, 1 << 31, (1 << 32) - 1]


class Hostile(FrontEnd):
    """A front end that writes what it likes where it may."""

    def disturb(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 12)):
            queue = rng.choice([self.rx, self.tx])
            what = rng.randint(0, 9)
            if what < 5:
                self.descriptor(rng, queue)
            elif what < 7:
                queue.offer(rng.choice([*range(queue.size), rng.randrange(70000) & 0xFFFF]))
            elif what == 7:
                self.header(rng)
            elif what == 8:
                at = rng.choice([queue.avail, queue.used, queue.avail + 4 + 2 * queue.size])
                self.memory.write(at, rng.randbytes(2))
            elif rng.random() < 0.1:
                self.memory.write(queue.avail + 2, rng.randbytes(2))

    def descriptor(self, rng: random.Random, queue: Queue) -> None:
        flags = rng.choice([0, NEXT, NEXT, WRITE, WRITE | NEXT, INDIRECT, 7, rng.randrange(1 << 16)])
        if queue is self.rx and rng.random() < 0.7:
            flags |= WRITE
        address = (rng.choice([*EDGES, rng.randrange(1 << 64), self.room(64)]) + rng.randint(-2, 2)) % (1 << 64)
        row = struct.pack("<QIHH", address, rng.choice(LENGTHS), flags, rng.choice([0, 1, 2, rng.randrange(1 << 16)]))
        at = queue.desc + 16 * rng.randrange(queue.size)
        if rng.random() < 0.3:
            at = self.room(64)
        self.memory.write(at, row)

    def header(self, rng: random.Random) -> None:
        raw = Header(1, rng.choice([0, 1, 4, 0x81, 3]), rng.randrange(1 << 16), rng.choice([0, 1, 100, 1448, 65535]),
                     rng.choice([34, 54, 0, 65535]), rng.choice([6, 16, 65535])).pack()  # fmt: skip
        kind, first = rng.choice([(0x0800, b"\x45"), (0x86DD, b"\x60"), (0x8100, b"\0")])
        payload = first + rng.randbytes(8) + b"\x06" + rng.randbytes(24) + b"\x00\x00\x50" + rng.randbytes(300)
        self.memory.write(self.room(400), raw + ether(rng.choice([mac(1), mac(2)]), mac(0), payload, kind))

    def restart(self) -> None:
        """Set everything up anew, as a driver does whose device needs a reset."""
        self.back.reset()
        assert self.back.accept(self.features)
        for queue in (self.rx, self.tx):
            self.memory.write(queue.desc, bytes(queue.end - queue.desc))
            queue.index = queue.seen = queue.next = 0
        self.start()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_front_end_writes_its_neighbours_go_on(seed: int) -> None:
    rng = random.Random(seed)
    features = OFFERED if seed % 3 else OFFERED & ~(1 << rng.choice([15, 28, 29]))
    bridge = Bridge()
    bad = Hostile(bridge, features=features, size=rng.choice([4, 16, 64]))
    ends = [FrontEnd(bridge), FrontEnd(bridge)]
    for n, end in enumerate(ends):
        bridge.pin(end.port, mac(n + 1))
    before = [end.memory.parts[1][3].copy() for end in ends]
    arrived = 0
    for _ in range(60 if CHECKED else 300):
        bad.disturb(rng)
        bad.kick()
        if bad.back.needs_reset and rng.random() < 0.5:
            bad.restart()
        ends[1].refill()
        frame = ether(mac(2), mac(1), rng.randbytes(rng.randint(0, 80)))
        ends[0].send(frame)
        ends[0].send(ether(mac(0), mac(1), rng.randbytes(60)))
        bridge.serve()
        got = [content for _, content in ends[1].received()]
        assert frame in got
        arrived += len(got)
        ends[0].rx.reap()
        for end in (bad, *ends):
            assert end.memory.sound()
    assert arrived >= 60
    assert (ends[0].memory.parts[1][3][0x10000:] == before[0][0x10000:]).all()
    assert not any(end.back.needs_reset or end.back.errors() for end in ends)


@pytest.mark.skipif(CHECKED, reason="the checked build knows one thread")
def test_what_changes_while_it_is_read_is_read_once() -> None:
    """Descriptors and headers flip in another thread; what was checked is what is used."""
    bridge = Bridge()
    bad, good = Hostile(bridge), FrontEnd(bridge)
    bridge.pin(good.port, mac(1))
    frame = ether(mac(1), mac(0), bytes(100))
    at = bad.room(256)
    bad.memory.write(at, Header().pack() + frame)
    stop = threading.Event()

    def flip() -> None:
        rng = random.Random(5)
        while not stop.is_set():
            queue = bad.tx
            bad.memory.write(queue.desc + 8, struct.pack("<I", rng.choice([126, 12, 0, 1 << 31, 26, 65562])))
            bad.memory.write(queue.desc, struct.pack("<Q", rng.choice([at, at, 0x3FFFF, 1 << 63])))
            bad.memory.write(at, rng.choice([Header().pack(), Header(1, 1, 65535, 1, 34, 16).pack()]))

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(3000):
            bad.tx.descriptor(0, at, 126)
            bad.tx.offer(0)
            bad.kick()
            good.refill()
            bridge.serve()
            good.received()
            assert bad.memory.sound()
            assert good.memory.sound()
    finally:
        stop.set()
        thread.join()
    assert not good.back.needs_reset


def test_a_ring_of_the_longest_bad_chains_takes_bounded_time() -> None:
    """Each of 4096 chains has 4095 descriptors before the bad one: a turn looks at a few of them, and others go on."""
    bridge = Bridge()
    bad = Hostile(bridge, size=64, regions=((0, 0x40000), *REGIONS[2:]))
    queue = Queue(bad.memory, 0x10000, 4096)
    bad.back.reset()
    bad.back.accept(OFFERED)
    bad.back.set_queue(1, 4096, queue.desc, queue.avail, queue.used)
    bad.back.start()
    rows = [struct.pack("<QIHH", 0, 0, NEXT, i + 1) for i in range(4095)]
    bad.memory.write(queue.desc, b"".join(rows) + struct.pack("<QIHH", 1 << 62, 1, 0, 0))
    for _ in range(4096):
        queue.offer(0)
    bad.kick()
    bridge.serve()
    assert int(bad.back.row["tx"]["descriptors"]) <= 3 * 4096
    assert bad.back.errors()["unmapped"] <= 3
