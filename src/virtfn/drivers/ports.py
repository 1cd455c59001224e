"""What a PF's driver is to those who do not know its card. The host's own, or Linux's.

PfDriver      VFs begin and end, each has a policy, is stopped, held back, started, and given up as new
BoundDriver   the same, driven by this process: bound to registers, and interrupted
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from virtfn.drivers.policy import Claim, SwitchPolicy, VfPolicy
from virtfn.hw.types import Mac

__all__ = ["BoundDriver", "PfDriver"]


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

    def set_policies(self, policies: Mapping[int, VfPolicy]) -> None:
        """Apply all of several policies, or none of them. Raises VirtfnError for what cannot be."""

    def switch_policy(self) -> SwitchPolicy:
        """Tell what is decided about the switch."""

    def set_switch(self, policy: SwitchPolicy) -> None:
        """Apply what is decided about the switch, or nothing. Raises VirtfnError for what cannot be."""

    def address(self, n: int) -> Mac:
        """Tell the address that a VF uses, 0 if it has none."""

    def offer_mac(self, n: int, mac: Mac | None = None) -> None:
        """Offer an address; without `mac`, any. Raises VirtfnError for one that cannot be."""

    def start_vf(self, n: int) -> None:
        """Let a VF run."""

    def stop_vf(self, n: int) -> None:
        """Let nothing in or out of a VF."""

    def throttle(self, n: int, mbps: int | None) -> None:
        """Hold a VF back, to so many Mb/s and in what else it asks of the host; None: no more.

        Raises VirtfnError for a driver that cannot.
        """

    def attend(self, n: int) -> None:
        """Look after a VF that may be held back: called several times a second."""

    def release_vf(self, n: int) -> None:
        """Make a VF as new for the next owner."""


class BoundDriver(PfDriver, Protocol):
    """The driver of a PF that this process drives itself, bound to its registers."""

    def watch_claims(self, tell: Callable[[Claim], None]) -> None:
        """Have it told when a guest asks for an address that is another's."""

    def claims(self, n: int) -> int:
        """Count how often the guest of a VF has asked so."""

    @property
    def link_up(self) -> bool:
        """Whether the port has a link."""

    def probe(self) -> None:
        """Find the device and reset it. Raises VirtfnError if it is not as it should be."""

    def stop(self) -> None:
        """Go away, and leave the device quiet."""

    def interrupt(self, vector: int) -> None:
        """Handle an interrupt: vector 0 is of everything but queues."""
