"""What is at the other end of a card's wire, as a NETDEV: whoever holds it sends to the card, and hears what leaves it.

send   frames in its transmit buffers arrive at the card, one after the other, as far as the card takes them
take   what left the card lies in the card's store (`departures.py`), and is listed there; no copy is made
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.kernels._jit import entry, kernel, load32, load64, row_at, row_of, store64
from virtfn.kernels.csum import swap32
from virtfn.kernels.i82576.departures import forget
from virtfn.kernels.i82576.port import arrive, begin, finish
from virtfn.kernels.i82576.state import nic_at
from virtfn.kernels.netdev import BATCH, ENTRY_BYTES, NETDEV_NAMES
from virtfn.kernels.ranges import address_of, row_address
from virtfn.kernels.streams import LENGTH_BYTES

__all__ = ["BUFFER_BYTES", "FAR_END", "new_far_end"]

FAR_END = row_of(
    NETDEV_NAMES
    +
    # the card's state; the next frame that the card is to take
    "card arrives"
)
far_end_at = row_at(FAR_END)
BUFFER_BYTES = -(-MAX_FRAME // 64) * 64 + 64


def new_far_end(card: int, size: int, kept: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.void]:
    """Make the row of a card's far end, as (1,) FAR_END, always up and polling.

    card: address of the card's state. size: frames that wait for the card, at most. kept: gets what must live as long.
    """
    row = np.zeros(1, FAR_END)
    row_address(row, "the far end of a wire")
    for name, function in (
        ("tx_room", far_room), ("tx_send", far_send), ("rx_take", far_take), ("rx_return", far_return),
    ):  # fmt: skip
        row[name] = entry(function, 2)
    buffers, lengths = np.zeros(size * BUFFER_BYTES, np.uint8), np.zeros(size, np.int64)
    taken = np.zeros((BATCH, 3), np.int64)
    kept += [buffers, lengths, taken]
    row["tx_buffers"], row["tx_lengths"] = (
        address_of(buffers, "frames for a card"),
        address_of(lengths, "their lengths"),
    )
    row["taken"] = address_of(taken, "frames that left a card")
    row["tx_size"] = row["rx_size"] = size
    row["buffer_bytes"], row["longest"] = BUFFER_BYTES, MAX_FRAME
    row["card"] = card
    row["up"] = row["polling"] = 1
    return row


@kernel
def push(address: int) -> None:
    """Let the card take frames that wait."""
    d = far_end_at(address)
    if d.arrives == d.tx_tail:
        return
    nic = nic_at(d.card)
    begin(nic, nic.port.now)
    while d.arrives != d.tx_tail:
        if arrive(nic, d.tx_buffers + d.arrives * d.buffer_bytes, load64(d.tx_lengths + d.arrives * 8)):
            break
        d.arrives = d.arrives + 1 if d.arrives + 1 < d.tx_size else 0
    finish(nic)


@kernel
def far_room(address: int, _: int) -> int:
    """Frames that can be sent now; one place always stays empty."""
    d = far_end_at(address)
    free = d.arrives - d.tx_tail - 1
    return free if free >= 0 else free + d.tx_size


@kernel
def far_send(address: int, count: int) -> int:
    """Send the next buffers to the card."""
    d = far_end_at(address)
    for _ in range(count):
        d.tx_bytes += load64(d.tx_lengths + d.tx_tail * 8)
        d.tx_tail = d.tx_tail + 1 if d.tx_tail + 1 < d.tx_size else 0
    d.tx_frames += count
    push(address)
    return 0


@kernel
def far_take(address: int, most: int) -> int:
    """List frames that left the card, in order; and let it take those that it had no room for before."""
    push(address)
    d = far_end_at(address)
    p = nic_at(d.card).port
    at = p.departures + p.departed_head
    end = p.departures + p.departed_tail
    listed = d.taken
    count = 0
    while count < most and at < end:
        length = swap32(load32(at))
        store64(listed, at + LENGTH_BYTES)
        store64(listed + 8, length)
        store64(listed + 16, -1)
        listed += ENTRY_BYTES
        at += LENGTH_BYTES + length
        d.rx_bytes += length
        count += 1
    d.rx_frames += count
    return count


@kernel
def far_return(address: int, count: int) -> int:
    """Let the card use the room of the first frames again."""
    d = far_end_at(address)
    p = nic_at(d.card).port
    head = p.departed_head
    for _ in range(count):
        head += LENGTH_BYTES + swap32(load32(p.departures + head))
    forget(p, head)
    return 0
