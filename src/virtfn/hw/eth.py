"""Ethernet: lengths and types that more than one card knows.

Kernels load and store words as they lie in memory, little-endian; an ether type lies there the other way round.
Spec: IEEE 802.3, IEEE 802.1Q.
"""

from __future__ import annotations

__all__ = [
    "ARP",
    "ARP_LOADED",
    "BROADCAST",
    "FCS_BYTES",
    "HEADER_BYTES",
    "IPV4",
    "IPV4_LOADED",
    "IPV6",
    "IPV6_LOADED",
    "LOCAL_EXPERIMENT",
    "LOCAL_EXPERIMENT_LOADED",
    "MIN_FRAME",
    "VLAN",
    "VLAN_BYTES",
    "VLAN_LOADED",
    "as_loaded",
]

HEADER_BYTES = 14
VLAN_BYTES = 4
FCS_BYTES = 4
BROADCAST = (1 << 48) - 1  # an address
MIN_FRAME = 60  # without the frame check sequence

IPV4 = 0x0800
ARP = 0x0806
VLAN = 0x8100
IPV6 = 0x86DD
LOCAL_EXPERIMENT = 0x88B5


def as_loaded(ethertype: int) -> int:
    """Return what a 16-bit load finds where `ethertype` lies in a frame."""
    return ethertype >> 8 | (ethertype & 0xFF) << 8


IPV4_LOADED = as_loaded(IPV4)
ARP_LOADED = as_loaded(ARP)
VLAN_LOADED = as_loaded(VLAN)
IPV6_LOADED = as_loaded(IPV6)
LOCAL_EXPERIMENT_LOADED = as_loaded(LOCAL_EXPERIMENT)
