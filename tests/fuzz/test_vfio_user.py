"""A vfio-user client that means harm: the server stays up, serves the next one, and keeps nothing of the last one.

A life is a connection: it starts as a good client does, then sends what a bad one would: good messages with any field
changed, cut, grown, doubled, random; descriptors of every sort; answers that nobody asked for; or it stops reading,
or hangs up in the middle. Beside it others knock at the door. VIRTFN_SEED repeats a run, VIRTFN_FUZZ_SECONDS makes it
longer.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import random
import socket
import struct
import time
import tracemalloc
from collections import Counter

import pytest

from unit.vmm.vfio_user.peer import CAPABILITIES, Board, Peer, memory_file, open_fds, settle, version
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vfio_user import Client, Limits, MmapMapper, RefusedError, Server
from virtfn.vmm.vfio_user.messages import (
    DEVICE_INFO,
    DMA_ACCESS,
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    IRQ_INFO,
    IRQ_SET,
    MULTI_WRITE,
    REGION_ACCESS,
    REGION_INFO,
    VERSION,
    Command,
)

SECONDS = float(os.environ.get("VIRTFN_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("VIRTFN_SEED", "82576"))
PATIENCE_S = 5.0  # for one call; a bounded one takes milliseconds
MEMORY_BYTES = 4 << 20  # of Python objects, with clients that take no answers
LIMITS = Limits(max_data_xfer_size=1 << 16, max_dma_maps=32, max_output=1 << 20, max_transfers=16, max_multi=64)
EDGES = (0, 1, 3, 7, 15, 16, 17, 31, 32, 4095, 4096, 4097, 0xFFFF, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31,
         (1 << 32) - 4096, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)  # fmt: skip


class Restless(Board):
    """A device that uses all that its client lends it, at every access."""

    def __init__(self, rng: random.Random, mapper: MmapMapper) -> None:
        super().__init__()
        self.rng = rng
        self.mapper = mapper
        self.done: Counter[int] = Counter()

    def _use(self) -> None:
        rng, client = self.rng, self.client
        self.events.clear()
        if client is None:
            return
        iova = rng.choice((0, 4096, 1 << 20, rng.choice(EDGES)))
        for index, vector in ((0, 0), (1, rng.randrange(5)), (2, rng.randrange(4)), (3, 0), (9, 9)):
            client.interrupts.trigger(index, vector)
        found = self.mapper.read(iova, rng.choice((1, 4096, 8192)))
        if found is not None:
            self.mapper.write(iova, found)
        match rng.randrange(12):
            case 0:
                client.dma_read(iova, rng.choice((0, 4, 70_000, 1 << 21)), self._done)
            case 1:
                client.dma_write(iova, bytes(rng.choice((0, 4, 70_000))), self._done)
            case 2:
                client.dma_write(iova, bytes(rng.choice((4, 4, 70_000))))
            case 3:
                client.interrupts.mask(1, rng.randrange(4))
            case 4:
                client.interrupts.unmask(1, rng.randrange(4))
            case 5:
                raise rng.choice(
                    (RefusedError(errno.EBUSY, "busy"), VirtfnError("no"), VirtfnError("", errno_name="X"))
                )

    def _done(self, data: bytes, number: int) -> None:
        assert number == 0 or (number in errno.errorcode and data == b"")
        self.done[number] += 1

    def region_read(self, region, offset, count):
        assert self.regions()[region].read
        assert 0 <= offset < offset + count <= self.regions()[region].size
        self._use()
        return bytes(count)

    def region_write(self, region, offset, data):
        assert self.regions()[region].write
        assert 0 <= offset < offset + len(data) <= self.regions()[region].size
        self._use()

    def reset(self):
        self._use()

    def connected(self, client: Client) -> None:
        assert self.client is None
        super().connected(client)

    def disconnected(self) -> None:
        assert self.client is not None
        super().disconnected()


class Hostile:
    """One life of a bad client."""

    def __init__(self, server: Server, rng: random.Random, folder: str) -> None:
        self.server = server
        self.rng = rng
        self.folder = folder
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(server.path))
        self.sock.setblocking(False)
        self.reads = rng.random() < 0.8
        self.kept: list[int] = []
        self.asked: list[tuple[int, int, int, int]] = []
        self.log: list[str] = []

    def close(self) -> None:
        self.sock.close()
        for fd in self.kept:
            os.close(fd)

    # What it sends.

    def number(self, bits: int) -> int:
        rng = self.rng
        value = rng.choice((*EDGES, rng.randrange(16), rng.randrange(64) << 12, rng.getrandbits(bits)))
        return value & ((1 << bits) - 1)

    def fd(self) -> int:
        """Make a descriptor of any sort."""
        rng = self.rng
        match rng.randrange(14):
            case 0:
                ends = os.pipe()
                os.close(ends[1])
                return ends[0]
            case 1:
                return os.open(self.folder, os.O_RDONLY)
            case 2:
                return memory_file(rng.choice((0, 1, 4095)))
            case 3:
                return memory_file(1 << 22, seals=0)
            case 4:
                return os.open("/dev/zero", os.O_RDWR)
            case 5:
                return memory_file(1 << 22, seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
            case 6:
                return memory_file(1 << rng.choice((36, 45)))
            case 7:
                return socket.socket(socket.AF_UNIX).detach()
            case 8:
                full = os.eventfd(0)
                os.write(full, ((1 << 64) - 2).to_bytes(8, "little"))
                return full
            case 9 | 10:
                return os.eventfd(0)
            case _:
                return memory_file(1 << 22)

    def good(self) -> tuple[int, bytes, list[int]]:
        """Make a message as a good client would send it."""
        rng = self.rng
        command = rng.choice((*Command, Command.DMA_MAP, Command.DMA_MAP, Command.REGION_READ, Command.REGION_WRITE,
                              Command.REGION_WRITE, Command.DEVICE_SET_IRQS))  # fmt: skip
        page = rng.randrange(256) << 12
        region, count = rng.choice((0, 2, 4, 7)), rng.choice((1, 2, 4, 8, 4096))
        match command:
            case Command.VERSION:
                return command, self.hello(), []
            case Command.DMA_MAP:
                fds = [memory_file(1 << 22)] if rng.random() < 0.7 else []
                return command, DMA_MAP.pack(32, rng.choice((1, 2, 3, 3)), page, page, 4096 << rng.randrange(8)), fds
            case Command.DMA_UNMAP:
                whole = rng.random() < 0.2
                size = 4096 << rng.randrange(8)
                return command, DMA_UNMAP.pack(24, 2, 0, 0) if whole else DMA_UNMAP.pack(24, 0, page, size), []
            case Command.DEVICE_GET_INFO:
                return command, DEVICE_INFO.pack(16, 0, 0, 0), []
            case Command.DEVICE_GET_REGION_INFO | Command.DEVICE_GET_REGION_IO_FDS:
                return command, REGION_INFO.pack(rng.choice((32, 80, 4096)), 0, rng.randrange(9), 0, 0, 0), []
            case Command.DEVICE_GET_IRQ_INFO:
                return command, IRQ_INFO.pack(16, 0, rng.randrange(5), 0), []
            case Command.DEVICE_SET_IRQS:
                kind, action, many = rng.choice((1, 2, 4, 4)), rng.choice((8, 16, 32, 32)), rng.randrange(4)
                fds = [os.eventfd(0) for _ in range(rng.randrange(many + 1))] if kind == 4 else []
                data = rng.randbytes(many) if kind == 2 else b""
                return command, IRQ_SET.pack(20, kind | action, rng.randrange(4), 0, many) + data, fds
            case Command.REGION_READ:
                return command, REGION_ACCESS.pack(rng.randrange(0x1000), region, count), []
            case Command.REGION_WRITE:
                return command, REGION_ACCESS.pack(rng.randrange(0x1000), region, count) + rng.randbytes(count), []
            case Command.REGION_WRITE_MULTI:
                writes = rng.randrange(5)
                body = b"".join(MULTI_WRITE.pack(rng.randrange(4096), 7, rng.randrange(9), b"") for _ in range(writes))
                return command, struct.pack("<Q", writes) + body, []
            case _:
                return command, b"", []

    def hello(self) -> bytes:
        rng = self.rng
        match rng.randrange(20):
            case 0:
                return rng.randbytes(rng.randrange(64))
            case 1:
                return version({**CAPABILITIES, rng.choice(list(CAPABILITIES)): rng.choice((-1, None, [], 1e99, "x"))})
            case 2:
                return version(CAPABILITIES, major=rng.choice((0, 1, 0xFFFF)), minor=self.number(16))
            case 3:
                nested: object = 0
                for _ in range(rng.choice((10, 300))):
                    nested = [nested]
                return VERSION.pack(0, 0) + json.dumps(nested).encode() + b"\0"
            case _:
                size = rng.choice((8, 4096, 1 << 20, (1 << 64) - 1))
                return version({**CAPABILITIES, "max_data_xfer_size": size, "write_multiple": True})

    def mutate(self, body: bytes) -> bytes:
        """Change a body: a field, its length, bytes of it, or all."""
        rng = self.rng
        match rng.randrange(6):
            case 0:
                return body[: rng.randrange(len(body) + 1)]
            case 1:
                return body + rng.randbytes(rng.choice((1, 4, 24, 5000)))
            case 2:
                return rng.randbytes(rng.choice((0, 16, 24, 32, 40)))
            case 3 if len(body) >= 8:
                at = rng.randrange(0, len(body) - 7, 4)
                return body[:at] + self.number(64).to_bytes(8, "little") + body[at + 8 :]
            case _ if len(body) >= 4:
                at = rng.randrange(0, len(body) - 3, 4)
                return body[:at] + self.number(32).to_bytes(4, "little") + body[at + 4 :]
        return body

    def message(self) -> tuple[bytes, list[int]]:
        """Make one message, good or bad."""
        rng = self.rng
        command, body, fds = self.good()
        if rng.random() < 0.4:
            body = self.mutate(body)
        if rng.random() < 0.1:
            many = rng.choice((17, 40)) if rng.random() < 0.05 else rng.choice((1, 1, 2, 15, 16))
            fds += [self.fd() for _ in range(many)]
        elif fds and rng.random() < 0.3:
            os.close(fds.pop())
            fds.append(self.fd())
        flags = rng.choice((0, 0, 0, 0, 0, 0, 0x10, 0x20, 0x30, 1, 0x21))
        if rng.random() < 0.01:
            flags = rng.choice((2, 15, rng.getrandbits(32)))
        size = HEADER.size + len(body)
        if rng.random() < 0.01:
            size = self.number(32)
        if rng.random() < 0.05:
            command = self.number(16)
        return HEADER.pack(self.number(16), command, size, flags, self.number(32)) + body, fds

    def answer(self) -> bytes:
        """Answer a request of the server's: well, or not."""
        rng = self.rng
        number, command, address, count = self.asked.pop(rng.randrange(len(self.asked)))
        body = DMA_ACCESS.pack(address, count) + (bytes(min(count, 1 << 17)) if command == Command.DMA_READ else b"")
        if rng.random() < 0.3:
            body = self.mutate(body)
        flags = rng.choice((1, 1, 1, 0x21))
        return HEADER.pack(number, command, HEADER.size + len(body), flags, self.number(32)) + body

    # What it does.

    def put(self, content: bytes, fds: list[int]) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            while content:
                sent = self.sock.sendmsg([content], rights, socket.MSG_NOSIGNAL)
                content, rights = content[sent:], []
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def act(self) -> bool:
        """Do one thing; False: the connection is over."""
        rng = self.rng
        if self.asked and rng.random() < 0.5:
            content, fds = self.answer(), []
        else:
            content, fds = self.message()
        self.log = [*self.log[-7:], f"{content[:64].hex()} {len(content)} bytes, {len(fds)} descriptors"]
        match rng.randrange(200):
            case 0:
                content = content[: rng.randrange(len(content))]
            case 1:
                content *= 3
            case 2:
                content = rng.randbytes(rng.randrange(1, 200))
        alive = self.put(content, fds)
        self.treat(fds)
        if self.reads:
            self.listen()
        return alive and rng.random() > 0.005

    def treat(self, fds: list[int]) -> None:
        """Do harm to files that the server may have by now, and close them, or keep them for later."""
        for fd in self.kept if self.rng.random() < 0.1 else fds:
            if self.rng.random() < 0.3:
                try:
                    os.ftruncate(fd, 0)
                except OSError:
                    continue
        self.kept += fds
        while len(self.kept) > 40:
            os.close(self.kept.pop(0))

    def listen(self) -> None:
        """Read what has come; remember what is asked."""
        got, fds = b"", []
        try:
            while True:
                more, ancillary, _, _ = self.sock.recvmsg(1 << 16, 4096)
                fds += [fd for _, _, content in ancillary for fd in array.array("i", content)]
                if not more:
                    break
                got += more
        except OSError:
            pass
        for fd in fds:
            os.close(fd)
        while len(got) >= 32:
            number, command, size, flags, _ = HEADER.unpack_from(got)
            if size < HEADER.size:
                break
            if command in (Command.DMA_READ, Command.DMA_WRITE) and flags == 0:
                self.asked.append((number, command, *DMA_ACCESS.unpack_from(got, HEADER.size)))
            got = got[size:]


