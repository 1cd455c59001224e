"""`virtfn link`: PFs and the policy of their VFs, as documents with the keys of `ip -j -d -s link show`.

The TypedDicts are the JSON documents, key for key; keys never change meaning. Where `ip` leaves a key out, so do they.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict, cast

from virtfn.api.control import ask
from virtfn.api.machine import LabPf, Machine, card_mac
from virtfn.drivers.policy import VfPolicy
from virtfn.hw.types import format_mac, format_rid
from virtfn.iovm.iovm import Vf

__all__ = ["LinkDocument", "Stats64", "VfDocument", "VfStats", "ask_set", "ask_show", "describe"]

_BROADCAST = "ff:ff:ff:ff:ff:ff"
_MTU, _LEAST_MTU = 1500, 68
_RECEIVED = frozenset({"no-descriptor", "queue-disabled", "oversize", "page-absent", "dma-fault"})
"""Reasons for which a VF's drop is of a frame that came for it; the others are of frames that it sent."""
_LEFT = frozenset({"uplink-full", "no-uplink"})


class RxStats(TypedDict):
    """What a port received from its wire."""

    bytes: int
    packets: int
    errors: int
    dropped: int
    over_errors: int
    multicast: int


class TxStats(TypedDict):
    """What a port sent to its wire."""

    bytes: int
    packets: int
    errors: int
    dropped: int
    carrier_errors: int
    collisions: int


class Stats64(TypedDict):
    """Statistics of a port."""

    rx: RxStats
    tx: TxStats


class VfRxStats(TypedDict):
    """What a VF received. dropped: on the way into its ring."""

    bytes: int
    packets: int
    multicast: int
    broadcast: int
    dropped: int


class VfTxStats(TypedDict):
    """What a VF sent. dropped: by the checks of the card, or by nobody's wanting it."""

    tx_bytes: int
    tx_packets: int
    dropped: int


class VfStats(TypedDict):
    """Statistics of a VF."""

    rx: VfRxStats
    tx: VfTxStats


class VlanDocument(TypedDict):
    """A port VLAN; empty if there is none."""

    vlan: NotRequired[int]
    qos: NotRequired[int]


class RateDocument(TypedDict):
    """Limits in Mb/s; 0: none."""

    max_tx: int
    min_tx: int


class VfDocument(TypedDict):
    """One VF, as an entry of `vfinfo_list`."""

    vf: int
    link_type: str
    address: str
    broadcast: str
    vlan_list: list[VlanDocument]
    tx_rate: NotRequired[int]
    rate: RateDocument
    spoofchk: bool
    link_state: str
    trust: bool
    query_rss_en: bool
    stats: VfStats


class LinkDocument(TypedDict):
    """One PF, as an entry of `ip -j -d -s link show`."""

    ifindex: int
    ifname: str
    flags: list[str]
    mtu: int
    qdisc: str
    operstate: str
    linkmode: str
    group: str
    link_type: str
    address: str
    broadcast: str
    promiscuity: int
    min_mtu: int
    max_mtu: int
    parentbus: str
    parentdev: str
    stats64: Stats64
    vfinfo_list: NotRequired[list[VfDocument]]


def describe(machine: Machine, pf: LabPf) -> LinkDocument:
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
        document["vfinfo_list"] = [_describe_vf(pf, vf) for vf in pf.vfs]
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


def _describe_vf(pf: LabPf, vf: Vf) -> VfDocument:
    policy, moved = pf.driver.policy(vf.index), pf.nic.moved(vf.rid)
    drops = pf.nic.drops(vf.index)
    received = sum(drops.get(reason, 0) for reason in _RECEIVED)
    sent = sum(drops.values()) - received
    document: VfDocument = {
        "vf": vf.index,
        "link_type": "ether",
        "address": format_mac(pf.driver.address(vf.index)),
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


# Asking a lab that is up.


def ask_show(lab: str | None, pf: str | None) -> list[LinkDocument]:
    """Ask a lab that runs for its PFs, or one of them. Raises VirtfnError if it cannot be asked, or refuses."""
    return cast("list[LinkDocument]", ask("link.show", {} if pf is None else {"pf": pf}, lab))


def ask_set(lab: str | None, pf: str, settings: Sequence[Mapping[str, object]]) -> list[LinkDocument]:
    """Ask a lab that runs to change the policy of VFs, each setting `vf` and its clauses; return the PF as it is then.

    Raises VirtfnError if it cannot be asked, or refuses; then nothing is changed.
    """
    return cast("list[LinkDocument]", ask("link.set", {"pf": pf, "settings": list(settings)}, lab))
