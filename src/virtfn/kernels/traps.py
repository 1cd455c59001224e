"""Registers of an emulated card whose writes trap, and are answered by compiled code: an exit each.

A driver's kernel stores into a word; before the card is served, each word that has changed is written to its register,
as the VMM does that caught the store. Several stores to one word between two turns are one write.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import entry, kernel, load32_acquire, load64, row_at, store64
from virtfn.kernels.card import CARD, call_doorbell, call_ring, call_serve, card_at
from virtfn.kernels.ranges import row_address

__all__ = ["MOST_TRAPS", "TRAPS", "new_traps"]

MOST_TRAPS = 8
TRAPS = np.dtype(
    [
        ("card", CARD),
        # the card whose registers these are, and its function; where exits are counted; how many words there are
        *((name, np.int64) for name in "behind function exits count".split()),
        # by word: its address, the register's offset in BAR0, what it held last
        ("words", np.int64, (MOST_TRAPS, 3)),
    ]
)
traps_at = row_at(TRAPS)


def new_traps(card: int, function: int, exits: int) -> npt.NDArray[np.void]:
    """Make the row of a card behind traps, as (1,) TRAPS: it can be served as a card can.

    card: address of its state. function: as the card counts them. exits: address of the 64-bit count.
    """
    row = np.zeros(1, TRAPS)
    row_address(row, "trapped registers")
    row["card"]["serve"] = entry(serve_trapped, 3)
    row["behind"], row["function"], row["exits"] = card, function, exits
    return row


@kernel
def serve_trapped(address: int, now: int, budget: int) -> tuple[int, int]:
    """Catch the writes, then serve the card. Returns (frames, events)."""
    row = traps_at(address)
    card = card_at(row.behind)
    for i in range(row.count):
        value = load32_acquire(row.words[i, 0])
        if value != row.words[i, 2]:
            row.words[i, 2] = value
            store64(row.exits, load64(row.exits) + 1)
            token = call_doorbell(card.doorbell, row.behind, row.function, row.words[i, 1])
            if token:
                call_ring(card.ring, row.behind, token, value, 0, 0)
    return call_serve(card.serve, row.behind, now, budget)
