"""The rows that virtio's device side runs on: one a front end, with its two queues and what it may reach.

    VIRTIO     a front end as the back end sees it
    QUEUE      a virtqueue, the device's side of it
    REGION     a part of the front end's memory
    CHANNEL    a way to wake the other side: an eventfd, or a word in this process
    FRAME      the frame that is under way: where its bytes are, what its header asks for

Ring addresses are this process's; addresses in descriptors are the front end's, and pass `memory.translate`. All
members are int64. Python writes the set-up, kernels the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.virtio.net import Features
from virtfn.kernels._jit import row_at, row_of
from virtfn.kernels.ranges import address_of, row_address

__all__ = [
    "CHANNEL",
    "ERROR_NAMES",
    "FRAME",
    "QUEUE",
    "REGIONS",
    "VIRTIO",
    "channel_at",
    "new_areas",
    "new_channels",
    "new_virtio",
    "virtio_at",
]

REGIONS = 64
MOST_SIZE = 4096  # descriptors of a queue, at most: what a chain may take to look at is bounded by it

# fd: of an eventfd, below 0 without one; signals: address of the SIGNALS row by which it is counted in. pending: the
# other side is to look, and has not yet. Counts: sent, and not sent since the other side did not want it
CHANNEL = row_of("fd signals pending sent suppressed")
channel_at = row_at(CHANNEL)

REGION = row_of("gpa size host")

# What is wrong with a chain. From FIRST_BROKEN on the ring itself is not to be trusted any more: nothing is fetched
# from it until it is set up anew. Else the chain goes back to the driver with nothing in it.
ERROR_NAMES = (
    "none",
    "direction",  # a part for the device to write in what is sent, or none where it should write
    "too-long",  # more bytes than a frame can have
    "unmapped",  # not wholly memory of the front end
    "pieces",  # more pieces than the back end keeps
    "short",  # no more than a header, or a receive buffer that holds none
    "checksum",  # its place is outside the frame
    "segmentation",  # headers and what is asked for do not fit together
    "not-negotiated",  # an offload that was not agreed on
    "avail-index",
    "head",
    "next",
    "loop",
    "indirect",
    "order",  # a readable descriptor behind a writable one
    "ring",  # its parts are not in the front end's memory any more
)
(
    _,
    ERROR_DIRECTION,
    ERROR_TOO_LONG,
    ERROR_UNMAPPED,
    ERROR_PIECES,
    ERROR_SHORT,
    ERROR_CHECKSUM,
    ERROR_SEGMENTATION,
    ERROR_NOT_NEGOTIATED,
    ERROR_AVAIL_INDEX,
    ERROR_HEAD,
    ERROR_NEXT,
    ERROR_LOOP,
    ERROR_INDIRECT,
    ERROR_ORDER,
    ERROR_RING,
) = range(16)
FIRST_BROKEN = ERROR_AVAIL_INDEX

QUEUE = np.dtype(
    [
        *((name, np.int64) for name in (
            # addresses here of the three parts, and how many descriptors; 0: not set up
            "desc avail used size "
            # whether the queue runs; whether frames are wanted (vhost-user); what broke it, 0 if nothing
            "started enabled broken "
            # the next place of the available ring; the index there that was seen last; the same of the used ring
            "next_avail seen_avail used_index "
            # what of the used ring the driver was shown; the index when it was last asked whether it wants to hear of
            # it, and whether there is such an index; whether a kick is waited for
            "shown signalled has_signalled armed "
            # addresses of CHANNEL rows
            "kick call err "
            # counts
            "frames bytes copies copy_bytes descriptors"
        ).split()),
        ("errors", np.int64, (len(ERROR_NAMES),)),
    ]
)  # fmt: skip

VIRTIO = np.dtype(
    [
        # features: what both sides agreed on; regions: how many; hit: the last that was found; up: the driver is ready
        ("own", row_of("features regions hit up")),
        ("rx", QUEUE),
        ("tx", QUEUE),
        ("regions", REGION, (REGIONS,)),
    ]
)
virtio_at = row_at(VIRTIO)

# Bits of `features`.
F_CSUM = Features.CSUM.mask
F_GUEST_CSUM = Features.GUEST_CSUM.mask
F_GUEST_TSO4 = Features.GUEST_TSO4.mask
F_GUEST_TSO6 = Features.GUEST_TSO6.mask
F_GUEST_ECN = Features.GUEST_ECN.mask
F_HOST_TSO4 = Features.HOST_TSO4.mask
F_HOST_TSO6 = Features.HOST_TSO6.mask
F_HOST_ECN = Features.HOST_ECN.mask
F_MRG_RXBUF = Features.MRG_RXBUF.mask
F_INDIRECT = Features.INDIRECT_DESC.mask
F_EVENT_IDX = Features.EVENT_IDX.mask

# A piece is two words: address, bytes. A list of pieces keeps two places in front of what a chain gives: for the header
# that the receiver gets, and for a copy of the frame's first bytes.
PIECE_BYTES = 16
PIECES = 4096
LEAD = 2
MOST_DESCRIPTORS = 8192  # that are looked at for one frame
HEAD_ROOM = 256  # bytes of the headers that are looked at, at most
LINEAR_ROOM = 66 << 10

FRAME = row_of(
    # addresses of areas: the pieces of the frame; those of where it goes, and the chains; its first bytes; the header
    # that it came with; the header that it goes with; all of it, if it was gathered; a segment's header, and its pieces
    "list target chains head came goes linear cut_head cut "
    # first piece and the end of the pieces; bytes; the chain's first descriptor, and its descriptors
    "first end length chain descriptors "
    # what its header asks for: partial checksum, kind of segmentation or 0, bytes of a segment
    "partial gso mss "
    # where the checksum starts, where it is stored; where the network header is; bytes of headers, for segmentation
    "l4 sum_at l3 headers "
    # whether its bytes lie in `linear`; copies made for it, and their bytes
    "gathered copies copy_bytes"
)

# The areas, and their bytes.
_AREAS = {
    "list": (PIECES + LEAD + 2) * PIECE_BYTES,
    "target": PIECES * PIECE_BYTES,
    "chains": PIECES * PIECE_BYTES,
    "head": HEAD_ROOM,
    "came": 16,
    "goes": 16,
    "linear": LINEAR_ROOM,
    "cut_head": HEAD_ROOM,
    "cut": 4 * PIECE_BYTES,
}


def new_areas(frame: np.void) -> npt.NDArray[np.uint8]:
    """Give a FRAME row its areas; return the memory, which has to live as long as the row."""
    memory = np.zeros(sum(_AREAS.values()) + 64 * len(_AREAS), np.uint8)
    at = 0
    for name, size in _AREAS.items():
        frame[name] = address_of(memory[at : at + size], f"a frame's {name}")
        at += -(-size // 64) * 64
    return memory


def new_virtio() -> npt.NDArray[np.void]:
    """Make the row of a front end, as (1,) VIRTIO, everything off."""
    block = np.zeros(1, VIRTIO)
    row_address(block, "a virtio front end")
    return block


def new_channels(count: int) -> npt.NDArray[np.void]:
    """Make rows of ways to wake somebody, as (count,) CHANNEL: words of this process."""
    rows = np.zeros(count, CHANNEL)
    rows["fd"] = -1
    row_address(rows, "event channels")
    return rows
