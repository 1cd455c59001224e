"""Messages of the vhost-user protocol: numbers, layouts, and the checks that every length and count passes first.

    0         4       8      12
    | request | flags | size | payload ...      native endian; size is the payload's
                1:0 version 1, 2 reply, 3 a reply is needed

A message that cannot be is an error: the client is told so if it has asked for a reply, else it is dropped.

Spec: vhost-user protocol (QEMU, docs/interop/vhost-user.rst).
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import NamedTuple

from virtfn.hw.bits import Field, Register
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.connection import DroppedError, Framing

__all__ = [
    "ADDRESSES", "FRAMING", "HEADER", "INDEX", "INFLIGHT", "MEMORY_COUNT", "NO_FD", "NUMBER", "OFFERED_PROTOCOL",
    "REGION", "SLOT", "STATE", "BadMessageError", "Header", "ProtocolFeatures", "Request", "check", "exactly", "reply",
]  # fmt: skip

HEADER = Struct("=III")
NUMBER = Struct("=Q")
STATE = Struct("=II")  # index, number
ADDRESSES = Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
REGION = Struct("=QQQQ")  # guest address, bytes, address in the client, offset in the file
MEMORY_COUNT = Struct("=II")  # regions, padding
SLOT = Struct("=QQQQQ")  # padding, then a region
INFLIGHT = Struct("=QQHH4x")  # bytes, offset in the file, rings, descriptors of each
INDEX, NO_FD = 0xFF, 0x100  # of the number that comes with a descriptor
VERSION, VERSION_MASK, REPLY, NEED_REPLY = 1, 3, 4, 8
_LARGEST = 4096


class Request(enum.IntEnum):
    """Messages of the front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class ProtocolFeatures(Register):
    """What both sides of the protocol can do."""

    MQ = Field(0)
    LOG_SHMFD = Field(1)
    RARP = Field(2)
    REPLY_ACK = Field(3)
    MTU = Field(4)
    INFLIGHT_SHMFD = Field(12)
    RESET_DEVICE = Field(13)
    CONFIGURE_MEM_SLOTS = Field(15)
    STATUS = Field(16)


OFFERED_PROTOCOL = ProtocolFeatures.of(
    REPLY_ACK=1, INFLIGHT_SHMFD=1, RESET_DEVICE=1, CONFIGURE_MEM_SLOTS=1, STATUS=1
).value


class BadMessageError(VirtfnError):
    """A message that cannot be. reason: a short name, counted."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason, errno_name="EINVAL")
        self.reason = reason


class Header(NamedTuple):
    """The first 12 bytes of a message."""

    request: int
    flags: int
    payload: int

    @property
    def size(self) -> int:
        """Bytes of the message, with its header."""
        return HEADER.size + self.payload

    @property
    def needs_reply(self) -> bool:
        """Whether the client waits for an answer, where that was agreed on."""
        return bool(self.flags & NEED_REPLY)


def parse_header(head: bytes | bytearray, largest: int) -> Header:
    """Read a header. largest: the size that a message may have.

    Raises DroppedError.
    """
    header = Header._make(HEADER.unpack(head))
    if header.flags & VERSION_MASK != VERSION or header.flags & REPLY:
        raise DroppedError("bad-flags")
    if header.size > largest:
        raise DroppedError("oversized-message")
    return header


FRAMING = Framing(HEADER.size, _LARGEST, parse_header)


def reply(header: Header, payload: bytes) -> bytes:
    """Compose the answer to `header`."""
    return HEADER.pack(header.request, VERSION | REPLY, len(payload)) + payload


def exactly(layout: Struct, body: bytes) -> tuple[int, ...]:
    """Unpack a payload that must be of this size.

    Raises BadMessageError.
    """
    check(len(body) == layout.size, "wrong-size")
    return layout.unpack(body)


def check(condition: bool, reason: str, text: str = "") -> None:
    """Refuse a message unless `condition` holds.

    Raises BadMessageError.
    """
    if not condition:
        raise BadMessageError(reason, text)
