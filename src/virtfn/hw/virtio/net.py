"""Network devices of virtio: feature bits, status, the header in front of each frame.

    0  u8 flags   1  u8 gso_type   2  u16 hdr_len   4  u16 gso_size   6  u16 csum_start   8  u16 csum_offset
    10 u16 num_buffers

The header has 12 bytes in both directions, since VERSION_1 is asked for. Spec: virtio 1.3, 5.1 "Network Device".
"""

from __future__ import annotations

import enum

from virtfn.hw.bits import Field, Register

__all__ = [
    "DATA_VALID", "GSO_ECN", "GSO_NONE", "GSO_TCP4", "GSO_TCP6", "HEADER_BYTES", "LONGEST", "NEEDS_CSUM", "Features",
    "Status", "closed",
]  # fmt: skip

HEADER_BYTES = 12
LONGEST = 65550  # bytes of a frame, with the Ethernet header: 64 KiB less one behind it
NEEDS_CSUM = 1  # flags: the sum from csum_start on is still to be stored, at csum_start + csum_offset
DATA_VALID = 2
GSO_NONE, GSO_TCP4, GSO_TCP6 = 0, 1, 4
GSO_ECN = 0x80


class Features(Register):
    """What driver and device agree on. GUEST: the driver bears it; HOST: the device does it. Spec: 5.1.3, 6."""

    CSUM = Field(0)
    GUEST_CSUM = Field(1)
    MTU = Field(3)
    MAC = Field(5)
    GUEST_TSO4 = Field(7)
    GUEST_TSO6 = Field(8)
    GUEST_ECN = Field(9)
    HOST_TSO4 = Field(11)
    HOST_TSO6 = Field(12)
    HOST_ECN = Field(13)
    MRG_RXBUF = Field(15)
    STATUS = Field(16)
    LOG_ALL = Field(26)  # of vhost alone
    INDIRECT_DESC = Field(28)
    EVENT_IDX = Field(29)
    PROTOCOL_FEATURES = Field(30)  # of vhost-user alone
    VERSION_1 = Field(32)


class Status(enum.IntFlag):
    """How far the driver is. Spec: 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


_NEEDS = {
    "GUEST_TSO4": ("GUEST_CSUM",),
    "GUEST_TSO6": ("GUEST_CSUM",),
    "GUEST_ECN": ("GUEST_TSO4", "GUEST_TSO6"),
    "HOST_TSO4": ("CSUM",),
    "HOST_TSO6": ("CSUM",),
    "HOST_ECN": ("HOST_TSO4", "HOST_TSO6"),
}


def closed(features: int) -> bool:
    """Tell whether a set of features has what each of them needs. Spec: 5.1.3.1."""
    has = Features(features)
    return all(
        not Features.field(name).get(features) or any(Features.field(other).get(has.value) for other in others)
        for name, others in _NEEDS.items()
    )
