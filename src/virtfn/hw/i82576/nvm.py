"""The NVM: an EEPROM of 16-bit words from which the 82576 loads its address and identity.

The base area is 64 words; word 3fh makes their sum BABAh, and drivers refuse a card whose sum is wrong.

Spec: 82576 datasheet, chapter "Non-Volatile Memory Map".
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from virtfn.hw.bits import Field, Register
from virtfn.hw.types import Mac

__all__ = [
    "BASE_WORDS",
    "CHECKSUM",
    "IovControl",
    "Word",
    "checksum_ok",
    "default_image",
    "image_mac",
    "seal",
    "word_count",
]

BASE_WORDS = 64
CHECKSUM = 0xBABA


class Word(enum.IntEnum):
    """Addresses of words that software looks at."""

    MAC0 = 0x00
    MAC1 = 0x01
    MAC2 = 0x02
    COMPATIBILITY = 0x03
    PBA0 = 0x08
    PBA1 = 0x09
    INIT_CONTROL1 = 0x0A
    SUBSYSTEM_ID = 0x0B
    SUBSYSTEM_VENDOR_ID = 0x0C
    DEVICE_ID = 0x0D
    VENDOR_ID = 0x0E
    INIT_CONTROL2 = 0x0F
    IOV_CONTROL = 0x25
    VF_DEVICE_ID = 0x26
    ALTERNATE_MAC = 0x37
    CHECKSUM = 0x3F


class IovControl(Register):
    """I/O virtualization control word."""

    ENABLE = Field(0)
    PREFETCHABLE = Field(1)
    BAR64 = Field(2)
    VECTORS = Field(4, 3)  # MSI-X vectors of a VF, less one
    MAX_VFS = Field(7, 5)  # less one


def word_count(size_ex: int) -> int:
    """Convert EECD.SIZE_EX to words: a power of two, 32768 at most."""
    return 1 << min(size_ex + 6, 15)


def seal(image: list[int]) -> None:
    """Write the checksum word so that the base area sums to BABAh."""
    image[Word.CHECKSUM] = (CHECKSUM - sum(image[: Word.CHECKSUM])) & 0xFFFF


def checksum_ok(image: Sequence[int]) -> bool:
    """Tell whether the base area sums to BABAh, as drivers check."""
    return sum(image[:BASE_WORDS]) & 0xFFFF == CHECKSUM


def image_mac(image: Sequence[int], port: int = 0) -> Mac:
    """Load the address of a port: function 1 has that of function 0 with the last bit inverted."""
    mac = image[Word.MAC0] | image[Word.MAC1] << 16 | image[Word.MAC2] << 32
    return Mac(mac ^ (port & 1) << 40)


def default_image(
    mac: Mac,
    *,
    words: int = 128,
    vendor_id: int = 0x8086,
    subsystem_id: int = 0xA03C,
    subsystem_vendor_id: int = 0x8086,
) -> list[int]:
    """Build the NVM of a copper card with SR-IOV: `words` 16-bit words, checksum valid, ffffh where nothing is."""
    image = [0xFFFF] * words
    image[Word.MAC0 : Word.MAC2 + 1] = [mac & 0xFFFF, mac >> 16 & 0xFFFF, mac >> 32 & 0xFFFF]
    image[Word.COMPATIBILITY] = 0
    image[Word.PBA0], image[Word.PBA1] = 0x0000, 0x0001  # part number 000000-001
    image[Word.INIT_CONTROL1] = 0x4084
    image[Word.SUBSYSTEM_ID] = subsystem_id
    image[Word.SUBSYSTEM_VENDOR_ID] = subsystem_vendor_id
    image[Word.DEVICE_ID] = 0x10C9
    image[Word.VENDOR_ID] = vendor_id
    image[Word.INIT_CONTROL2] = 0x9C00
    image[Word.IOV_CONTROL] = IovControl.of(ENABLE=1, BAR64=1, VECTORS=2, MAX_VFS=7).value
    image[Word.VF_DEVICE_ID] = 0x10CA
    image[Word.ALTERNATE_MAC] = 0xFFFF
    seal(image)
    return image
