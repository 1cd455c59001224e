"""The device's end of a descriptor ring.

    register block (0x40 bytes, shared with the driver)          ring in the driver's memory
      +00 base  +08 length  +0c SRRCTL  +10 head                   | done | done | owned | owned | free |
      +18 tail  +28 xDCTL   +38 head write-back                                    ^head           ^tail

The driver moves the tail, the device the head; descriptors from head to tail-1 are the device's. The device keeps its
own head, since the driver can write anything into the register: a head register that no longer holds what the device
published was rewritten by software, as it may be while the queue stands still, and is taken over if it is in the ring.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.i82576 import rxtx
from virtfn.kernels._jit import Row, inlined, kernel, load32, load32_acquire, load64, part, store32, store32_release
from virtfn.kernels.card import EV_MALICIOUS
from virtfn.kernels.vtd.ats import awaits_page
from virtfn.kernels.vtd.dma import translate
from virtfn.kernels.vtd.iommu import iommu_at

__all__ = [
    "HEAD",
    "TAIL",
    "advance",
    "forget_chain",
    "latch",
    "move_head",
    "next_stretch",
    "note_cause",
    "publish",
    "ring_count",
    "window",
    "window_hot",
]

BASE = 0x00
LENGTH = 0x08
SRRCTL = 0x0C
HEAD = 0x10
TAIL = 0x18
CONTROL = 0x28
WRITE_BACK = 0x38
ENABLE = rxtx.RXDCTL.ENABLE.mask  # TXDCTL's is the same bit
DROP_EN = rxtx.SRRCTL.DROP_EN.mask
_LENGTH = rxtx.RDLEN.LEN.mask & ~0x7F  # whole blocks of 128 bytes
_PACKET, _TYPE, _TYPE_SHIFT = rxtx.SRRCTL.BSIZEPACKET.mask, rxtx.SRRCTL.DESCTYPE.mask, rxtx.SRRCTL.DESCTYPE.lsb


@part
def forget_chain(r: Row) -> None:
    """Forget what was gathered of the chain at the head of a transmit queue: it is sent, or no longer the driver's."""
    r.walked = 0
    r.gathered = 0
    r.whole = 0
    r.segments_done = 0


@kernel
def latch(r: Row, epoch: int, receive: bool) -> bool:
    """Take over what the driver wrote into the registers of a queue; once a call, before its first use.

    Returns False if the tail has been put outside the ring; the queue then stands still until it is moved.
    """
    r.epoch = epoch
    r.win_hi = 0
    r.win_lo = 0
    r.near_bytes = 0
    regs = r.regs
    if regs == 0:
        r.enabled = 0
        forget_chain(r)
        r.raw_control = -1  # look again when the function may master the bus again
        r.published = r.head
        return True
    latch_setup(r, regs, receive)
    head = load32(regs + HEAD) & 0xFFFF  # the bits that the registers have
    if head != r.published:
        r.published = head
        r.head = head
        forget_chain(r)
    if r.head >= r.size:
        r.head = 0
    tail = load32_acquire(regs + TAIL) & 0xFFFF
    # A receive tail one past the end hands the whole ring over, without a gap: drivers of firmware start so.
    if tail < r.size or (receive and tail == r.size):
        r.tail = tail
        r.bad_tail = 0
        return True
    r.tail = r.head
    news = r.enabled != 0 and tail != r.bad_tail
    if r.enabled:
        r.bad_tail = tail
    return not news


