"""A queue that runs by a copy of its registers, and what its descriptors say: for a mirror of the driver's memory.

Spec: 82576 datasheet, receive and transmit descriptors.
"""

from __future__ import annotations

import struct

import numpy as np

from virtfn.hw.i82576.desc import (
    RXD_HDRLEN_SHIFT,
    RXD_LEN_SHIFT,
    RXD_SPH,
    SRRCTL_LEGACY,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_DTYP_MASK,
    TXD_LEN_MASK,
    TXD_RS,
)
from virtfn.hw.i82576.rxtx import RDLEN, RXDCTL, SRRCTL, TDWBAL
from virtfn.kernels.i82576 import ring
from virtfn.kernels.ranges import address_of

__all__ = ["RING_BLOCK", "QueueCopy"]

_WORDS = struct.Struct("<QQ")
RING_BLOCK = np.dtype(
    {
        "names": ["base", "length", "srrctl", "head", "tail", "control", "write_back"],
        "formats": ["<u8", "<u4", "<u4", "<u4", "<u4", "<u4", "<u8"],
        "offsets": [ring.BASE, ring.LENGTH, ring.SRRCTL, ring.HEAD, ring.TAIL, ring.CONTROL, ring.WRITE_BACK],
        "itemsize": 0x40,
    }
)


class QueueCopy:
    """The registers of queue `q` twice: `shown` to its driver, and those by which it runs.

    Members of both: base, length, srrctl, head, tail, control, write_back.
    """

    def __init__(self, q: int, receive: bool, shown: np.void) -> None:
        self.q = q
        self.receive = receive
        self.shown = shown
        self._block = np.zeros(1, RING_BLOCK)
        self.run: np.void = self._block[0]
        self.address = address_of(self._block, "a queue's registers")
        self._restarts = 0
        self.restart()

    def restart(self) -> None:
        """Run by what is shown, but without a descriptor: as after a reset."""
        self._block[0] = self.shown
        self.run["tail"] = self.run["head"]
        self._restarts += 1

    def ring(self) -> tuple[int, int, int, int, int]:
        """Tell the driver's ring from others: how often it started anew, base, length in bytes, head, enabled or 0."""
        base, length, _, head, _, control, _ = self.shown.item()
        return self._restarts, base & ~0x7F, length & RDLEN.LEN.mask & ~0x7F, head, control & RXDCTL.ENABLE.mask

    def look(self) -> object:
        """Return what changes whenever either copy does."""
        return self._restarts, self.shown.tobytes(), self.run.tobytes()

    def follow(self) -> bool:
        """Carry over what the driver has set; False if the card has stopped the queue, which is shown then."""
        if self.ring()[-1] and not self.run["control"] & RXDCTL.ENABLE.mask:
            self.shown["control"] = self.run["control"]
            return False
        for name in ("srrctl", "control", "write_back"):
            self.run[name] = self.shown[name]
        return True

    @property
    def tail(self) -> int:
        """The tail that the driver has shown."""
        return int(self.shown["tail"]) & 0xFFFF

    @property
    def head(self) -> int:
        """Where the card is."""
        return int(self.run["head"])

    def hand_over(self, tail: int) -> None:
        """Let the card have descriptors up to `tail`."""
        self.run["tail"] = tail

    def show_head(self, head: int) -> None:
        """Show the driver where the card is."""
        self.shown["head"] = head

    def stop(self) -> None:
        """Stop the queue as where its ring cannot be read: it runs when its driver enables it anew."""
        self.run["control"] = int(self.run["control"]) & ~RXDCTL.ENABLE.mask

    # What descriptors say.

    def to_send(self, descriptor: bytes) -> tuple[int, int] | None:
        """Tell what a transmit descriptor names: address and bytes; None if nothing."""
        address, control = _WORDS.unpack(descriptor)
        if control & TXD_DEXT and control & TXD_DTYP_MASK != TXD_DTYP_DATA:
            return None
        return address, control & TXD_LEN_MASK

    def reports(self, given: bytes) -> bool:
        """Tell whether the driver wants to hear that a transmit descriptor is done."""
        return bool(_WORDS.unpack(given)[1] & TXD_RS)

    @property
    def head_word(self) -> int:
        """Where the card writes its head for a driver that wants to hear; 0: nowhere."""
        write_back = int(self.run["write_back"])
        return write_back & ~3 if write_back & TDWBAL.HEAD_WB_EN.mask else 0

    def received(self, given: bytes, written: bytes) -> list[tuple[int, int]]:
        """Tell where the bytes of a receive descriptor are, packet and header: (address, count) of each."""
        packet, header = _WORDS.unpack(given)
        low, high = _WORDS.unpack(written)
        if SRRCTL(int(self.run["srrctl"])).DESCTYPE == SRRCTL_LEGACY:
            return [(packet, high & 0xFFFF)]
        split = low >> RXD_HDRLEN_SHIFT & 0x3FF if low & RXD_SPH else 0
        return [(packet, high >> RXD_LEN_SHIFT & 0xFFFF), (header, split)]
