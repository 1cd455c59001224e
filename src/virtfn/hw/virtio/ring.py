"""Split virtqueues: a table of descriptors, what the driver makes available, what the device has used.

    descriptors   16 * N       u64 address, u32 length, u16 flags, u16 next          aligned to 16
    available     6 + 2 * N    u16 flags, u16 index, u16 head[N], u16 used_event     aligned to 2, the driver writes
    used          6 + 8 * N    u16 flags, u16 index, (u32 head, u32 length)[N], u16 avail_event    4, the device writes

All little-endian; N is a power of two up to 32768; an index runs free in 16 bits, and its place is index & (N - 1). A
descriptor as two words: the address, and length 31:0, flags 47:32, next 63:48.

Spec: virtio 1.3, 2.7 "Split Virtqueues".
"""

from __future__ import annotations

from virtfn.hw.bits import Field, Register

__all__ = [
    "AVAIL_ALIGN", "AVAIL_ENTRY", "AVAIL_INDEX", "AVAIL_RING", "DESC_ALIGN", "DESC_BYTES", "DESC_INDIRECT",
    "DESC_NEXT", "DESC_WRITE", "FLAGS", "MAX_QUEUE", "NO_INTERRUPT", "NO_NOTIFY", "USED_ALIGN", "USED_ENTRY",
    "USED_RING", "DescriptorFlags", "avail_bytes", "used_bytes",
]  # fmt: skip

MAX_QUEUE = 32768
DESC_BYTES, DESC_ALIGN = 16, 16
# Both rings begin with flags and an index.
FLAGS, AVAIL_INDEX, AVAIL_RING = 0, 2, 4
AVAIL_ENTRY, AVAIL_ALIGN = 2, 2
USED_RING, USED_ENTRY, USED_ALIGN = 4, 8, 4


class DescriptorFlags(Register):
    """Flags of a descriptor. Spec: 2.7.5."""

    NEXT = Field(0)
    WRITE = Field(1)  # the device writes
    INDIRECT = Field(2)  # the buffer is a table of descriptors


DESC_NEXT = DescriptorFlags.NEXT.mask
DESC_WRITE = DescriptorFlags.WRITE.mask
DESC_INDIRECT = DescriptorFlags.INDIRECT.mask
NO_INTERRUPT = 1  # flags of the available ring
NO_NOTIFY = 1  # flags of the used ring


def avail_bytes(size: int) -> int:
    """Bytes of an available ring, with the event word behind it."""
    return AVAIL_RING + AVAIL_ENTRY * size + 2


def used_bytes(size: int) -> int:
    """Bytes of a used ring, with the event word behind it."""
    return USED_RING + USED_ENTRY * size + 2
