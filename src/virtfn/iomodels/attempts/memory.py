"""Attempts on memory: of the host, of another guest, of the tables; by every way that a VF has to name an address."""

from __future__ import annotations

from virtfn.iomodels.attack import OUTSIDE, Attempt, Region, Result, Stage, attempt
from virtfn.iomodels.attacker import data_word
from virtfn.machine.memory import PAGE

__all__ = ["ATTEMPTS"]

_SOME = 1024  # bytes to steal at a time
_JUNK = b"owned by the guest next door "


def steal(stage: Stage, target: Region) -> int:
    """Transmit foreign memory as the payload of a frame to the accomplice; return the bytes that arrived."""
    attacker = stage.attacker
    attacker.arm_transmit()
    attacker.send(attacker.frame(OUTSIDE), (target.address + 64, _SOME))
    stage.pump()
    return target.stolen(stage.take_heard())


def overwrite(stage: Stage, target: Region) -> int:
    """Post foreign memory as a receive buffer, and have the accomplice fill it; return the bytes that changed."""
    stage.attacker.arm_receive([target.address])
    stage.inject(stage.attacker.mac, 8 * _JUNK)
    stage.pump()
    return target.changed()


@attempt("dma-read-host", "transmits a page of the host's memory as the payload of a frame")
def read_host(stage: Stage) -> Result:
    """Read the host's memory."""
    return Result(steal(stage, stage.host_page), {"bytes_tried": _SOME})


@attempt("dma-write-host", "posts a page of the host's memory as a receive buffer")
def write_host(stage: Stage) -> Result:
    """Write the host's memory."""
    return Result(overwrite(stage, stage.host_page), {"bytes_tried": 14 + 8 * len(_JUNK)})


@attempt("dma-read-guest", "transmits a page of another guest's memory")
def read_guest(stage: Stage) -> Result:
    """Read another guest's memory."""
    return Result(steal(stage, stage.victim_page), {"bytes_tried": _SOME})


@attempt("dma-write-guest", "posts a page of another guest's memory as a receive buffer")
def write_guest(stage: Stage) -> Result:
    """Write another guest's memory."""
    return Result(overwrite(stage, stage.victim_page), {"bytes_tried": 14 + 8 * len(_JUNK)})


@attempt("dma-write-tables", "writes root table, context table and page tables, whose addresses have leaked")
def write_tables(stage: Stage) -> Result:
    """Write the translation tables."""
    spoilt = {}
    for name, table in stage.tables().items():
        spoilt[name] = overwrite(stage, table)
        table.restore()
        stage.attacker.renew()
    return Result(sum(spoilt.values()), {f"{name}_bytes_changed": count for name, count in spoilt.items()})


@attempt("dma-write-interrupt-table", "writes interrupt remapping table and posted interrupt descriptors")
def write_interrupt_table(stage: Stage) -> Result:
    """Write the interrupt remapping table, and the descriptors that it leads to, whose addresses have leaked."""
    spoilt = {}
    stage.quiet()
    for name, address in (("table", stage.interrupts.address), ("descriptors", stage.interrupts.descriptors)):
        region = stage.region(address, PAGE)
        spoilt[name] = overwrite(stage, region)
        region.restore()
    evidence: dict[str, int | float] = {f"{name}_bytes_changed": count for name, count in spoilt.items()}
    return Result(sum(spoilt.values()), {"entries_there": len(stage.interrupts.entries()), **evidence})


@attempt("receive-ring-outside", "puts its receive ring into the host's memory, where the device writes done bits")
def receive_ring_outside(stage: Stage) -> Result:
    """Let descriptors be read from, and written back to, the host's memory."""
    stage.attacker.arm_receive(ring=stage.host_page.address)
    stage.inject(stage.attacker.mac, _JUNK)
    stage.pump()
    return Result(stage.host_page.changed())


@attempt("transmit-ring-of-another", "takes another guest's transmit ring for its own, to send what the other would")
def transmit_ring_of_another(stage: Stage) -> Result:
    """Execute another guest's descriptors as the attacker's own requester."""
    ring = stage.secret_of(stage.victims[0])
    words = ring.now.view("<u8").reshape(-1, 2)
    words[:8, 0] = stage.victim_page.address
    words[:8, 1] = data_word(_SOME, _SOME)
    ring = Region(ring.address, ring.now)
    stage.attacker.arm_transmit(ring=ring.address)
    stage.attacker.kick(1)
    stage.pump()
    return Result(ring.changed() + stage.victim_page.stolen(stage.take_heard()), {"descriptors_tried": 1})


@attempt("head-write-back", "has the device write its transmit head into the host's memory (TDWBAL)")
def head_write_back(stage: Stage) -> Result:
    """Write four bytes of the host's memory by head write-back."""
    attacker = stage.attacker
    attacker.arm_transmit(write_back=stage.host_page.address + 256)
    attacker.send(attacker.frame(OUTSIDE, length=60))
    stage.pump()
    return Result(stage.host_page.changed(), {"frames_sent": len(stage.take_heard())})


ATTEMPTS: tuple[Attempt, ...] = (
    read_host,
    write_host,
    read_guest,
    write_guest,
    write_tables,
    write_interrupt_table,
    receive_ring_outside,
    transmit_ring_of_another,
    head_write_back,
)