class World:
    """A server, and one bad client after the other."""

    def __init__(self, folder: str, seed: str) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.mapper = MmapMapper(max_bytes=1 << 40)
        self.board = Restless(self.rng, self.mapper)
        self.server = Server(f"{folder}/socket", self.board, mapper=self.mapper, limits=LIMITS)
        self.before = open_fds()

    def serve(self) -> None:
        started = time.monotonic()
        self.server.serve(self.rng.choice((1, 8, 64)))
        assert time.monotonic() - started < PATIENCE_S, "a call is bounded"

    def live(self) -> None:
        """Let one bad client live its life."""
        rng, hostile = self.rng, Hostile(self.server, self.rng, self.folder)
        try:
            if rng.random() < 0.9:
                body = hostile.hello()
                hostile.put(HEADER.pack(1, Command.VERSION, HEADER.size + len(body), 0, 0) + body, [])
            for _ in range(rng.choice((1, 10, 100, 300))):
                if not hostile.act():
                    break
                if rng.random() < 0.7:
                    self.serve()
                if rng.random() < 0.02:
                    self.knock()
        except BaseException:
            print("last messages:", *hostile.log, sep="\n  ")
            raise
        finally:
            hostile.close()

    def knock(self) -> None:
        """Let another client come while the device is taken, or may be."""
        other = Hostile(self.server, self.rng, self.folder)
        try:
            for _ in range(self.rng.randrange(4)):
                other.act()
                self.serve()
        finally:
            other.close()

    def check(self) -> None:
        """Everything of the last client is gone, and the next one is served."""
        settle(self.server)
        assert open_fds() == self.before
        assert len(self.mapper._files) == len(self.mapper._starts) == 0
        assert self.board.client is None
        with Peer(self.server) as peer:
            fd = memory_file(1 << 20)
            peer.map(0, 1 << 20, fd)
            os.close(fd)
            assert self.mapper.write(0, b"still here")
            peer.set_irqs(0x21, 2, 0, 0)
            assert peer.call(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0))

    def close(self) -> None:
        self.server.close()
        self.board.close()


