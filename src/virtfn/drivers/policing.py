"""The part of the PF's driver that decides about VFs and the switch: checked first, then written, so that it holds.

MAC           RAL, RAH                  spoof check   DTXSWC.MACAS, VLANAS
VLAN, qos     VMVIR, VLVF, VMOLR        trust         VMOLR.ROPE, MPME; which messages are answered with yes
trunk         VLVF, DTXSWC.VLANAS       rate          RTTDQSEL, RTTBCNRC
link state    VFTE, VFRE; CTS of messages
mirrors       VMRCTL, VMRVLAN, VMRVM    storm limits  SCCRL, BSCTRH, MSCTRH
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

from virtfn.drivers.addresses import Addresses
from virtfn.drivers.pfmailbox import PfMailbox
from virtfn.drivers.policy import Claim, LinkState, SwitchPolicy, VfPolicy
from virtfn.drivers.pools import Pools
from virtfn.drivers.restraint import Restraint
from virtfn.drivers.switching import Switching, check_switch
from virtfn.drivers.window import Window
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.fields import STATUS
from virtfn.hw.types import Mac
from virtfn.machine.ports import VirtfnError

__all__ = ["Policing"]


class Policing:
    """Policy of a port's VFs, and of its switch. All of a call holds when it returns, or none if it raises."""

    vfs: int
    policies: list[VfPolicy]
    pools: Pools
    addresses: Addresses
    mailbox: PfMailbox
    restraint: Restraint
    switching: Switching
    _regs: Window
    _switch: SwitchPolicy

    def _check(self, n: int) -> VfPolicy:
        if not 0 <= n < self.vfs:
            raise VirtfnError(f"there is no VF {n}: {self.vfs} are enabled", errno_name="EINVAL")
        return self.policies[n]

    def policy(self, n: int) -> VfPolicy:
        """Tell the policy of VF `n` that is in force, as a copy. Raises VirtfnError if there is no such VF."""
        return replace(self._check(n))

    def address(self, n: int) -> Mac:
        """Tell the address that VF `n` uses, 0 if it has none. Raises VirtfnError if there is no such VF."""
        self._check(n)
        return self.addresses.of(n)

    def set_policy(self, n: int, policy: VfPolicy) -> None:
        """Apply all of a policy. Raises VirtfnError as `set_policies` does."""
        self.set_policies({n: policy})

    def set_policies(self, policies: Mapping[int, VfPolicy]) -> None:
        """Apply all of these policies, by VF, or none of them.

        Raises VirtfnError: EINVAL for a VF, address, VLAN, priority or rate that cannot be; EADDRINUSE for an address
        that is the PF's, or another VF's by the host's own word; EOPNOTSUPP for what this card cannot do.
        """
        link = self._link_mbps()
        for n, policy in policies.items():
            _check_policy(self._check(n), policy, link)
        losers = self.addresses.fix({n: policy.mac for n, policy in policies.items()})
        for n, policy in policies.items():
            self._apply(n, policy)
        self._recall(losers)

    def _apply(self, n: int, policy: VfPolicy) -> None:
        """Write all of a policy but the address."""
        mine = self.policies[n]
        old_vlan, old_state = mine.vlan, mine.link_state
        mine.vlan, mine.qos, mine.trunk = policy.vlan, policy.qos, policy.trunk
        mine.spoof_check, mine.trust, mine.max_tx_rate = policy.spoof_check, policy.trust, policy.max_tx_rate
        mine.link_state = policy.link_state
        self.pools.set_port_vlan(n, old_vlan, mine.vlan, mine.qos)
        self.mailbox.vlans_changed(n)
        # What keeps a guest in its trunk is the check of what it sends.
        self.pools.set_spoof_check(n, mine.spoof_check, mine.spoof_check or bool(mine.trunk))
        if not mine.trust:
            self.mailbox.distrust(n)
            if self.addresses.distrust(n):
                self.mailbox.recall(n)
        self._limit(n, self._link_mbps())
        self.mailbox.settle(n)
        if mine.link_state is not old_state:
            self.mailbox.ping(n)

    def _change(self, n: int, **members: object) -> None:
        self.set_policies({n: replace(self._check(n), **members)})  # type: ignore[arg-type]

    def set_mac(self, n: int, mac: Mac) -> None:
        """Give VF `n` its address; 0 leaves it at what was offered. A running driver learns it at its next reset.

        A trusted guest that took the address for another VF loses it, and has to reset. Raises VirtfnError: EINVAL for
        a group address, EADDRINUSE for one that is the PF's, or another VF's by the host's own word.
        """
        self._change(n, mac=mac)
        if mac and self.addresses.of(n) != mac:
            self.addresses.take_back(n)

    def set_vlan(self, n: int, vlan: int, qos: int = 0) -> None:
        """Put VF `n` into a VLAN of the host's choice, invisible to the guest; 0 brings its own back.

        Raises VirtfnError for a VLAN above 4094 or a priority above 7.
        """
        self._change(n, vlan=vlan, qos=qos)

    def set_trunk(self, n: int, vlans: frozenset[int]) -> None:
        """Let the guest of VF `n` join these VLANs alone; none: any. Raises VirtfnError (EINVAL) for no such VLAN."""
        self._change(n, trunk=vlans)

    def set_spoof_check(self, n: int, on: bool) -> None:
        """Drop frames of VF `n` whose source address or VLAN is not its own, or let them pass."""
        self._change(n, spoof_check=on)

    def set_trust(self, n: int, on: bool) -> None:
        """Let VF `n` choose its address and become promiscuous, or not."""
        self._change(n, trust=on)

    def set_rate(self, n: int, mbps: int) -> None:
        """Limit what VF `n` sends, in Mb/s; 0 lifts the limit.

        Raises VirtfnError above the speed of the link.
        """
        self._change(n, max_tx_rate=mbps)

    def set_link_state(self, n: int, state: LinkState) -> None:
        """Let VF `n` see the link of the wire, or none: then nothing goes in or out, and its driver is told.

        Raises VirtfnError, errno EOPNOTSUPP, for a link that the wire has not.
        """
        self._change(n, link_state=state)

    def offer_mac(self, n: int, mac: Mac | None = None) -> None:
        """Offer VF `n` an address, which a trusted guest may change; without `mac`, any.

        A VF that has neither this nor a fixed one has no address: untrusted, it may send nothing, and hears only
        groups. Raises VirtfnError as `set_mac` does.
        """
        self._check(n)
        if mac is None:
            mac = Mac(secrets.randbits(48) & ~0xFF | 0x02)
        if mac & 1 or not mac:
            raise VirtfnError("that address cannot be a VF's", errno_name="EINVAL")
        self._recall(self.addresses.offer(n, mac))

    def _recall(self, vfs: list[int]) -> None:
        for n in vfs:
            self.mailbox.recall(n)

    def watch_claims(self, tell: Callable[[Claim], None]) -> None:
        """Have it told when a guest asks for an address that is another's; it is refused."""
        self.addresses.watch(tell)

    def claims(self, n: int) -> int:
        """Count how often the guest of VF `n` has asked so. Raises VirtfnError if there is no such VF."""
        self._check(n)
        return self.addresses.claims(n)

    # The switch.

    def switch_policy(self) -> SwitchPolicy:
        """Tell what is decided about the switch."""
        return self._switch

    def set_switch(self, policy: SwitchPolicy) -> None:
        """Decide about the switch: what is mirrored to whom, and how much may go to many.

        Raises VirtfnError: EOPNOTSUPP for more mirrors than the card has rules, EINVAL for what cannot be.
        """
        check_switch(policy, self.vfs, self._link_mbps())
        self._switch = policy
        self._write_switch()

    def _write_switch(self) -> None:
        self.switching.set(self._switch, self._link_mbps(), self.pools.entries)

    # Rates.

    def _limit(self, n: int, link: int) -> None:
        """Enforce the limit of VF `n` at this speed of the link; the register holds the ratio of the two."""
        self.pools.set_rate(n, min(self.restraint.rate(n, self.policies[n].max_tx_rate), link), link)

    def _link_mbps(self) -> int:
        return (10, 100, 1000, 1000)[STATUS(self._regs.get(Regs.STATUS)).SPEED]


