"""Attempts on other functions by the attacker's own: registers, configuration space."""

from __future__ import annotations

from virtfn.hw.i82576 import Regs, VfRegs, vf_view
from virtfn.hw.pci import MsiX, Type0
from virtfn.iomodels.attack import Attempt, Result, Stage, attempt
from virtfn.iovm.walk import capability_of

__all__ = ["ATTEMPTS"]

_NO_MEMORY = "no memory is touched, and no message sent: "
# What time, frames and interrupts of the victims' own move.
_MOVING = ("RDH", "TDH", "RDT", "TDT", "VTFRTIMER", "VTSTATUS", "V2PMAILBOX", "RQDPC")


def registers_of_others(stage: Stage) -> dict[tuple[int, int], int]:
    """Read the registers of every other VF, without side effects, by VF and offset."""
    port, found = stage.nic.port.registers, {}
    for n in range(stage.nic.vfs):
        if n != stage.vf.index:
            for offset, source in vf_view(n).items():
                name = VfRegs.INDEX[offset][0].name
                if name not in _MOVING and not name.startswith("VFG"):
                    found[n, offset] = port.peek(*Regs.INDEX[source])
    return found


@attempt(
    "other-vf-registers",
    "writes every register of its window, and far beyond it in every BAR, to reach those of other VFs",
    _NO_MEMORY + "a VF's window leads to its own registers, whoever translates",
)
def other_registers(stage: Stage) -> Result:
    """Write ones and zeros everywhere, and compare what the other VFs have."""
    stage.quiet()
    attacker = stage.attacker
    before = registers_of_others(stage)
    written = unanswered = 0
    for value in (0xFFFFFFFF, 0):
        for offset in range(0, 0x4000, 4):
            attacker.function.write(0, offset, value)
            written += 1
    attacker.renew()
    for bar in range(6):
        for step in range(64):
            offset = 0x4000 + 0x1000 * step + VfRegs.RDBAL.offset % 0x1000
            attacker.function.write(bar, offset, 0xFFFFFFFF)
            unanswered += attacker.function.read(bar, offset) in (0, 0xFFFFFFFF)
            written += 1
    after = registers_of_others(stage)
    changed = sum(after[key] != value for key, value in before.items())
    beyond = {"window of the VF: nothing answers beyond it": unanswered}
    return Result(changed, {"writes": written, "registers_compared": len(before)}, beyond)


@attempt(
    "configuration-space",
    "writes every byte of its configuration space, to resize, renumber or silence other functions",
    _NO_MEMORY + "configuration space is virtual, and what it passes on is the VF's own",
)
def configuration_space(stage: Stage) -> Result:
    """Write configuration space, and compare that of every other function of the card."""
    stage.quiet()
    config = stage.attacker.function.config
    others = [rid for rid in stage.nic.rids() if rid != stage.vf.rid]

    def spaces() -> dict[int, bytes]:
        return {
            rid: b"".join(stage.nic.config_read(rid, at, 4).to_bytes(4, "little") for at in range(0, 4096, 4))
            for rid in others
        }

    msix = capability_of(stage.iovm.pcim.bus, stage.vf.rid, MsiX)
    kept = [Type0.COMMAND.offset, *(Type0.BAR.at(i) for i in range(6))]
    if msix is not None:
        kept.append(msix.base)
    words = [(at, config.read(at, 4)) for at in kept]
    before, own = spaces(), [config.read(at, 4) for at in range(0, 4096, 4)]
    for at in range(0, 4096, 4):
        # A reset of the VF is its owner's right, and would end the attempt here.
        config.write(at, 4, 0xFFFF7FFF)
    refused = sum(config.read(4 * i, 4) == word for i, word in enumerate(own))
    for at, word in words:
        config.write(at, 4, word)
    changed = sum(a != b for rid, space in spaces().items() for a, b in zip(space, before[rid], strict=True))
    return Result(
        changed,
        {"words_written": 1024, "functions_compared": len(others)},
        {"virtual configuration space: words that kept their value": refused},
    )


ATTEMPTS: tuple[Attempt, ...] = (other_registers, configuration_space)
