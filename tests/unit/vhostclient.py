"""A client of the vhost-user library in plain Python: what QEMU says, and what it never would."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from reference.virtio import Header
from unit.virtiorig import Queue
from virtfn.devices.virtio import OFFERED
from virtfn.vmm.vhost_user import Request, Switch

SIZE = 1 << 20
UVA = 0x7F00_0000_0000
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Shared:
    """Guest memory in a memfd: guest address 0 is UVA in the client."""

    def __init__(self, size: int = SIZE, seals: int = SEALS) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if seals:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self.bytes = mmap.mmap(self.fd, size)

    def read(self, gpa: int, size: int) -> bytes | None:
        return self.bytes[gpa : gpa + size] if gpa >= 0 and gpa + size <= len(self.bytes) else None

    def write(self, gpa: int, content: bytes) -> None:
        if gpa >= 0 and gpa + len(content) <= len(self.bytes):
            self.bytes[gpa : gpa + len(content)] = content

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


class Client:
    """A connection to a port. Its rings have 64 descriptors, at 0 and 0x4000 of its memory."""

    def __init__(self, switch: Switch, path: Path) -> None:
        self.switch = switch
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(0)
        self.sock.connect(str(path))
        self.memory = Shared()
        self.rings = [Queue(self.memory, 0, 64), Queue(self.memory, 0x4000, 64)]  # type: ignore[arg-type]
        self.kicks = [os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self.errs = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self.at = 0x8000
        self.buffers: dict[int, tuple[int, int]] = {}
        self.turns()

    def close(self) -> None:
        self.sock.close()
        self.memory.close()
        for fd in (*self.kicks, *self.calls, *self.errs):
            os.close(fd)

    def turns(self, count: int = 3) -> None:
        for _ in range(count):
            self.switch.turn(0)

    # Messages.

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([struct.pack("=III", request, flags, len(payload)) + payload], rights)
        self.turns(1)

    def receive(self) -> tuple[int, bytes]:
        """Take an answer: its number and payload."""
        head = self.sock.recv(12, socket.MSG_WAITALL)
        assert len(head) == 12, "hung up"
        request, flags, size = struct.unpack("=III", head)
        assert flags == 5
        return request, self.sock.recv(size)

    def ask(self, request: int, payload: bytes = b"") -> int:
        self.send(request, payload)
        got, answer = self.receive()
        assert got == request
        return int(struct.unpack("=Q", answer)[0])

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send what is acknowledged; return how."""
        self.send(request, payload, fds, 9)
        got, answer = self.receive()
        assert got == request
        return int(struct.unpack("=Q", answer)[0])

    @property
    def hung_up(self) -> bool:
        self.turns()
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    # What QEMU does.

    def connect(self) -> None:
        offered = self.ask(Request.GET_FEATURES)
        assert offered == OFFERED | 1 << 30
        protocol = self.ask(Request.GET_PROTOCOL_FEATURES)
        self.send(Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", protocol))
        self.send(Request.SET_OWNER)
        for n in (0, 1):
            self.fd_message(Request.SET_VRING_CALL, n, self.calls[n])
            self.fd_message(Request.SET_VRING_ERR, n, self.errs[n])

    def fd_message(self, request: int, n: int, fd: int) -> int:
        return self.tell(request, struct.pack("=Q", n if fd >= 0 else n | 0x100), (fd,) if fd >= 0 else ())

    def table(self, *regions: tuple[int, int, int, int]) -> bytes:
        regions = regions or ((0, SIZE, UVA, 0),)
        return struct.pack("=II", len(regions), 0) + b"".join(struct.pack("=QQQQ", *region) for region in regions)

    def start(self, features: int = OFFERED, bases: Sequence[int] = (0, 0), poll: bool = False) -> None:
        """Do what QEMU does when the driver is ready."""
        for n in (0, 1):
            assert self.tell(Request.SET_VRING_ENABLE, struct.pack("=II", n, 1)) == 0
        self.send(Request.SET_FEATURES, struct.pack("=Q", features | 1 << 30))
        assert self.tell(Request.SET_MEM_TABLE, self.table(), (self.memory.fd,)) == 0
        for n, ring in enumerate(self.rings):
            self.send(Request.SET_VRING_NUM, struct.pack("=II", n, ring.size))
            self.send(Request.SET_VRING_BASE, struct.pack("=II", n, bases[n]))
            addresses = (UVA + ring.desc, UVA + ring.used, UVA + ring.avail, 0)
            self.send(Request.SET_VRING_ADDR, struct.pack("=IIQQQQ", n, 0, *addresses))
            assert self.fd_message(Request.SET_VRING_KICK, n, -1 if poll else self.kicks[n]) == 0
            assert self.fd_message(Request.SET_VRING_CALL, n, self.calls[n]) == 0

    def stop(self) -> list[int]:
        bases = []
        for n in (0, 1):
            self.send(Request.GET_VRING_BASE, struct.pack("=II", n, 0))
            _, answer = self.receive()
            number, base = struct.unpack("=II", answer)
            assert number == n
            bases.append(base)
        return bases

    # Frames.

    def transmit(self, frame: bytes, header: Header | None = None, kick: bool = True) -> None:
        raw = (header or Header()).pack() + frame
        self.at = self.at + 4096 if self.at < 0x60000 else 0x8000
        self.memory.write(self.at, raw)
        self.rings[1].offer(self.rings[1].chain([(self.at, len(raw))]))
        if kick:
            os.eventfd_write(self.kicks[1], 1)

    def fill(self, count: int, size: int = 2048) -> None:
        for _ in range(count):
            at = 0x80000 + self.rings[0].next * size
            head = self.rings[0].chain([(at, size)], write=True)
            self.buffers[head] = at, size
            self.rings[0].offer(head)

    def received(self) -> list[bytes]:
        frames = []
        for head, length in self.rings[0].reap():
            at, _ = self.buffers.pop(head)
            raw = self.memory.read(at, length)
            assert raw is not None
            frames.append(raw[12:])
        return frames

    def called(self, n: int) -> int:
        try:
            return os.eventfd_read(self.calls[n])
        except BlockingIOError:
            return 0
