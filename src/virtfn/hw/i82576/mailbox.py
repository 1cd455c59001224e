"""Messages between VF and PF: what the 16 words of a mailbox mean to the drivers on both sides.

Word 0 says what it is; a reply repeats it and adds ACK or NACK. CTS tells the VF that its reset is complete; the reply
to RESET itself has none. A MAC address takes words 1 and 2, first byte lowest; hashes go two in a word from word 1.

Spec: 82576 datasheet, chapter "VF mailbox"; the protocol is that of Intel's drivers.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from virtfn.hw.bits import Field, Register
from virtfn.hw.i82576.vfregs import MAILBOX_WORDS
from virtfn.hw.types import Mac, format_mac

__all__ = [
    "MAILBOX_WORDS",
    "MAX_MULTICAST",
    "MULTICAST_OVERFLOW",
    "MacAction",
    "Message",
    "Opcode",
    "Promisc",
    "describe_message",
    "hash_words",
    "mac_words",
    "multicast_hash",
    "words_hashes",
    "words_mac",
]

MAX_MULTICAST = 30
"""Hashes that fit beside word 0."""
MULTICAST_OVERFLOW = 0x80
"""Bit of INFO in SET_MULTICAST: there were more addresses than fit."""


class Opcode(enum.IntEnum):
    """What a message asks for."""

    RESET = 0x0001
    SET_MAC = 0x0002
    SET_MULTICAST = 0x0003
    SET_VLAN = 0x0004
    SET_LPE = 0x0005
    SET_PROMISC = 0x0006
    CONTROL = 0x0100


class MacAction(enum.IntEnum):
    """INFO of SET_MAC."""

    SET = 0
    CLEAR_FILTERS = 1
    ADD_FILTER = 2


class Promisc(enum.IntFlag):
    """INFO of SET_PROMISC."""

    UNICAST = 1
    MULTICAST = 2


class Message(Register):
    """Word 0 of a message."""

    OPCODE = Field(15, 0, Opcode)
    INFO = Field(23, 16)
    CTS = Field(29)
    NACK = Field(30)
    ACK = Field(31)


def mac_words(mac: Mac) -> tuple[int, int]:
    """Split an address into words 1 and 2."""
    return mac & 0xFFFFFFFF, mac >> 32


def words_mac(low: int, high: int) -> Mac:
    """Join words 1 and 2 into an address."""
    return Mac(low & 0xFFFFFFFF | (high & 0xFFFF) << 32)


def multicast_hash(mac: Mac) -> int:
    """Find the bit of MTA or UTA for an address, with RCTL.MO = 0: its last 12 bits on the wire."""
    return mac >> 36 & 0xFFF


def hash_words(hashes: Sequence[int]) -> list[int]:
    """Pack up to 30 hashes into words 1..15 of SET_MULTICAST."""
    words = [0] * (MAILBOX_WORDS - 1)
    for i, number in enumerate(hashes[:MAX_MULTICAST]):
        words[i // 2] |= (number & 0xFFFF) << 16 * (i % 2)
    return words


def words_hashes(words: Sequence[int], count: int) -> list[int]:
    """Unpack `count` hashes from words 1.. of SET_MULTICAST; no more than there are."""
    halves = [word >> shift & 0xFFF for word in words for shift in (0, 16)]
    return halves[: min(count, MAX_MULTICAST)]


def describe_message(words: Sequence[int]) -> str:
    """Put a message into words: `SET_MAC (INFO=ADD_FILTER, mac=02:00:00:00:00:10)`."""
    head = Message(words[0] if words else 0)
    body = words[1:]
    try:
        name = Opcode(head.OPCODE).name
    except ValueError:
        name = f"opcode {head.OPCODE:#06x}" if head.OPCODE else "no opcode"
    parts = [flag for flag in ("CTS", "NACK", "ACK") if head.field(flag).get(head.value)]
    match head.OPCODE:
        case Opcode.SET_MAC:
            action = next((a.name for a in MacAction if a == head.INFO), f"{head.INFO:#x}")
            parts.append(f"INFO={action}")
        case Opcode.SET_MULTICAST:
            parts.append(f"count={head.INFO & 0x1F}")
            if head.INFO & MULTICAST_OVERFLOW:
                parts.append("overflow")
        case Opcode.SET_VLAN:
            parts.append("add" if head.INFO & 1 else "remove")
        case Opcode.SET_PROMISC:
            parts.append("+".join(bit.name or "" for bit in Promisc if bit & head.INFO).lower() or "off")
        case _ if head.INFO:
            parts.append(f"INFO={head.INFO:#x}")
        case _:
            pass
    match head.OPCODE:
        case Opcode.RESET | Opcode.SET_MAC if len(body) >= 2 and any(body[:2]):
            parts.append(f"mac={format_mac(words_mac(body[0], body[1]))}")
        case Opcode.SET_MULTICAST:
            parts += [f"{number:#05x}" for number in words_hashes(body, head.INFO & 0x1F)]
        case Opcode.SET_VLAN if body:
            parts.append(f"vlan={body[0] & 0xFFF}")
        case Opcode.SET_LPE if body:
            parts.append(f"max_frame={body[0]}")
        case _:
            pass
    return f"{name} ({', '.join(parts)})" if parts else name
