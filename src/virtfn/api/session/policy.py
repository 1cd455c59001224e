"""Policy of VFs on a lab that is up: all of a call holds when it returns, or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from virtfn.api.machine import LabPf
from virtfn.drivers.policy import LinkState, VfPolicy
from virtfn.hw.types import Mac, parse_mac
from virtfn.machine.ports import VirtfnError

__all__ = ["Clauses", "refuse_whole", "set_policies"]

_PROTOCOLS = ("802.1Q", "802.1ad")


@dataclass(frozen=True, slots=True)
class Clauses:
    """What `ip link set PF vf N` says of a VF, by its words; None: nothing. Rates in Mb/s."""

    mac: str | None = None
    vlan: int | None = None
    qos: int | None = None
    proto: str | None = None
    max_tx_rate: int | None = None
    min_tx_rate: int | None = None
    spoofchk: bool | None = None
    trust: bool | None = None
    state: str | None = None
    query_rss: bool | None = None

    @classmethod
    def of(cls, words: Mapping[str, object]) -> Clauses:
        """Read them from JSON. Raises VirtfnError (EINVAL) for what is none."""
        kinds = {field.name: str(field.type).split()[0] for field in fields(cls)}
        for name, value in words.items():
            if name not in kinds:
                raise VirtfnError(f"no such clause: {name[:64]}; there are {', '.join(kinds)}", errno_name="EINVAL")
            if type(value).__name__ != kinds[name]:
                words_of = {"str": "text", "int": "a number", "bool": "true or false"}
                raise VirtfnError(f"{name} is {words_of[kinds[name]]}", errno_name="EINVAL")
        return cls(**words)  # type: ignore[arg-type]  # checked above

    def applied_to(self, policy: VfPolicy) -> VfPolicy:
        """Return a policy, changed as they say.

        Raises VirtfnError: EINVAL for what is nothing, EPROTONOSUPPORT and EOPNOTSUPP for what the card cannot do.
        """
        self._refuse()
        if self.mac is not None:
            policy = replace(policy, mac=_mac(self.mac))
        if self.vlan is not None:
            policy = replace(policy, vlan=self.vlan, qos=self.qos or 0)
        if self.max_tx_rate is not None:
            policy = replace(policy, max_tx_rate=self.max_tx_rate)
        if self.spoofchk is not None:
            policy = replace(policy, spoof_check=self.spoofchk)
        if self.trust is not None:
            policy = replace(policy, trust=self.trust)
        if self.state is not None:
            policy = replace(policy, link_state=_state(self.state))
        return policy

    def _refuse(self) -> None:
        if self.vlan is None and (self.qos is not None or self.proto is not None):
            raise VirtfnError("qos and proto are of a VLAN, and there is none", errno_name="EINVAL")
        if self.proto is not None and self.proto not in _PROTOCOLS:
            raise VirtfnError(f"proto is {' or '.join(_PROTOCOLS)}", errno_name="EINVAL")
        if self.proto == "802.1ad":
            raise VirtfnError("proto 802.1ad: the 82576 inserts 802.1Q tags alone", errno_name="EPROTONOSUPPORT")
        if self.min_tx_rate:
            words = "min_tx_rate: the 82576 limits what VFs send, and guarantees nothing"
            raise VirtfnError(words, errno_name="EOPNOTSUPP")
        if self.query_rss:
            words = "query_rss: the mailbox of the 82576 has no message for it, and all VFs share a table and a key"
            raise VirtfnError(words, errno_name="EOPNOTSUPP")


def _mac(text: str) -> Mac:
    try:
        return parse_mac(text)
    except ValueError as error:
        raise VirtfnError(str(error), errno_name="EINVAL") from None


def _state(text: str) -> LinkState:
    try:
        return LinkState(text)
    except ValueError:
        raise VirtfnError(f"state is {', '.join(state.value for state in LinkState)}", errno_name="EINVAL") from None


def refuse_whole(pf: LabPf) -> None:
    """Refuse a PF that a guest has, whole, as a host or not: VirtfnError (EBUSY)."""
    if not pf.driven:
        raise VirtfnError(f"{pf.name} is a guest's, whole: its driver is there", errno_name="EBUSY")


def set_policies(pf: LabPf, policies: Mapping[int, VfPolicy]) -> None:
    """Enforce policies, by VF: all of them, or none. They hold for guests that get these VFs later, too.

    Raises VirtfnError: EBUSY for a PF that a guest has, whole, as a host or not; as the PF's driver refuses them.
    """
    refuse_whole(pf)
    pf.driver.set_policies(policies)
    pf.policies.update(policies)
