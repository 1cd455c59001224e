"""`virtfn link`: PFs and the policy of their VFs, as documents with the keys of `ip -j -d -s link show`.

The TypedDicts are the JSON documents, key for key; keys never change meaning. Where `ip` leaves a key out, so do they.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict, cast

from virtfn.api.control import ask

__all__ = [
    "LinkDocument",
    "PolicyDocument",
    "Stats64",
    "VfInfoDocument",
    "VfStats",
    "VlanDocument",
    "ask_set",
    "ask_show",
]


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


class PolicyDocument(TypedDict):
    """What of a VF is policy. link_state, trust: not of a PF that a guest drives; no register says them."""

    address: str
    vlan_list: list[VlanDocument]
    tx_rate: NotRequired[int]
    rate: RateDocument
    spoofchk: bool
    link_state: NotRequired[str]
    trust: NotRequired[bool]


class VfInfoDocument(PolicyDocument):
    """One VF, as an entry of `vfinfo_list`."""

    vf: int
    link_type: str
    broadcast: str
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
    vfinfo_list: NotRequired[list[VfInfoDocument]]


def ask_show(lab: str | None, pf: str | None) -> list[LinkDocument]:
    """Ask a lab that runs for its PFs, or one of them. Raises VirtfnError if it cannot be asked, or refuses."""
    return cast("list[LinkDocument]", ask("link.show", {} if pf is None else {"pf": pf}, lab))


def ask_set(lab: str | None, pf: str, settings: Sequence[Mapping[str, object]]) -> list[LinkDocument]:
    """Ask a lab that runs to change the policy of VFs, each setting `vf` and its clauses; return the PF as it is then.

    Raises VirtfnError if it cannot be asked, or refuses; then nothing is changed.
    """
    return cast("list[LinkDocument]", ask("link.set", {"pf": pf, "settings": list(settings)}, lab))
