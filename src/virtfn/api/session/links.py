"""What a session can be asked about PFs and the policy of their VFs, in the words of `ip link`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from virtfn.api.link import LinkDocument, PolicyDocument, Stats64, VfInfoDocument, VlanDocument
from virtfn.api.machine import LabPf, Machine, card_mac
from virtfn.api.session.asking import Answering, Params, Request, known, number, text
from virtfn.api.session.policy import Clauses, refuse_whole, set_policies
from virtfn.drivers.policy import VfPolicy
from virtfn.hw.types import Mac, format_mac, format_rid
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
    """Describe a PF of a machine that is up, with its VFs, their policy in force, and what the card has counted.

    Of a PF whose driver is a guest's, registers say it, and what they do not say is left out.
    """
    number = machine.pfs.index(pf)
    up = pf.driver.link_up if pf.driven else pf.nic.link_up
    mac = card_mac(number) if pf.driven else pf.nic.in_force(None).mac
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
        "address": format_mac(mac),
        "broadcast": _BROADCAST,
        "promiscuity": 0,
        "min_mtu": _LEAST_MTU,
        "max_mtu": pf.model.limits.mtu,
        "parentbus": "pci",
        "parentdev": format_rid(pf.nic.pf_rid),
        "stats64": _port_stats(pf),
    }
    if vfs := pf.functions():
        tallies = zip(vfs, pf.nic.tally(), strict=True)
        document["vfinfo_list"] = [_describe_vf(machine, pf, n, tally) for (n, _), tally in tallies]
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


def _describe_vf(machine: Machine, pf: LabPf, n: int, tally: Tally) -> VfInfoDocument:
    policy, moved, drops = _policy(machine, pf, n), tally.moved, tally.drops
    received = sum(drops.get(reason, 0) for reason in _RECEIVED)
    sent = sum(drops.values()) - received
    return {
        "vf": n,
        "link_type": "ether",
        "address": policy["address"],
        "broadcast": _BROADCAST,
        **policy,
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


def _policy(machine: Machine, pf: LabPf, n: int) -> PolicyDocument:
    """Describe the policy that holds, or will for the guest that gets the VF; of a guest's PF, what registers say."""
    if not pf.driven:
        said = pf.nic.in_force(n)
        return _in_words(said.mac, said.vlan, said.qos, said.max_tx_rate, said.spoof_check)
    policy = machine.policy(pf, pf.vfs[n])
    mac = pf.driver.address(n) or policy.mac
    document = _in_words(mac, policy.vlan, policy.qos, policy.max_tx_rate, policy.spoof_check)
    document["link_state"], document["trust"] = policy.link_state.value, policy.trust
    return document


def _in_words(mac: Mac, vlan: int, qos: int, max_tx_rate: int, spoof_check: bool) -> PolicyDocument:
    document: PolicyDocument = {
        "address": format_mac(mac),
        "vlan_list": [_vlan(vlan, qos)],
        "rate": {"max_tx": max_tx_rate, "min_tx": 0},
        "spoofchk": spoof_check,
    }
    if max_tx_rate:
        document["tx_rate"] = max_tx_rate
    return document


def _vlan(vlan: int, qos: int) -> VlanDocument:
    if not vlan:
        return {}
    return {"vlan": vlan, "qos": qos} if qos else {"vlan": vlan}
