"""The other end for tests: a client that says what it is told to, right or wrong; and a device that notes everything.

Client and server share the thread: `settle` lets the server do all it can.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from virtfn.vmm.vfio_user import Client, Irq, IrqFlags, Region, Server, VfioUserDevice, shared_memory
from virtfn.vmm.vfio_user.messages import (
    DMA_ACCESS,
    DMA_MAP,
    DMA_UNMAP,
    ERROR,
    HEADER,
    IRQ_SET,
    NO_REPLY,
    REGION_ACCESS,
    REGION_INFO,
    REPLY,
    VERSION,
    Command,
    Header,
)

CAPABILITIES = {"max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1 << 20, "pgsizes": 4096}
TRIGGER_FD, TEAR_DOWN = 0x24, 0x21


class ToldError(Exception):
    """The server answered with an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


def settle(server: Server) -> int:
    """Let the server work until it has nothing to do, and has closed what it was sent."""
    served = 0
    for _ in range(100_000):
        if server.fileno() < 0 or not select.select([server], [], [], 0)[0]:
            if not server.closing:
                return served
            time.sleep(0.0001)
        served += server.serve()
    raise AssertionError("the server never comes to rest")


class Peer:
    """A connected client."""

    def __init__(self, server: Server, *, hello: bool = True, **capabilities: object) -> None:
        self.server = server
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(server.path))
        self.sock.setblocking(False)
        self.number = 0
        self.offered: dict[str, object] = {}
        settle(server)
        if hello:
            body = self.call(Command.VERSION, version({**CAPABILITIES, **capabilities}))
            self.offered = json.loads(body[VERSION.size : -1])["capabilities"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()
        settle(self.server)

    def raw(self, content: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.sock.sendmsg([content], rights) == len(content)

    def send(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> int:
        self.number = self.number + 1 & 0xFFFF
        self.raw(HEADER.pack(self.number, command, HEADER.size + len(body), flags, 0) + body, fds)
        return self.number

    def take(self) -> tuple[Header, bytes, list[int]]:
        """Take the next message: its header must come in one piece, as QEMU wants it."""
        settle(self.server)
        head, ancillary, _, _ = self.sock.recvmsg(HEADER.size, 1024)
        if not head:
            raise EOFError
        assert len(head) == HEADER.size
        fds = [fd for _, _, content in ancillary for fd in array.array("i", content)]
        header = Header._make(HEADER.unpack(head))
        body = b""
        while len(body) < header.size - HEADER.size:
            settle(self.server)
            body += self.sock.recv(header.size - HEADER.size - len(body))
        return header, body, fds

    def call_with_fds(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        number = self.send(command, body, fds)
        header, answer, got = self.take()
        assert (header.id, header.command) == (number, command)
        if header.flags == REPLY | ERROR:
            assert (answer, got) == (b"", [])
            raise ToldError(header.errno)
        assert (header.flags, header.errno) == (REPLY, 0)
        return answer, got

    def call(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        answer, got = self.call_with_fds(command, body, fds)
        assert not got
        return answer

    def answer(self, header: Header, body: bytes = b"", number: int = 0) -> None:
        flags = REPLY | (ERROR if number else 0)
        self.raw(HEADER.pack(header.id, header.command, HEADER.size + len(body), flags, number) + body)

    def quiet(self) -> bool:
        """Tell whether nothing has come."""
        settle(self.server)
        return not select.select([self.sock], [], [], 0)[0]

    def ended(self) -> bool:
        """Tell whether the server has hung up, after whatever it said before."""
        settle(self.server)
        try:
            while self.sock.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    # The requests.

    def map(self, iova: int, size: int, fd: int | None = None, offset: int = 0, prot: int = 3) -> bytes:
        return self.call(Command.DMA_MAP, DMA_MAP.pack(32, prot, offset, iova, size), [] if fd is None else [fd])

    def unmap(self, iova: int, size: int, flags: int = 0) -> bytes:
        return self.call(Command.DMA_UNMAP, DMA_UNMAP.pack(24, flags, iova, size))

    def region_info(self, index: int, argsz: int = 32) -> tuple[bytes, list[int]]:
        return self.call_with_fds(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(argsz, 0, index, 0, 0, 0))

    def read(self, region: int, offset: int, count: int) -> bytes:
        body = self.call(Command.REGION_READ, REGION_ACCESS.pack(offset, region, count))
        assert body[:16] == REGION_ACCESS.pack(offset, region, count)
        return body[16:]

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        body = REGION_ACCESS.pack(offset, region, len(data)) + data
        if posted:
            self.send(Command.REGION_WRITE, body, flags=NO_REPLY)
        else:
            assert self.call(Command.REGION_WRITE, body) == body[:16]

    def set_irqs(self, flags: int, index: int, start: int, count: int, data: bytes = b"", fds: Sequence[int] = ()):
        body = IRQ_SET.pack(20 + len(data), flags, index, start, count) + data
        assert self.call(Command.DEVICE_SET_IRQS, body, fds) == b""

    def take_dma(self, command: int) -> tuple[Header, int, int, bytes]:
        """Take a request of the server's: header, address, count, data."""
        header, body, fds = self.take()
        assert (header.command, fds) == (command, [])
        address, count = DMA_ACCESS.unpack_from(body)
        return header, address, count, body[16:]


def version(capabilities: object, major: int = 0, minor: int = 0) -> bytes:
    return VERSION.pack(major, minor) + json.dumps({"capabilities": capabilities}).encode() + b"\0"


def memory_file(size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """Make a client's memory file."""
    fd = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Lingering:
    """A TCP connection that nobody can close before `release`: its peer does not read, and SO_LINGER is set."""

    def __init__(self) -> None:
        with socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            door.bind(("127.0.0.1", 0))
            door.listen()
            self._sock = socket.create_connection(door.getsockname())
            self._end, _ = door.accept()
        self._sock.setblocking(False)
        try:
            while True:
                self._sock.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))

    def put(self, sock: socket.socket, content: bytes, flags: int = 0, copies: int = 1) -> None:
        """Send the only descriptor that there is."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._sock.fileno()] * copies))]
        assert sock.sendmsg([content], rights, flags) == len(content)
        self._sock.close()

    def release(self) -> None:
        if self._end.fileno() >= 0:
            self._end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._end.close()


class Board(VfioUserDevice):
    """A device with all there is: BAR0 trapped and mappable by parts, BAR2 mappable whole, BAR4 read only, config."""

    def __init__(self) -> None:
        self.file = shared_memory(0x8000)
        self.memory = bytearray(0x8000)
        self.events: list[tuple[object, ...]] = []
        self.client: Client | None = None
        self.failing: Exception | None = None

    def close(self) -> None:
        os.close(self.file)

    def regions(self):
        return {
            0: Region(0x8000, fd=self.file, areas=((0x2000, 0x2000), (0x6000, 0x1000))),
            2: Region(0x4000, fd=self.file, fd_offset=0x4000),
            4: Region(0x1000, write=False),
            7: Region(0x1000),
        }

    def irqs(self):
        return {
            0: Irq(1, IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED),
            1: Irq(4, IrqFlags.EVENTFD | IrqFlags.MASKABLE),
            2: Irq(3),
            3: Irq(1),
        }

    def region_read(self, region, offset, count):
        self.events.append(("read", region, offset, count))
        if self.failing:
            raise self.failing
        return bytes(self.memory[offset : offset + count])

    def region_write(self, region, offset, data):
        self.events.append(("write", region, offset, data))
        if self.failing:
            raise self.failing
        self.memory[offset : offset + len(data)] = data

    def reset(self):
        self.events.append(("reset",))

    def connected(self, client):
        self.client = client
        self.events.append(("connected",))

    def disconnected(self):
        self.client = None
        self.events.append(("disconnected",))

    def dma_mapped(self, iova, size, prot):
        self.events.append(("mapped", iova, size, prot))

    def dma_unmapped(self, iova, size):
        self.events.append(("unmapped", iova, size))
