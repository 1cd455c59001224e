"""The link of a function to a virtual machine of another process: the messages that come with frames all the time.

    guest writes a doorbell   REGION_WRITE --> answered, and done: an interrupt mask, a tail where no page is mapped
    guest uses a register     REGION_READ, REGION_WRITE --> answered, and done, where that is no more than memory
    vector fires              MSI-X table --> interrupt remapping --> DMA_WRITE of the guest's message

They are what Python does too (`vmm/served.py`), without Python: a message costs a microsecond instead of a hundred. All
other messages are left where they are, unread. Spec: vfio-user protocol 0.9.2, REGION_READ, REGION_WRITE, DMA_WRITE.
"""

from __future__ import annotations

import numpy as np

from virtfn.kernels._jit import Row, kernel, load16, load32, load64, row_at, row_of, store32, store64
from virtfn.kernels.card import MSIX_BYTES, VECTORS, call_doorbell, call_read, call_ring, call_write, card_at
from virtfn.kernels.posix import MSGHDR_BYTES, peek_bytes, receive_bytes, send_bytes
from virtfn.kernels.vtd.iommu import iommu_at
from virtfn.kernels.vtd.irqremap import DELIVERED, remap_interrupt

__all__ = ["LINK", "ROUTES", "SCRATCH_BYTES", "link_at", "send_vectors", "take_access"]

ROUTES = 32
_MESSAGE_BYTES = 64
SCRATCH_BYTES = _MESSAGE_BYTES + MSGHDR_BYTES
_ROUTE = row_of("address message guest_address guest_message")
LINK = np.dtype(
    [
        # fd: of the socket, below 0 while it is not for kernels; rid: of the function; function: its number as the card
        # counts them; msix: address of its MSIX rows; first: its first vector; vectors: all of them, as bits; plain:
        # whether plain registers are for kernels, too; answered: reads, counted, and so writes and interrupts; owed:
        # bits of the routes whose message is still to be sent; cut: the socket took a part of one: there is no going on
        ("link", row_of("fd rid function msix first vectors plain answered writes interrupts owed cut")),
        # by the host's message, which the device sends: the guest's; a guest_address of 0 is none
        ("routes", _ROUTE, (ROUTES,)),
    ]
)
link_at = row_at(LINK)

# A header (id, command, size, flags, errno), then offset, region and count, then four bytes.
_WRITE_BYTES, _ANSWER_BYTES, _READ_BYTES = 36, 32, 32
_REGION_READ, _REGION_WRITE, _DMA_WRITE = 9, 10, 12
_COMMAND, _REPLY, _NO_REPLY = 0, 1, 0x10
_BAR0 = 0


@kernel
def take_access(card: int, link: Row, scratch: int) -> bool:
    """Answer and do what is at the head of a link's stream: an access to a plain register, or a write to a doorbell.

    card: address of the CARD row. scratch: address of SCRATCH_BYTES. False if there is none.
    """
    own = link.link
    if own.owed:  # an interrupt is not overtaken by the answer to a read
        send_owed(link, scratch)
        if own.owed:
            return False
    got = peek_bytes(own.fd, scratch, _WRITE_BYTES, scratch + _MESSAGE_BYTES)
    if got < _READ_BYTES or load32(scratch + 12) != 0 or load32(scratch + 24) != _BAR0 or load32(scratch + 28) != 4:
        return False
    command = load16(scratch + 2)
    if command == _REGION_READ and own.plain:
        return do_read(card_at(card), card, own, scratch)
    return got == _WRITE_BYTES and command == _REGION_WRITE and do_write(card_at(card), card, own, scratch)


@kernel
def do_read(c: Row, card: int, own: Row, scratch: int) -> bool:
    """Answer and do a read, if the card's kernel can."""
    if c.read == 0 or load32(scratch + 4) != _READ_BYTES or load32(scratch + 8) != _COMMAND:
        return False
    offset = load64(scratch + 16)
    value = call_read(c.read, card, own.function, offset, 0)
    if value < 0:
        return False
    store32(scratch + 4, _READ_BYTES + 4)
    store32(scratch + 8, _REPLY)
    store32(scratch + 32, value)
    sent = send_bytes(own.fd, scratch, _READ_BYTES + 4)
    if sent != _READ_BYTES + 4:
        own.cut |= sent > 0
        return False
    receive_bytes(own.fd, scratch, _READ_BYTES)
    own.answered += 1
    call_read(c.read, card, own.function, offset, 1)
    return True


@kernel
def do_write(c: Row, card: int, own: Row, scratch: int) -> bool:
    """Answer and do a write, if there is a doorbell, or the card's kernel can."""
    flags = load32(scratch + 8)
    if load32(scratch + 4) != _WRITE_BYTES or (flags != _COMMAND and flags != _NO_REPLY):
        return False
    offset = load64(scratch + 16)
    written = load32(scratch + 32)
    token = call_doorbell(c.doorbell, card, own.function, offset) if own.vectors else 0
    plain = token == 0 and own.plain and c.write
    if token == 0 and not (plain and call_write(c.write, card, own.function, offset, written, 0)):
        return False
    if flags == _COMMAND:
        store32(scratch + 4, _ANSWER_BYTES)
        store32(scratch + 8, _REPLY)
        sent = send_bytes(own.fd, scratch, _ANSWER_BYTES)
        if sent != _ANSWER_BYTES:
            own.cut |= sent > 0
            return False
    receive_bytes(own.fd, scratch, _WRITE_BYTES)
    own.writes += 1
    if token:
        call_ring(c.ring, card, token, written, own.first, own.vectors)
    else:
        call_write(c.write, card, own.function, offset, written, 1)
    return True


@kernel
def send_vectors(card: Row, link: Row, wanted: int, scratch: int) -> None:
    """Send the messages of a link's vectors that fired, as far as they are routed; the others stay for Python.

    wanted: vectors, as bits.
    """
    own = link.link
    due = card.fired & own.vectors & wanted
    if due == 0:
        return
    for v in range(VECTORS):
        if not due >> v & 1:
            continue
        entry = own.msix + (v - own.first) * MSIX_BYTES
        if not load64(entry):
            continue
        address = load64(entry + 8)
        message = load64(entry + 16)
        for i in range(ROUTES):
            route = link.routes[i]
            if route.guest_address == 0 or route.address != address or route.message != message:
                continue
            card.fired &= ~(1 << v)
            card.messages += 1
            outcome, _, _ = remap_interrupt(iommu_at(card.iommu), own.rid, address, message)
            if outcome == DELIVERED:
                own.owed |= 1 << i
            break
    if own.owed:
        send_owed(link, scratch)


@kernel
def send_owed(link: Row, scratch: int) -> None:
    """Send what is owed, until the socket takes no more."""
    own = link.link
    for i in range(ROUTES):
        if not own.owed >> i & 1:
            continue
        route = link.routes[i]
        store64(scratch, _DMA_WRITE << 16 | _WRITE_BYTES << 32)
        store64(scratch + 8, _NO_REPLY)
        store64(scratch + 16, route.guest_address)
        store64(scratch + 24, 4)
        store32(scratch + 32, route.guest_message)
        sent = send_bytes(own.fd, scratch, _WRITE_BYTES)
        if sent != _WRITE_BYTES:
            if sent > 0:
                own.cut = 1
            return
        own.owed &= ~(1 << i)
        own.interrupts += 1
