"""Messages of the vfio-user protocol: numbers, layouts, and the checks that every length and count passes first.

    0      2         4        8       12      16
    | id   | command | size   | flags | errno | body ...      little endian; size includes this header
                              3:0 type (0 command, 1 reply), 4 no reply, 5 error

A request that fails a check is refused: the reply is a header with an errno. A stream that cannot be followed any
further is dropped.

Spec: vfio-user protocol specification 0.9.2; structures of regions and interrupts: linux/vfio.h.
"""

from __future__ import annotations

import enum
import errno
import json
import os
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.connection import DroppedError, Framing

HEADER = Struct("<HHIII")  # id, command, size, flags, errno
TYPE, REPLY, NO_REPLY, ERROR = 0xF, 0x1, 0x10, 0x20

VERSION = Struct("<HH")  # major, minor; then JSON and NUL
DMA_MAP = Struct("<IIQQQ")  # argsz, flags, offset, address, size
DMA_UNMAP = Struct("<IIQQ")  # argsz, flags, address, size
DEVICE_INFO = Struct("<IIII")  # argsz, flags, regions, interrupt types
REGION_INFO = Struct("<IIIIQQ")  # argsz, flags, index, offset of capabilities, size, file offset
SPARSE_MMAP = Struct("<HHIII")  # capability: id, version, next; number of areas, reserved
SPARSE_AREA = Struct("<QQ")  # offset, size
IRQ_INFO = Struct("<IIII")  # argsz, flags, index, count
IRQ_SET = Struct("<IIIII")  # argsz, flags, index, start, count; then data
REGION_ACCESS = Struct("<QII")  # offset, region, count; then data
MULTI_COUNT = Struct("<Q")  # number of writes
MULTI_WRITE = Struct("<QII8s")  # offset, region, count, data
DMA_ACCESS = Struct("<QQ")  # address, count; then data

MAJOR, MINOR = 0, 0
PAGE = 4096
FIRST_MESSAGE = 4096  # as large as a message may be before limits are agreed on
DEFAULT_XFER = 1 << 20
DEFAULT_MAPS = 65535
U64 = 1 << 64


class Command(enum.IntEnum):
    """Commands of the protocol."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class DmaFlags(enum.IntFlag):
    """Flags of DMA_MAP; the values are those of PROT_READ and PROT_WRITE."""

    READ = 1
    WRITE = 2


class UnmapFlags(enum.IntFlag):
    """Flags of DMA_UNMAP."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class RegionFlags(enum.IntFlag):
    """Flags of a region's description."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlags(enum.IntFlag):
    """What an interrupt type can do."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSet(enum.IntFlag):
    """Flags of SET_IRQS: one kind of data, one action."""

    NONE = 0x01
    BOOL = 0x02
    EVENTFD = 0x04
    MASK = 0x08
    UNMASK = 0x10
    TRIGGER = 0x20

    DATA = NONE | BOOL | EVENTFD
    ACTION = MASK | UNMASK | TRIGGER


class RefusedError(VirtfnError):
    """A request was refused. errno: what the client is told; reason: a short name, counted; text: for people."""

    def __init__(self, number: int, reason: str, text: str = "") -> None:
        super().__init__(text or f"{reason}: {os.strerror(number)}", errno_name=errno.errorcode.get(number, ""))
        self.errno = number
        self.reason = reason


class Header(NamedTuple):
    """The first 16 bytes of a message."""

    id: int
    command: int
    size: int
    flags: int
    errno: int

    @property
    def is_reply(self) -> bool:
        """Whether this answers a command of ours."""
        return self.flags & TYPE == REPLY


def parse_header(head: bytes | bytearray, largest: int) -> Header:
    """Read a header. largest: the size that a message may have.

    Raises DroppedError: without a believable size nobody knows where the next message starts.
    """
    header = Header._make(HEADER.unpack(head))
    if header.size < HEADER.size:
        raise DroppedError("undersized-message")
    if header.size > largest:
        raise DroppedError("oversized-message")
    if header.flags & TYPE > REPLY:
        raise DroppedError("unknown-message-type")
    return header


FRAMING = Framing(HEADER.size, FIRST_MESSAGE, parse_header)


def request(number: int, command: int, body: bytes, *, no_reply: bool = False) -> bytes:
    """Compose a command."""
    return HEADER.pack(number, command, HEADER.size + len(body), NO_REPLY if no_reply else 0, 0) + body


def reply(header: Header, body: bytes) -> bytes:
    """Compose the answer to `header`."""
    return HEADER.pack(header.id, header.command, HEADER.size + len(body), REPLY, 0) + body


def error_reply(header: Header, number: int) -> bytes:
    """Compose the answer that tells of an error: a header, nothing else."""
    return HEADER.pack(header.id, header.command, HEADER.size, REPLY | ERROR, number)


def exactly(layout: Struct, body: bytes) -> tuple[int, ...]:
    """Unpack a body that must be of this size.

    Raises RefusedError.
    """
    if len(body) != layout.size:
        raise RefusedError(errno.EINVAL, "wrong-size")
    return layout.unpack(body)


def at_start(layout: Struct, body: bytes) -> tuple[int, ...]:
    """Unpack the start of a body that has room for more.

    Raises RefusedError.
    """
    if len(body) < layout.size:
        raise RefusedError(errno.EINVAL, "wrong-size")
    return layout.unpack_from(body)


def check(condition: bool, reason: str, number: int = errno.EINVAL, text: str = "") -> None:
    """Refuse a request unless `condition` holds.

    Raises RefusedError.
    """
    if not condition:
        raise RefusedError(number, reason, text)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a side can take: descriptors in a message, bytes in a transfer, mappings at a time, writes in bunches."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = DEFAULT_XFER
    max_dma_maps: int = DEFAULT_MAPS
    write_multiple: bool = False

    def to_json(self) -> bytes:
        """Write the data of a version message: JSON and a NUL."""
        names = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "write_multiple")
        offered = {name: getattr(self, name) for name in names} | {"pgsizes": PAGE}
        return json.dumps({"capabilities": offered}).encode() + b"\0"


def parse_version(body: bytes) -> tuple[int, int, Capabilities]:
    """Read a version message: major, minor, capabilities. What is not known is not looked at.

    Raises RefusedError if it is not JSON, or its numbers are none that can be.
    """
    major, minor = at_start(VERSION, body)
    text = body[VERSION.size :]
    if not text.rstrip(b"\0"):
        return major, minor, Capabilities()
    check(text.endswith(b"\0"), "version-data")
    try:
        document = json.loads(text[:-1].decode())
    except (ValueError, RecursionError):
        raise RefusedError(errno.EINVAL, "version-data") from None
    check(isinstance(document, dict), "version-data")
    given = document.get("capabilities", {})
    check(isinstance(given, dict), "version-data")

    def number(name: str, default: int, least: int) -> int:
        value = given.get(name, default)
        check(type(value) is int and least <= value < U64, "version-data", text=f"{name} is not a number that can be")
        return int(value)

    multiple = given.get("write_multiple", False)
    check(isinstance(multiple, bool), "version-data")
    check(number("pgsizes", PAGE, 0) & PAGE != 0, "page-size", text="the client has no pages of 4096 bytes")
    return (
        major,
        minor,
        Capabilities(
            number("max_msg_fds", 1, 0),
            number("max_data_xfer_size", DEFAULT_XFER, 8),
            number("max_dma_maps", DEFAULT_MAPS, 0),
            multiple,
        ),
    )
