"""Attempts to interrupt others: forged messages, others' handles, floods."""

from __future__ import annotations

from virtfn.devices.nic82576.config import BAR_MSIX
from virtfn.hw.i82576 import VfRegs
from virtfn.hw.pci import MsiXEntry
from virtfn.hw.vtd.interrupts import CompatibilityAddress, RemappableAddress
from virtfn.iomodels.attack import Attempt, Result, Stage, attempt
from virtfn.machine.irq import APIC_BASE

__all__ = ["ATTEMPTS"]

_VECTORS = range(0x20, 0x100)
_HANDLES = 256
_FEE = APIC_BASE >> 20
_FLOOD = 2000
_PACKET_BYTES = 1024


def remappable(handle: int) -> int:
    """Address of a message that names entry `handle` of the interrupt remapping table."""
    return RemappableAddress.of(BASE=_FEE, FORMAT=1, HANDLE=handle & 0x7FFF, HANDLE_HIGH=handle >> 15).value


def forge(stage: Stage, messages: list[tuple[int, int]]) -> Result:
    """Write (address, vector) messages by head write-back; harm is each interrupt that a victim has of it."""
    stage.quiet()
    before, own = stage.interrupted(), stage.attacker.guest.interrupts
    stage.attacker.arm_transmit()
    for address, value in messages:
        stage.attacker.write_word(address, value)
        stage.serve(1)
    stage.attacker.point_write_back(None)
    return Result(
        stage.interrupted() - before,
        {"messages_written": len(messages), "reached_itself": stage.attacker.guest.interrupts - own},
    )


@attempt("forged-compatibility-message", "writes interrupt messages with destination and vector in them, by DMA")
def forged_compatibility(stage: Stage) -> Result:
    """Raise every vector of the first local APIC."""
    address = CompatibilityAddress.of(BASE=_FEE).value
    return forge(stage, [(address, vector) for vector in _VECTORS])


@attempt("forged-handle", "writes interrupt messages with the handles of other functions, by DMA")
def forged_handle(stage: Stage) -> Result:
    """Name every entry of the interrupt remapping table that is in use, and more."""
    return forge(stage, [(remappable(h), _VECTORS[h % len(_VECTORS)]) for h in range(_HANDLES)])


@attempt("forged-message-in-frame", "posts the interrupt range as a receive buffer, and is sent messages in frames")
def forged_in_frame(stage: Stage) -> Result:
    """Let the second buffer of a frame begin at the interrupt range: the accomplice chooses the message."""
    stage.quiet()
    before = stage.interrupted()
    attacker = stage.attacker
    for vector in _VECTORS:
        attacker.arm_receive([attacker.buffers, CompatibilityAddress.of(BASE=_FEE).value], buffer_kib=1)
        stage.inject(attacker.mac, bytes(_PACKET_BYTES - 14) + vector.to_bytes(4, "little") + bytes(60))
    return Result(stage.interrupted() - before, {"messages_written": len(_VECTORS)})


@attempt(
    "msix-foreign-handle",
    "writes the handles of other functions into its MSI-X table, and raises its vectors",
    "the table that a guest writes is virtual: the device's own holds only messages of the host's",
)
def msix_foreign_handle(stage: Stage) -> Result:
    """Send other functions' messages from the attacker's own MSI-X table."""
    stage.quiet()
    attacker = stage.attacker
    function = attacker.function
    words = [(d.offset, function.read(BAR_MSIX, d.offset)) for d in (MsiXEntry.ADDRESS, MsiXEntry.MESSAGE)]
    foreign = [index for index, rid, _ in stage.interrupts.entries() if rid != attacker.rid]
    attacker.open_vectors()
    before, own = stage.interrupted(), attacker.guest.interrupts
    for handle in foreign:
        for offset, value in ((MsiXEntry.ADDRESS.offset, remappable(handle)), (MsiXEntry.MESSAGE.offset, handle)):
            function.write(BAR_MSIX, offset, value)
        function.write(BAR_MSIX, MsiXEntry.CONTROL.offset, 0)
        attacker.regs.set(VfRegs.VTEICS, 1)
        attacker.guest.run_interrupts()
    reached, mine = stage.interrupted() - before, attacker.guest.interrupts - own
    for offset, value in words:
        function.write(BAR_MSIX, offset, value)
    function.write(BAR_MSIX, MsiXEntry.CONTROL.offset, 0)
    return Result(
        reached,
        {"handles_tried": len(foreign), "reached_itself": mine},
        {"virtual MSI-X table: raised the attacker's own vectors": mine},
    )


@attempt(
    "interrupt-flood",
    "raises its own interrupts without end and without throttle (EICS, EITR 0)",
    "a function may raise its own interrupts; posting gathers them, and only its owner pays for them",
)
def interrupt_flood(stage: Stage) -> Result:
    """Flood, and compare what the victims get in the same number of rounds before and meanwhile."""
    attacker = stage.attacker
    attacker.open_vectors()
    rounds = 20
    at = stage.received()
    stage.pump(rounds)
    calm, at = stage.received() - at, stage.received()
    own, exits = attacker.guest.interrupts, attacker.guest.exits
    for _ in range(rounds):
        for _ in range(_FLOOD // rounds):
            attacker.regs.set(VfRegs.VTEICS, 7)
        stage.pump(1)
    flooded = stage.received() - at
    # Victims that have nothing left to send are not slowed down.
    slowed = 0 if stage.engine.workload.finished else max(0, calm // 2 - flooded)
    handled = attacker.guest.interrupts - own
    stage.quiet()
    before = stage.interrupted()
    for _ in range(_FLOOD):
        attacker.regs.set(VfRegs.VTEICS, 7)
    stray = stage.interrupted() - before
    return Result(
        stray + slowed,
        {
            "raised": 3 * _FLOOD,
            "delivered_to_itself": handled,
            "exits_it_paid": attacker.guest.exits - exits,
            "victim_frames_before": calm,
            "victim_frames_meanwhile": flooded,
            "victim_interrupts": stray,
        },
    )


ATTEMPTS: tuple[Attempt, ...] = (
    forged_compatibility,
    forged_handle,
    forged_in_frame,
    msix_foreign_handle,
    interrupt_flood,
)
