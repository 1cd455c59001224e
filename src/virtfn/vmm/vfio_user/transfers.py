"""DMA by messages, for memory that the client did not share, and for messages of interrupts.

    dma_write(iova, 3 MiB) -> DMA_WRITE 1 MiB, 1 MiB, 1 MiB -> three answers, in any order -> done(b"", 0)
    dma_read(iova, 64 KiB) -> DMA_READ 32 KiB, 32 KiB       -> two answers, in any order   -> done(64 KiB, 0)

Nobody waits: the answer comes by a callback out of `Server.serve`. A client serves these requests while it waits for
answers of ours, or not: waiting for them inside an access would hang both.

Spec: vfio-user protocol, DMA_READ and DMA_WRITE.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from virtfn.vmm.connection import Connection, Message
from virtfn.vmm.vfio_user.messages import DMA_ACCESS, ERROR, U64, Command, Header, request

# QEMU loses the rest of an answer that its socket takes in part. Linux takes so many bytes whole, or not at all.
_WHOLE_BYTES = 32 << 10

Done: TypeAlias = Callable[[bytes, int], None]
"""Called once at the end of a transfer, with what was read and an errno: 0 if all went well, else nothing was read."""


@dataclass(slots=True)
class _Transfer:
    done: Done
    data: bytearray
    parts: int
    errno: int = 0


@dataclass(slots=True)
class _Part:
    transfer: _Transfer
    command: Command
    iova: int
    at: int
    count: int


class Transfers:
    """The transfers under way. largest: bytes in a message; limit: messages without an answer; room: bytes unsent."""

    def __init__(self, connection: Connection[Header], largest: int, limit: int, room: int) -> None:
        self._connection = connection
        self._largest = largest
        self._most_read = min(largest, _WHOLE_BYTES)
        self._limit = limit
        self._room = room
        self._parts: dict[int, _Part] = {}
        self._next_id = 0

    def read(self, iova: int, count: int, done: Done) -> None:
        """Ask for `count` bytes of the client's memory."""
        if self._begin(iova, count, self._most_read, 0, done):
            parts = self._cut(count, self._most_read)
            transfer = _Transfer(done, bytearray(count), len(parts))
            for at, size in parts:
                self._ask(Command.DMA_READ, transfer, iova, at, size, b"")

    def write(self, iova: int, data: bytes, done: Done | None) -> None:
        """Write to the client's memory; without `done` no answer is asked for."""
        if done is None:
            for at, size in self._cut(len(data), self._largest):
                body = DMA_ACCESS.pack((iova + at) % U64, size) + data[at : at + size]
                self._connection.send(request(self._new_id(), Command.DMA_WRITE, body, no_reply=True))
        elif self._begin(iova, len(data), self._largest, len(data), done):
            parts = self._cut(len(data), self._largest)
            transfer = _Transfer(done, bytearray(), len(parts))
            for at, size in parts:
                self._ask(Command.DMA_WRITE, transfer, iova, at, size, data[at : at + size])

    def _begin(self, iova: int, count: int, largest: int, output: int, done: Done) -> bool:
        """Check a transfer; one that cannot start, or has nothing to do, is done at once."""
        parts = -(-count // largest)
        if count <= 0 or self._connection.lost:
            done(b"", errno.ENOTCONN if self._connection.lost else 0)
        elif iova < 0 or iova + count > U64:
            done(b"", errno.EFAULT)
        elif len(self._parts) + parts > self._limit or self._connection.backlog + output > self._room:
            done(b"", errno.EAGAIN)
        else:
            return True
        return False

    def _cut(self, count: int, largest: int) -> list[tuple[int, int]]:
        return [(at, min(largest, count - at)) for at in range(0, count, largest)]

    def _ask(self, command: Command, transfer: _Transfer, iova: int, at: int, size: int, data: bytes) -> None:
        number = self._new_id()
        self._parts[number] = _Part(transfer, command, iova + at, at, size)
        self._connection.send(request(number, command, DMA_ACCESS.pack(iova + at, size) + data))

    def _new_id(self) -> int:
        while self._next_id in self._parts:
            self._next_id = (self._next_id + 1) & 0xFFFF
        number, self._next_id = self._next_id, (self._next_id + 1) & 0xFFFF
        return number

    def answered(self, message: Message[Header]) -> str:
        """Take an answer in. Returns what is wrong with it: a reason to count, or nothing."""
        header = message.header
        part = self._parts.get(header.id)
        if part is None or part.command != header.command:
            return "unexpected-reply"
        del self._parts[header.id]
        wrong, transfer = "", part.transfer
        if header.flags & ERROR:
            transfer.errno = transfer.errno or (header.errno if header.errno in errno.errorcode else errno.EIO)
        elif part.command is Command.DMA_READ:
            expected = DMA_ACCESS.pack(part.iova, part.count)
            if len(message.body) == len(expected) + part.count and message.body.startswith(expected):
                transfer.data[part.at : part.at + part.count] = message.body[len(expected) :]
            else:
                wrong, transfer.errno = "wrong-reply", errno.EIO
        # The body of an answer to DMA_WRITE tells nothing; clients send 16, 12 or no bytes of it.
        transfer.parts -= 1
        if transfer.parts == 0:
            transfer.done(b"" if transfer.errno else bytes(transfer.data), transfer.errno)
        return wrong

    def abandon(self) -> None:
        """End all transfers: the client is gone."""
        transfers = {id(part.transfer): part.transfer for part in self._parts.values()}
        self._parts.clear()
        for transfer in transfers.values():
            transfer.done(b"", errno.ECONNRESET)