@part
def latch_setup(r: Row, regs: int, receive: bool) -> None:
    """Take over where the ring is, and how it is used, if the driver has changed that."""
    control = load32(regs + CONTROL)
    base = load64(regs + BASE)
    length = load32(regs + LENGTH)
    layout = load32(regs + SRRCTL) if receive else load64(regs + WRITE_BACK)
    if control == r.raw_control and base == r.raw_base and length == r.raw_len and layout == r.layout_raw:
        return
    r.raw_control = control
    r.raw_base = base
    r.raw_len = length
    r.layout_raw = layout
    r.enabled = 1 if control & ENABLE else 0
    r.refused = 0
    forget_chain(r)
    r.base = base & ~np.int64(0x7F)
    r.size = (length & _LENGTH) >> 4
    if receive:
        r.layout = (layout & _TYPE) >> _TYPE_SHIFT
        packet = (layout & _PACKET) << 10
        r.packet_bytes = packet if packet > 0 else r.default_bytes
        r.header_bytes = (layout >> 8 & 0xF) << 6
        r.drop_enable = 1 if layout & DROP_EN else 0
    else:
        r.head_wb = layout if layout & 1 else 0  # the enable stays in: 0 is an address too


@part
def advance(r: Row) -> None:
    """Move the head on by one descriptor."""
    r.head = r.head + 1 if r.head + 1 < r.size else 0


@part
def note_cause(nic: Row, r: Row) -> None:
    """Enter the interrupt cause of a queue."""
    nic.port.pending |= r.cause
    nic.port.eicr |= r.cause


@kernel
def ring_count(r: Row) -> int:
    """Number of descriptors that are the device's."""
    count = r.tail - r.head
    return count if count >= 0 else count + r.size


@kernel
def window(nic: Row, r: Row) -> int:
    """Return the host address of the descriptor at the head, or 0 if the IOMMU refuses the ring, which then stops.

    0 of a ring that goes on means that its page has been asked for.

    The translation is kept for the rest of the page until the call ends: the device's descriptor prefetch.
    """
    head = r.head
    if head < r.win_lo or head >= r.win_hi:
        if r.refused:
            return 0
        want = (r.size - head) * 16
        hpa, run = translate(iommu_at(nic.port.iommu), r.rid, r.base + head * 16, want, 0)
        if run >= 16:
            hpa, run = translate(iommu_at(nic.port.iommu), r.rid, r.base + head * 16, want, 1)
        if run < 16 and not awaits_page(iommu_at(nic.port.iommu), r.rid):
            # The queue reads as stopped, and runs again when its driver enables it anew.
            r.enabled = 0
            r.refused = 1
            r.raw_control = load32(r.regs + CONTROL) & ~ENABLE
            store32(r.regs + CONTROL, r.raw_control)
        if run < 16:
            return 0
        r.win_lo = head
        r.win_hi = head + run // 16
        r.win_hpa = hpa
    return r.win_hpa + (head - r.win_lo) * 16


@part
def next_stretch(nic: Row, r: Row, at: int) -> tuple[int, int]:
    """Move the head to the descriptor at `at`, and return the addresses of the first from there, and behind the last.

    They are the device's, and in one piece; the end of the ring ends it too. (0, 0) if there is none, or no window.
    """
    move_head(r, at)
    first = window(nic, r) if r.head != r.tail else 0
    if first == 0:
        return 0, 0
    stop = min(r.win_hi, r.tail) if r.tail > r.head else r.win_hi
    return first, first + (stop - r.head) * 16


@part
def move_head(r: Row, at: int) -> None:
    """Move the head to the descriptor at `at`, in the window or behind it; 0: leave it where it is."""
    if at:
        head = r.win_lo + (at - r.win_hpa) // 16
        r.head = head if head < r.size else 0


window_hot = inlined(window.py_func)  # type: ignore[attr-defined]


@kernel
def publish(r: Row) -> None:
    """Show the driver how far the device has come."""
    if r.head != r.published:
        r.published = r.head
        store32_release(r.regs + HEAD, r.head)


@kernel
def misbehave(nic: Row, q: int) -> int:
    """Record that transmit queue `q` has a driver that makes no sense; block it if protection is on."""
    p = nic.port
    p.misbehaved |= 1 << q
    if p.mdp:
        p.blocked |= 1 << q
    return EV_MALICIOUS
