"""The clients of `neighbours.py`: each does one thing as often as it is let, in a process of its own.

Usage: python benchmarks/floods.py SOCKET FLOOD; it goes on until it is killed, and writes `+` when it begins.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator

from virtfn.vmm.vfio_user.messages import (
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    IRQ_SET,
    MULTI_COUNT,
    MULTI_WRITE,
    NO_REPLY,
    REGION_ACCESS,
    REGION_INFO,
    VERSION,
    Command,
)

BAR0, BAR3, CONFIG = 0, 3, 7
CTRL, EICR, EICS, EIMS, MAILBOX, MAILBOX_WORDS = 0x0, 0x1580, 0x1520, 0x1524, 0xC40, 0x800
RST = 1 << 26
REQ, ACK, VFU = 1, 2, 4
COMMAND, BARS, MSIX, PCIE = 0x4, 0x10, 0x70, 0xA0
DEVCTL, FLR = PCIE + 8, 1 << 15
MIB = 1 << 20

Message = tuple[bytes, list[int]]


def message(command: int, body: bytes = b"", fds: list[int] | None = None, *, posted: bool = False) -> Message:
    return HEADER.pack(1, command, HEADER.size + len(body), NO_REPLY if posted else 0, 0) + body, fds or []


def write(region: int, offset: int, value: int, size: int = 4, *, posted: bool = False) -> Message:
    body = REGION_ACCESS.pack(offset, region, size) + value.to_bytes(size, "little")
    return message(Command.REGION_WRITE, body, posted=posted)


def read(region: int, offset: int, size: int) -> Message:
    return message(Command.REGION_READ, REGION_ACCESS.pack(offset, region, size))


def multi(region: int, offset: int, value: int, count: int = 1024) -> Message:
    one = MULTI_WRITE.pack(offset, region, 4, value.to_bytes(4, "little"))
    return message(Command.REGION_WRITE_MULTI, MULTI_COUNT.pack(count) + one * count)


def mapping(iova: int, size: int, fd: int, offset: int = 0) -> Message:
    return message(Command.DMA_MAP, DMA_MAP.pack(32, 3, offset, iova, size), [fd])


def unmapping(iova: int, size: int, flags: int = 0) -> Message:
    return message(Command.DMA_UNMAP, DMA_UNMAP.pack(24, flags, iova, size))


def memory_file(size: int) -> int:
    fd = os.memfd_create("flood", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def again(*messages: Message) -> Iterator[Message]:
    return itertools.cycle(messages)


def mailbox(word: int, *words: int) -> list[Message]:
    """Send a request through the mailbox."""
    said = [write(BAR0, MAILBOX_WORDS + 4 * i, value) for i, value in enumerate((word, *words))]
    return [write(BAR0, MAILBOX, VFU), *said, write(BAR0, MAILBOX, REQ), write(BAR0, MAILBOX, ACK)]


def maps(pieces: int, size: int, skew: int) -> Iterator[Message]:
    """Map and unmap memory in pieces. skew: how far addresses and file are apart."""
    fd = memory_file(64 * MIB)
    some = [(n * 2 * size + skew, size, n * size) for n in range(pieces)]
    return again(*(mapping(at, n, fd, off) for at, n, off in some), *(unmapping(at, n) for at, n, _ in some))


def all_at_once() -> Iterator[Message]:
    fd = memory_file(16 * MIB)
    return again(*(mapping(n << 13, 4096, fd, n << 12) for n in range(1024)), unmapping(0, 0, 2))


def sets() -> Iterator[Message]:
    fds = [os.eventfd(0)]
    assign = message(Command.DEVICE_SET_IRQS, IRQ_SET.pack(20, 0x24, 3, 0, 1), fds)
    trigger = message(Command.DEVICE_SET_IRQS, IRQ_SET.pack(20, 0x21, 3, 0, 1))
    return again(assign, trigger, message(Command.DEVICE_SET_IRQS, IRQ_SET.pack(20, 0x21, 3, 0, 0)))


def vector(address: int, data: int) -> list[Message]:
    words = ((0, address), (4, 0), (8, data), (12, 0), (12, 1))
    return [write(BAR3, 16 + at, value) for at, value in words]


UP = [write(CONFIG, MSIX + 2, 0x8000, 2), write(CONFIG, COMMAND, 6, 2)]
HELLO = [message(Command.DEVICE_RESET), *UP]

# What is said again and again, by name. An iterator is made when the client is connected.
FLOODS: dict[str, Callable[[], Iterator[Message]]] = {
    "multi of resets": lambda: again(multi(BAR0, CTRL, RST)),
    "multi of FLRs": lambda: again(multi(CONFIG, DEVCTL, FLR)),
    "multi of masks": lambda: again(multi(BAR0, EIMS, 0)),
    "4 KiB BAR writes": lambda: again(write(BAR0, 0, 0, 4096)),
    "4 KiB BAR writes of ones": lambda: again(write(BAR0, 0, (1 << 32768) - 1, 4096)),
    "4 KiB BAR reads": lambda: again(read(BAR0, 0, 4096)),
    "4 KiB config writes": lambda: again(write(CONFIG, 0, 0, 4096)),
    "4 KiB config reads": lambda: again(read(CONFIG, 0, 4096)),
    "4 KiB MSI-X writes": lambda: again(write(BAR3, 0, 0, 4096)),
    "FLR": lambda: again(write(CONFIG, DEVCTL, FLR, 2)),
    "VTCTRL.RST": lambda: again(write(BAR0, CTRL, RST)),
    "device reset": lambda: again(message(Command.DEVICE_RESET)),
    "mailbox reset": lambda: again(*mailbox(1)),
    "mailbox requests": lambda: again(*mailbox(1), *mailbox(4 | 1 << 16, 5), *mailbox(4, 5)),
    "mailbox multicast": lambda: again(*mailbox(1), *mailbox(3 | 30 << 16, *range(15)), *mailbox(3)),
    "REQ alone": lambda: again(write(BAR0, MAILBOX, REQ)),
    "bus master": lambda: again(write(CONFIG, COMMAND, 2, 2), write(CONFIG, COMMAND, 6, 2)),
    "MSI-X enable": lambda: again(write(CONFIG, MSIX + 2, 0, 2), write(CONFIG, MSIX + 2, 0x8000, 2)),
    "BARs": lambda: again(write(CONFIG, BARS, 0xFFFFFFFF), write(CONFIG, BARS, 0xE0000000)),
    "MSI-X vectors": lambda: again(*vector(0xFEE01000, 0x4021), *vector(0xFEE02000, 0x4022)),
    "interrupts": lambda: again(*vector(0xFEE01000, 0x4021)[:4], *[write(BAR0, EIMS, 7), write(BAR0, EICS, 7)] * 50),
    "EIMS": lambda: again(write(BAR0, EIMS, 2)),
    "posted writes": lambda: again(write(BAR0, EICR, 0, posted=True)),
    "maps of 2 MiB": lambda: maps(8, 2 * MIB, 0),
    "maps of pages": lambda: maps(8, 4096, 0),
    "maps in pieces": lambda: maps(4, 4 * MIB, 4096),
    "unmap all": all_at_once,
    "SET_IRQS": sets,
    "region info": lambda: again(message(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(80, 0, 0, 0, 0, 0))),
    "unknown commands": lambda: again(message(99, bytes(64))),
    "VERSION": lambda: again(message(Command.VERSION, VERSION.pack(0, 0) + b'{"capabilities": {}}\0')),
    "byte by byte": lambda: ((bytes([byte]), []) for byte in itertools.cycle(write(BAR0, EICR, 0)[0])),
    "connections": lambda: again((b"", [])),
    "connections with memory": all_at_once,
}  # fmt: skip


class Client:
    """A connection."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.connect()

    def connect(self) -> None:
        """Connect, and agree on a version."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)
        capabilities = {"max_data_xfer_size": MIB, "write_multiple": True}
        body = VERSION.pack(0, 0) + json.dumps({"capabilities": capabilities}).encode() + b"\0"
        self.put(message(Command.VERSION, body))
        self.sock.recv(4096)

    def put(self, one: Message) -> None:
        """Say something, and take answers for as long as there is no room for it."""
        content, fds = one
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while content:
            try:
                sent = self.sock.sendmsg([content], rights, socket.MSG_NOSIGNAL)
                content, rights = content[sent:], []
            except BlockingIOError:
                self.drain(wait=True)

    def drain(self, *, wait: bool = False) -> None:
        """Take answers and throw them away; wait until more can be said."""
        readable, _, _ = select.select([self.sock], [self.sock] if wait else [], [], 0.1 if wait else 0)
        if readable:
            while True:
                try:
                    got, rights, _, _ = self.sock.recvmsg(1 << 18, 4096)
                except BlockingIOError:
                    return
                if not got:
                    raise EOFError
                for _, _, content in rights:
                    for fd in array.array("i", content):
                        os.close(fd)

    def flood(self, messages: Iterator[Message], each: int) -> None:
        """Say things for ever. each: messages of a connection; 0: all."""
        for count in itertools.count(1):
            self.put(next(messages))
            self.drain()
            if each and count % each == 0:
                self.sock.close()
                self.connect()
                self.sock.setblocking(False)


def main() -> None:
    path, name = sys.argv[1:]
    client = Client(path)
    for one in HELLO:
        client.put(one)
        client.sock.recv(4096)
    client.sock.setblocking(False)
    messages = FLOODS[name]()
    each = {"connections": 1, "connections with memory": 1024}.get(name, 0)
    os.write(1, b"+")
    client.flood(messages, each)


if __name__ == "__main__":
    main()