def _check_policy(old: VfPolicy, policy: VfPolicy, link: int) -> None:
    """Refuse what cannot be, or what this card cannot do: VirtfnError."""
    if policy.mac & 1:
        raise VirtfnError("a group address cannot be a VF's", errno_name="EINVAL")
    if not 0 <= policy.vlan <= 4094 or not 0 <= policy.qos <= 7:
        raise VirtfnError(f"VLAN {policy.vlan} with priority {policy.qos} does not exist", errno_name="EINVAL")
    if policy.qos and not policy.vlan:
        raise VirtfnError("a priority is of the tag of a port VLAN, and there is none", errno_name="EINVAL")
    if not all(1 <= vid <= 4094 for vid in policy.trunk):
        raise VirtfnError("a trunk is of VLANs 1 to 4094", errno_name="EINVAL")
    if policy.trunk and policy.vlan:
        raise VirtfnError("a VF has a port VLAN or a trunk, not both", errno_name="EINVAL")
    if policy.max_tx_rate != old.max_tx_rate and not 0 <= policy.max_tx_rate <= link:
        raise VirtfnError(f"a rate of {policy.max_tx_rate} Mb/s is not within the link's {link}", errno_name="EINVAL")
    if policy.link_state is LinkState.ENABLE:
        raise VirtfnError(
            "link state enable: VFs of an 82576 see the link bit of the port itself (VTSTATUS)", errno_name="EOPNOTSUPP"
        )
