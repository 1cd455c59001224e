"""Attempts on what functions share without seeing it: the port's time, the wire, and the edge of a ring.

Each takes a VF that nobody has for a neighbour of the attacker's, an honest one; without such a VF it is not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from virtfn.hw.i82576 import VfRegs
from virtfn.hw.i82576.desc import (
    DESC_BYTES,
    TXC_L4LEN_SHIFT,
    TXC_MACLEN_SHIFT,
    TXC_MSS_SHIFT,
    TXC_TUCMD_IPV4,
    TXD_DEXT,
    TXD_DTYP_CONTEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IFCS,
    TXD_IXSM,
    TXD_PAYLEN_SHIFT,
    TXD_TSE,
    TXD_TXSM,
)
from virtfn.hw.i82576.rxtx import RXDCTL
from virtfn.hw.types import Hva, Mac
from virtfn.iomodels.attack import OUTSIDE, Attempt, Region, Result, Stage, attempt
from virtfn.iomodels.attacker import RING, Attacker, data_word
from virtfn.iovm.iovm import VfState
from virtfn.kernels.card import EV_MORE
from virtfn.kernels.i82576.state import WIRE
from virtfn.machine.clock import US_PS
from virtfn.machine.memory import PAGE
from virtfn.vmm.hostaddresses import host_address

__all__ = ["ATTEMPTS", "large_sends"]

_SHORT = 8  # descriptors of the shortest ring there is
_BURST = 48
_CALLS = 50
_TCP = 1 << 11  # L4T of a context descriptor
_NEIGHBOUR = Mac(0x88_00_00_00_00_02)
_THE_CARD = "remapping plays no role: the card itself shares out what it has"


@contextmanager
def neighbour(stage: Stage) -> Iterator[Attacker | None]:
    """Give a VF that nobody has to a guest of its own, with rings that can be filled at will; None if there is none."""
    vf = next((vf for vf in stage.iovm.inventory() if vf.state is VfState.FREE), None)
    if vf is None:
        yield None
        return
    guest = stage.newcomer("neighbour")
    stage.iovm.assign(vf, guest, mac=_NEIGHBOUR)
    guest.nic(vf.rid).driver.start()
    made = Attacker(guest)
    made.seize()
    made.renew()
    try:
        yield made
    finally:
        stage.iovm.take_back(vf)
        guest.close()


@contextmanager
def paced(stage: Stage) -> Iterator[None]:
    """Let the wire be one of 1 Gb/s meanwhile."""
    port = stage.nic.port
    before = port.l2switch.link_mbps if int(port.nic["port"]["wire_ps_per_byte"]) else 0
    port.set_wire(True, 1000)
    try:
        yield
    finally:
        port.set_wire(True, before)


def refill(sender: Attacker, frames: int, length: int, target: Mac = OUTSIDE) -> None:
    """Give the device `frames` more frames of the same."""
    frame = sender.frame(target, length=length)
    for _ in range(frames):
        sender.put(frame)
    sender.kick()


def sent(stage: Stage, sender: Attacker, what: str = "gptc") -> int:
    """Count the frames (`gotc`: bytes) that the card has sent for somebody."""
    (vf,) = (vf for vf in stage.iovm.inventory() if vf.rid == sender.rid)
    return int(stage.nic.port.nic["pools"][vf.index][what])


def room(sender: Attacker) -> int:
    """Count the descriptors that may be given to the device."""
    return int(sender.regs.get(VfRegs.TDH) - sender.regs.get(VfRegs.TDT) - 1) % RING


def page_behind(stage: Stage, attacker: Attacker) -> Region:
    """Find the page of the attacker's behind its receive ring: nothing there is for the card."""
    ring = Hva(int(attacker.rx.ctypes.data))
    return stage.region(host_address(attacker.guest.memory, Hva(ring + PAGE)), PAGE)


@attempt(
    "whole-ring",
    "hands over all of a short receive ring that ends where its page does, and gets more frames than it holds",
    "remapping plays no role: the card goes on at the ring's beginning, and not behind it",
)
def whole_ring(stage: Stage) -> Result:
    """Have a neighbour send a run of frames that is longer than the ring."""
    attacker = stage.attacker
    with neighbour(stage) as sender:
        if sender is None:
            return Result(0, {"no_free_vf": 1})
        attacker.arm_receive()
        first = PAGE // DESC_BYTES - _SHORT
        attacker.rx[first:, 0] = attacker.rx[:_SHORT, 0]
        behind = page_behind(stage, attacker)
        regs = attacker.regs
        ring = attacker.rx_ring + first * DESC_BYTES
        for decl, value in (
            (VfRegs.RXDCTL, 0), (VfRegs.RDBAL, ring & 0xFFFFFFFF), (VfRegs.RDBAH, ring >> 32),
            (VfRegs.RDLEN, _SHORT * DESC_BYTES), (VfRegs.RDH, 0), (VfRegs.RXDCTL, RXDCTL.of(ENABLE=1).value),
            (VfRegs.RDT, _SHORT),
        ):  # fmt: skip
            regs.set(decl, value)
        sender.arm_transmit()
        before = sent(stage, sender)
        with stage.unheard():
            refill(sender, _BURST, 60, attacker.mac)
            for _ in range(4):
                stage.nic.serve()
        frames = sent(stage, sender) - before
        spoilt = behind.changed()
        behind.restore()
    return Result(
        spoilt,
        {"frames": frames, "bytes_behind_the_ring": spoilt},
        {"ring: begun again at its end": int(frames > _SHORT)},
    )


