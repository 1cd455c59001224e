"""What an explanation sees of a card, now or as it was saved: registers, and the little that no register shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import RXDCTL, TXDCTL

__all__ = ["READ", "CardState", "Dropped", "Outcome", "Sight", "Step", "StormState", "Target"]

READ: tuple[Decl, ...] = (
    Regs.CTRL, Regs.CTRL_EXT, Regs.VET, Regs.RCTL, Regs.TCTL, Regs.VT_CTL, Regs.MRQC, Regs.DTXSWC, Regs.RPLOLR,
    Regs.RLPML, Regs.VFRE, Regs.VFTE, Regs.QDE, Regs.VMOLR, Regs.VMVIR, Regs.VLVF, Regs.VFTA, Regs.MTA, Regs.UTA,
    Regs.RAL, Regs.RAH, Regs.RALX, Regs.RAHX, Regs.VMRCTL, Regs.VMRVLAN, Regs.VMRVM, Regs.RETA, Regs.RSSRK,
    Regs.SRRCTL, Regs.RDLEN, Regs.RDH, Regs.RDT, Regs.RXDCTL, Regs.TXDCTL,
    Regs.SCCRL, Regs.BSCTRH, Regs.MSCTRH,
)  # fmt: skip
"""The registers that decide."""


class StormState(TypedDict):
    """What storm control has seen in the window of now, in bytes; and of what there was too much in the one before."""

    broadcasts: int
    multicasts: int
    broadcasts_before: bool
    multicasts_before: bool


class CardState(TypedDict):
    """A card's state for explanations, as JSON. blocked, driven: queues, as bits; vfs: enabled ones."""

    vfs: int
    wire_up: bool
    self_loop: bool
    blocked: int
    driven: int
    storm: StormState
    registers: dict[str, list[int]]


class Step(TypedDict):
    """One decision: at which stage, the register that makes it (or none), and in words."""

    stage: str
    register: str
    words: str


class Target(TypedDict):
    """A pool that gets the frame, by which queue, in how many descriptors, and whether without its tag."""

    pool: int
    queue: int
    descriptors: int
    stripped: bool


class Dropped(TypedDict):
    """Where a frame goes no further, by pool (null: the wire), and why, as drops are counted."""

    interface: int | None
    reason: str


class Outcome(TypedDict):
    """What becomes of a frame. outcome: forwarded, dropped, or waits (it stays in its sender's ring).

    unknown: what only shows when it moves, in words.
    """

    source: int | None
    frame: str
    steps: list[Step]
    outcome: str
    words: str
    to: list[Target]
    wire: bool
    dropped: list[Dropped]
    unknown: list[str]


class Queue(NamedTuple):
    """A receive queue: its descriptors, those at hand, its SRRCTL, whether it drops when there are none."""

    size: int
    free: int
    control: int
    drops: bool


class Sight:
    """A card's state, to be looked at. Raises ValueError or LookupError for one that is none."""

    def __init__(self, state: CardState) -> None:
        self._registers: Mapping[str, Sequence[int]] = state["registers"]
        self.vfs = int(state["vfs"])
        self.wire_up, self.self_loop = bool(state["wire_up"]), bool(state["self_loop"])
        self.blocked, self._driven = int(state["blocked"]), int(state["driven"])
        storm = state["storm"]
        self.storm = int(storm["broadcasts"]), int(storm["multicasts"])
        self.storm_before = bool(storm["broadcasts_before"]), bool(storm["multicasts_before"])
        for decl in READ:
            values = self._registers[decl.name]
            if len(values) != decl.count or not all(isinstance(v, int) and 0 <= v < 1 << 32 for v in values):
                raise ValueError(f"{decl.name} has {decl.count} values of 32 bits")

    def peek(self, decl: Decl, index: int) -> int:
        """Read a register."""
        return self._registers[decl.name][index]

    def name(self, pool: int | None) -> str:
        """Name a pool, or the wire."""
        return "wire" if pool is None else f"vf{pool}" if pool < self.vfs else "pf"

    def sends(self, q: int) -> bool:
        """Tell whether a transmit queue runs."""
        return bool(self._driven >> q & 1 and TXDCTL(self.peek(Regs.TXDCTL, q)).ENABLE)

    def queue(self, q: int) -> Queue | None:
        """Look at a receive queue; None if it does not run."""
        size = self.peek(Regs.RDLEN, q) >> 4
        if not (self._driven >> q & 1 and RXDCTL(self.peek(Regs.RXDCTL, q)).ENABLE and size):
            return None
        control = self.peek(Regs.SRRCTL, q)
        drops = bool(control >> 31 or self.peek(Regs.QDE, 0) >> q & 1)
        free = self.peek(Regs.RDT, q) - self.peek(Regs.RDH, q)
        return Queue(size, free if free >= 0 else free + size, control, drops)
