"""What a card shows to kernels that do not know its model: the head of its state, and the kernels it is called by.

    serve      move what is ready                        (card, now, budget) -> (frames, events)
    fire       let vectors fire that may                 (card, now) -> events
    doorbell   find a register that drivers write all the time, by its offset in BAR0: (card, function, offset) -> token
    ring       do such a write                           (card, token, written, first vector, vectors) -> 0
    read       read a register by its offset in BAR0     (card, function, offset, take) -> value; -1: Python has to
    write      write one                                 (card, function, offset, written, take) -> 1; 0: Python has to

A card's state begins with a CARD row; its address is `card` here. A function is named as the card counts them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import by_address, entry, kernel, row_at, row_of
from virtfn.kernels.ranges import row_address

__all__ = [
    "CARD",
    "MSIX",
    "MSIX_BYTES",
    "VECTORS",
    "call_doorbell",
    "call_fire",
    "call_read",
    "call_ring",
    "call_serve",
    "call_write",
    "card_at",
    "new_row_of_cards",
]

VECTORS = 32  # that a card has at most

CARD = row_of(
    # the kernels: `entry` of each
    "serve fire doorbell ring read write "
    # what carries frames that left to the card at the other end of a cable; 0: Python alone looks after the wire
    "carry "
    # a clock to read, 0 if there is none: time is what the caller says
    "clock "
    # vectors that fired and wait to be sent, as bits; those that a received frame raises
    "fired received "
    # counts since the start: frames that found a receiver; frames that left by the wire; interrupt messages sent
    "forwarded departed messages "
    # the IOMMU's state, by address
    "iommu"
)
card_at = row_at(CARD)

call_serve = by_address(3, results=2)
call_fire = by_address(2)
call_doorbell = by_address(3)
call_ring = by_address(5)
call_read = by_address(4)
call_write = by_address(5)
call_carry = by_address(3, results=2)

# A vector's entry of an MSI-X table. open: its message may leave now
MSIX = row_of("open address message")
MSIX_BYTES = MSIX.itemsize

# Events that serving a card returns, for Python to act on.
EV_INTERRUPT = 1  # vectors wait in `fired`
EV_CAPTURE = 2  # the capture buffer is full: drain it
EV_MALICIOUS = 4  # a driver misbehaved
EV_FAULT = 8  # the IOMMU recorded a fault
EV_TIMER = 16  # work waits for time to pass: throttled interrupt, rate limit
EV_PAGE = 32  # the device TLB has page requests to send
EV_UPLINK = 64  # many frames wait for the uplink
EV_MORE = 128  # a queue has frames, and its pool has had its turn
EV_IDLE = 1024  # a guest that polls has had nothing for a while: it may go back to interrupts
# What Python is wanted for at once. What guests can cause as often as they like, and the rest.
CHORES = EV_INTERRUPT | EV_MALICIOUS | EV_FAULT | EV_PAGE
URGENT = CHORES | EV_CAPTURE | EV_UPLINK

# Cards that are served one after the other, as one.
MOST_CARDS = 72
CARDS = np.dtype([("card", CARD), ("count", np.int64), ("cards", np.int64, (MOST_CARDS,))])
cards_at = row_at(CARDS)


@kernel
def serve_cards(address: int, now: int, budget: int) -> tuple[int, int]:
    """Serve each card; return (frames, events) of all."""
    row = cards_at(address)
    frames = 0
    events = 0
    for i in range(row.count):
        moved, event = call_serve(card_at(row.cards[i]).serve, row.cards[i], now, budget)
        frames += moved
        events |= event
    return frames, events


def new_row_of_cards(addresses: list[int]) -> npt.NDArray[np.void]:
    """Make the row of cards that are served in this order, as (1,) CARDS: it can be served as a card can."""
    row = np.zeros(1, CARDS)
    row_address(row, "cards served together")
    row["card"]["serve"] = entry(serve_cards, 3)
    row["count"] = len(addresses)
    row[0]["cards"][: len(addresses)] = addresses
    return row
