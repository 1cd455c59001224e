"""What the host decides about each VF: the PF's driver enforces it, its mailbox answers by it."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtfn.hw.types import Mac

__all__ = ["Claim", "VfPolicy"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A guest asked for an address that is another's, and was refused. holder: a VF; None: the PF."""

    vf: int
    mac: Mac
    holder: int | None


@dataclass(slots=True)
class VfPolicy:
    """What the host decides about a VF. mac: 0 leaves it at what was offered. max_tx_rate: Mb/s, 0 without limit."""

    mac: Mac = field(default=Mac(0))
    vlan: int = 0
    qos: int = 0
    spoof_check: bool = True
    trust: bool = False
    max_tx_rate: int = 0
