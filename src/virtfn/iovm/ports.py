"""What the IOVM stands on: a PF's driver, and whoever remaps DMA. The host's own, or Linux's.

PfDriver    VFs begin and end, each has a policy, is stopped, started, and given up as new
Remapping   domains are made, and requesters attached to them
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from virtfn.drivers.policy import VfPolicy
from virtfn.hw.types import Mac, Rid
from virtfn.machine.ports import DmaDomain

__all__ = ["PfDriver", "Remapping"]


class PfDriver(Protocol):
    """The driver of a PF. n: a VF's number. It owns the policies of its VFs, whoever changes them."""

    def start(self, vfs: int) -> None:
        """Take so many VFs up, each closed until it is assigned."""

    def end_vfs(self) -> None:
        """Take note that the VFs are gone."""

    def serve(self) -> None:
        """Do what guests have asked for."""

    def policy(self, n: int) -> VfPolicy:
        """Tell the policy in force, as a copy."""

    def set_policy(self, n: int, policy: VfPolicy) -> None:
        """Apply all of a policy. Raises VirtfnError for what cannot be."""

    def offer_mac(self, n: int, mac: Mac | None = None) -> None:
        """Offer an address; without `mac`, any. Raises VirtfnError for one that cannot be."""

    def start_vf(self, n: int) -> None:
        """Let a VF run."""

    def stop_vf(self, n: int) -> None:
        """Let nothing in or out of a VF."""

    def release_vf(self, n: int) -> None:
        """Make a VF as new for the next owner."""


_Domain = TypeVar("_Domain", bound=DmaDomain)


class Remapping(Protocol[_Domain]):
    """Whoever remaps DMA."""

    def new_domain(self) -> _Domain:
        """Make an empty domain."""

    def attach(self, rid: Rid, domain: _Domain, device_tlb: bool = False) -> None:
        """Let a requester reach what a domain maps, and nothing else."""

    def detach(self, rid: Rid) -> None:
        """Let a requester reach nothing."""
