"""What a session can be asked about PFs and the policy of their VFs, in the words of `ip link`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from virtfn.api.link import LinkDocument, Stats64, VfInfoDocument, VlanDocument
from virtfn.api.machine import LabPf, Machine, card_mac
from virtfn.api.session.asking import Answering, Params, Request, known, number, text
from virtfn.api.session.policy import Clauses, refuse_whole, set_policies
from virtfn.drivers.policy import VfPolicy
from virtfn.hw.types import format_mac, format_rid
from virtfn.iovm.iovm import Vf
from virtfn.machine.netports import Tally
from virtfn.machine.ports import VirtfnError

__all__ = ["SetLinks", "ShowLinks"]

_SETTINGS_AT_ONCE = 64
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_MTU, _LEAST_MTU = 1500, 68
_RECEIVED = frozenset({"no-descriptor", "queue-disabled", "oversize", "page-absent", "dma-fault"})
"""Reasons for which a VF's drop is of a frame that came for it; the others are of frames that it sent."""
_LEFT = frozenset({"uplink-full", "no-uplink"})


@dataclass(frozen=True, slots=True)
class ShowLinks(Request[list[LinkDocument]]):
    """Describe PFs, or one of them, with the policy of their VFs."""

    method: ClassVar[str] = "link.show"
    pf: str | None = None

    @classmethod
    def from_params(cls, params: Params) -> ShowLinks:
        """Make it from JSON."""
        known(params, "pf")
        return cls(text(params, "pf") if "pf" in params else None)

    def answer(self, session: Answering) -> list[LinkDocument]:
        """Read."""
        machine = session.machine
        pfs = machine.pfs if self.pf is None else [machine.pf(self.pf)]
        return [_describe(machine, pf) for pf in pfs]


@dataclass(frozen=True, slots=True)
class SetLinks(Request[list[LinkDocument]]):
    """Change the policy of VFs of a PF: all that is asked for, or nothing. settings: clauses, by VF, in order."""

    method: ClassVar[str] = "link.set"
    pf: str
    settings: tuple[tuple[int, Clauses], ...]

    @classmethod
    def from_params(cls, params: Params) -> SetLinks:
        """Make it from JSON."""
        known(params, "pf", "settings")
        settings = params.get("settings")
        if not isinstance(settings, list) or not 1 <= len(settings) <= _SETTINGS_AT_ONCE:
            raise VirtfnError(f"settings is a list of 1 to {_SETTINGS_AT_ONCE}", errno_name="EINVAL")
        read = []
        for setting in settings:
            if not isinstance(setting, dict) or "vf" not in setting:
                raise VirtfnError("a setting is an object with vf, and clauses", errno_name="EINVAL")
            clauses = {name: value for name, value in setting.items() if name != "vf"}
            read.append((number(setting, "vf", 31), Clauses.of(clauses)))
        return cls(text(params, "pf"), tuple(read))

    def answer(self, session: Answering) -> list[LinkDocument]:
        """Change it, and return what is in force then."""
        machine = session.machine
        pf = machine.pf(self.pf)
        refuse_whole(pf)
        policies: dict[int, VfPolicy] = {}
        for n, clauses in self.settings:
            if n >= len(pf.vfs):
                raise VirtfnError(f"{pf.name} has no VF {n}: {len(pf.vfs)} are enabled", errno_name="EINVAL")
            policies[n] = clauses.applied_to(policies.get(n) or machine.policy(pf, pf.vfs[n]))
        set_policies(pf, policies)
        session.changed()
        return [_describe(machine, pf)]


def _describe(machine: Machine, pf: LabPf) -> LinkDocument:
    """Describe a PF of a machine that is up, with its VFs, their policy in force, and what the card has counted."""
    number = machine.pfs.index(pf)
    up = pf.driver.link_up
    document: LinkDocument = {
        "ifindex": number + 1,
        "ifname": pf.name,
        "flags": [*([] if up else ["NO-CARRIER"]), "BROADCAST", "MULTICAST", "UP", *(["LOWER_UP"] if up else [])],
        "mtu": _MTU,
        "qdisc": "noqueue",
        "operstate": "UP" if up else "DOWN",
        "linkmode": "DEFAULT",
        "group": "default",
        "link_type": "ether",
        "address": format_mac(card_mac(number)),
        "broadcast": _BROADCAST,
        "promiscuity": 0,
        "min_mtu": _LEAST_MTU,
        "max_mtu": pf.model.limits.mtu,
        "parentbus": "pci",
        "parentdev": format_rid(pf.nic.pf_rid),
        "stats64": _port_stats(pf),
    }
    if pf.vfs:
        vfs = zip(pf.vfs, pf.nic.tally(), strict=True)
        document["vfinfo_list"] = [_describe_vf(pf, vf, machine.policy(pf, vf), tally) for vf, tally in vfs]
    return document


def _port_stats(pf: LabPf) -> Stats64:
    moved, drops = pf.nic.moved(pf.nic.pf_rid), pf.nic.drops(None)
    sent = sum(drops.get(reason, 0) for reason in _LEFT)
    return {
        "rx": {
            "bytes": moved.rx_bytes,
            "packets": moved.rx_frames,
            "errors": 0,
            "dropped": sum(drops.values()) - sent,
            "over_errors": 0,
            "multicast": moved.rx_multicast,
        },
        "tx": {
            "bytes": moved.tx_bytes,
            "packets": moved.tx_frames,
            "errors": 0,
            "dropped": sent,
            "carrier_errors": 0,
            "collisions": 0,
        },
    }


def _describe_vf(pf: LabPf, vf: Vf, policy: VfPolicy, tally: Tally) -> VfInfoDocument:
    """Describe a VF. policy: that holds for it, or will for the guest that gets it."""
    moved, drops = tally.moved, tally.drops
    received = sum(drops.get(reason, 0) for reason in _RECEIVED)
    sent = sum(drops.values()) - received
    document: VfInfoDocument = {
        "vf": vf.index,
        "link_type": "ether",
        "address": format_mac(pf.driver.address(vf.index) or policy.mac),
        "broadcast": _BROADCAST,
        "vlan_list": [_vlan(policy)],
        "rate": {"max_tx": policy.max_tx_rate, "min_tx": 0},
        "spoofchk": policy.spoof_check,
        "link_state": policy.link_state.value,
        "trust": policy.trust,
        "query_rss_en": False,
        "stats": {
            "rx": {
                "bytes": moved.rx_bytes,
                "packets": moved.rx_frames,
                "multicast": moved.rx_multicast,
                "broadcast": moved.rx_broadcast,
                "dropped": received,
            },
            "tx": {"tx_bytes": moved.tx_bytes, "tx_packets": moved.tx_frames, "dropped": sent},
        },
    }
    if policy.max_tx_rate:
        document["tx_rate"] = policy.max_tx_rate
    return document


def _vlan(policy: VfPolicy) -> VlanDocument:
    if not policy.vlan:
        return {}
    return {"vlan": policy.vlan, "qos": policy.qos} if policy.qos else {"vlan": policy.vlan}