def large_sends(attacker: Attacker, mss: int, target: Mac = OUTSIDE) -> list[tuple[int, int]]:
    """Make a large send of segments of `mss` bytes: its two descriptors."""
    at, size = attacker.frame(target, length=1054 if mss < 1000 else 15_000)
    headers = 20 | 14 << TXC_MACLEN_SHIFT
    context = TXD_DTYP_CONTEXT | TXD_DEXT | TXC_TUCMD_IPV4 | _TCP | 20 << TXC_L4LEN_SHIFT | mss << TXC_MSS_SHIFT
    command = TXD_TSE | TXD_IFCS | TXD_EOP | TXD_TXSM | TXD_IXSM
    send = TXD_DTYP_DATA | TXD_DEXT | command | size | (size - 54) << TXD_PAYLEN_SHIFT
    return [(headers, context), (at, send - (1 << 64) if send >> 63 else send)]


def _segments(attacker: Attacker) -> None:
    """Fill the ring with large sends of one-byte segments."""
    attacker.tx[0::2], attacker.tx[1::2] = large_sends(attacker, 1)
    attacker.kick(RING - 2)


def _open_chain(attacker: Attacker) -> None:
    """Post a chain of nothing that does not end."""
    attacker.tx[:] = attacker.frame(OUTSIDE, length=60)[0], data_word(0, 0, last=False)
    attacker.kick(RING - 2)


def _faults(attacker: Attacker) -> None:
    """Fill the ring with frames that lie nowhere."""
    attacker.tx[:] = 1 << 40, data_word(60, 60)
    attacker.kick(RING - 1)


@attempt(
    "all-of-the-time",
    "keeps the card busy with large sends of tiny segments, chains without an end, and frames that lie nowhere",
    _THE_CARD,
)
def all_of_the_time(stage: Stage) -> Result:
    """Count what a neighbour sends in as many calls of the card, quiet and beside each flood."""
    floods: tuple[Callable[[Attacker], None], ...] = (_segments, _open_chain, _faults)
    with neighbour(stage) as other:
        if other is None:
            return Result(0, {"no_free_vf": 1})
        stage.quiet()
        quiet, _ = _frames_beside(stage, other, None)
        beside, held = zip(*(_frames_beside(stage, other, flood) for flood in floods), strict=True)
    missing = sum(max(0, quiet // 2 - count) for count in beside)
    return Result(
        missing,
        {"frames_alone": quiet, "frames_beside": min(beside), "calls": _CALLS},
        {"turns: its round was over, the neighbour's went on": sum(held)},
    )


def _frames_beside(stage: Stage, other: Attacker, flood: Callable[[Attacker], None] | None) -> tuple[int, int]:
    """Return the frames of a neighbour in some calls, and in how many the attacker had to wait for its next turn."""
    stage.attacker.arm_transmit()
    other.arm_transmit()
    before, held = sent(stage, other), 0
    for _ in range(_CALLS):
        if flood is not None and room(stage.attacker) == RING - 1:
            stage.attacker.arm_transmit()
            flood(stage.attacker)
        refill(other, 8, 60)
        _, events = stage.nic.serve(8)
        stage.listen()
        held += bool(events & EV_MORE)
    return sent(stage, other) - before, held


@attempt(
    "all-of-the-wire",
    "sends without pause, so that a neighbour gets nothing through a wire that is not enough for both",
    _THE_CARD,
)
def all_of_the_wire(stage: Stage) -> Result:
    """Saturate a wire of 1 Gb/s beside a neighbour that does, too; compare their bytes."""
    attacker, calls = stage.attacker, 4 * _CALLS
    with neighbour(stage) as other, paced(stage):
        if other is None:
            return Result(0, {"no_free_vf": 1})
        senders = (attacker, other)
        for sender in senders:
            sender.arm_transmit()
        before = [sent(stage, sender, "gotc") for sender in senders]
        waited = 0
        for _ in range(calls):
            for sender in senders:
                refill(sender, min(room(sender), 24), 1514)
            stage.host.clock.sleep(100 * US_PS)
            stage.nic.serve()
            stage.listen()
            waited += bool(stage.nic.port.nic["claims"][WIRE, stage.vf.index])
        own, others = (sent(stage, s, "gotc") - was for s, was in zip(senders, before, strict=True))
    stage.take_heard()
    harm = max(0, int(0.45 * (own + others)) - others)
    evidence: dict[str, int | float] = {"bytes": own, "bytes_of_the_neighbour": others}
    return Result(harm, evidence, {"shares: it had to wait for the wire": waited})


ATTEMPTS: tuple[Attempt, ...] = (whole_ring, all_of_the_time, all_of_the_wire)
