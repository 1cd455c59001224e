"""What the IOVM stands on besides a PF's driver (`drivers/ports.py`): whoever remaps DMA. The host's own, or Linux's.

Remapping   domains are made, and requesters attached to them
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from virtfn.hw.types import Rid
from virtfn.machine.ports import DmaDomain

__all__ = ["Remapping"]

_Domain = TypeVar("_Domain", bound=DmaDomain)


class Remapping(Protocol[_Domain]):
    """Whoever remaps DMA."""

    def new_domain(self) -> _Domain:
        """Make an empty domain."""

    def attach(self, rid: Rid, domain: _Domain, device_tlb: bool = False) -> None:
        """Let a requester reach what a domain maps, and nothing else."""

    def detach(self, rid: Rid) -> None:
        """Let a requester reach nothing."""