def run(folder: str, seconds: float) -> dict[str, int]:
    """Let clients come for so long; return the counters."""
    world = World(folder, f"{SEED}/vfio-user")
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            world.live()
            world.check()
        return world.server.counters | {f"done:{n}": count for n, count in world.board.done.items()}
    except BaseException:
        print(f"VIRTFN_SEED={SEED}, client {world.server.counters.get('connected', 0)}")
        raise
    finally:
        world.close()


def seen(counters: dict[str, int]) -> None:
    """Check that the attacks reached what they aim at."""
    assert all(counters.get(command.name, 0) > 0 for command in Command)
    reasons = {name for name in counters if name.startswith("refused:")}
    assert len(reasons) > 20, reasons
    for name in ("refused:map-can-shrink", "refused:map-not-a-memfd", "refused:map-beyond-file", "refused:map-overlaps",
                 "refused:irq-not-an-eventfd", "dropped:oversized-message", "dropped:unknown-message-type",
                 "dropped:too-many-fds", "dropped:no-version", "turned-away", "fds-not-wanted", "done:0"):  # fmt: skip
        assert counters.get(name, 0) > 0, name


def test_a_hostile_client_harms_only_itself(tmp_path):
    print(f"VIRTFN_SEED={SEED}")
    counters = run(str(tmp_path), SECONDS)
    print(dict(sorted(counters.items())))
    seen(counters)


def test_memory_is_bounded(tmp_path):
    tracemalloc.start()
    try:
        world = World(str(tmp_path), f"{SEED}/memory")
        for _ in range(30):
            hostile = Hostile(world.server, world.rng, str(tmp_path))
            hostile.reads = False
            body = version(CAPABILITIES)
            hostile.put(HEADER.pack(1, Command.VERSION, HEADER.size + len(body), 0, 0) + body, [])
            read = REGION_ACCESS.pack(0, 7, 4096)
            for _ in range(400):
                hostile.put(HEADER.pack(1, Command.REGION_READ, HEADER.size + len(read), 0, 0) + read, [])
                world.serve()
            hostile.close()
            world.check()
        peak = tracemalloc.get_traced_memory()[1]
        print(f"peak: {peak} bytes")
        assert peak < MEMORY_BYTES
        world.close()
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_minute_of_hostile_clients(tmp_path):
    print(f"VIRTFN_SEED={SEED}")
    counters = run(str(tmp_path), max(SECONDS, 60))
    print(dict(sorted(counters.items())))
    seen(counters)
