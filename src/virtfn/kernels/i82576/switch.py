"""Layer-2 sorting: which pools get a frame, and whether the wire does.

    destination   pools
    any           none, if its VLAN does not pass VFTA
    exact         those of the receive address registers (RAR) that hold it
    unicast       else, if the unicast table has its hash, those that accept hashed unicast (VMOLR.ROPE)
    multicast     else, if the multicast table has its hash, those with ROMPE; and always those with MPME
    broadcast     those with BAM
    then          only members of its VLAN, or takers of untagged frames (AUPE); the default pool if nobody is left

The cost of a look-up does not depend on the number of pools: sets of pools are bitmaps, addresses are hashed.
Spec: 82576 datasheet, chapter "Virtualization", sections on receive and transmit packet switching.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import BROADCAST
from virtfn.kernels._jit import Row, apart, kernel, part
from virtfn.kernels.i82576.state import (
    DROP_ECHO,
    DROP_MAC_SPOOF,
    DROP_NO_MATCH,
    DROP_RX_DISABLED,
    DROP_VLAN_FILTER,
    DROP_VLAN_MEMBERSHIP,
    DROP_VLAN_SPOOF,
    MAC_SLOTS,
    NIC,
)

__all__ = [
    "MAC",
    "find_pools",
    "mac_slot",
    "mirror_pools",
    "select_pools",
    "switch_receive",
    "switch_transmit",
    "why_spoofed",
]

MAC = BROADCAST
IN_VFTA = 1 << 8
LOCAL_VLAN = 1 << 10

_HASH = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio, as a signed 64-bit number


@kernel
def mac_slot(mac: int) -> int:
    """First slot of the address table to look at."""
    return (mac * _HASH) >> 40 & (MAC_SLOTS - 1)


@kernel
def find_pools(macs: npt.NDArray[np.int64], mac: int) -> int:
    """Bitmap of the pools whose address registers hold `mac`; 0 if none does."""
    slot = mac_slot(mac)
    for _ in range(MAC_SLOTS):
        key = macs[slot, 0]
        if key == mac:
            return macs[slot, 1]
        if key == -1:
            return 0
        slot = slot + 1 & (MAC_SLOTS - 1)
    return 0


@part
def why_spoofed(nic: Row, pool: int, source: int, vid: int) -> int:
    """Tell why `pool` may not send from an address in a VLAN (-1: untagged), as a drop reason; -1: it may.

    Both must be the pool's own where DTXSWC says so.
    """
    p = nic.port
    if p.mac_spoof_pools >> pool & 1 and not find_pools(nic.macs, source) >> pool & 1:
        return DROP_MAC_SPOOF
    if p.vlan_spoof_pools >> pool & 1 and vid >= 0 and not nic.vlans[vid] >> pool & 1:
        return DROP_VLAN_SPOOF
    return -1


@kernel
def in_hash_table(table: npt.NDArray[np.uint32], mac: int, shift: int) -> bool:
    """Tell whether a 4096-bit table has the hash of `mac`: 12 bits of its last two bytes."""
    bits = mac >> shift & 0xFFF
    return (np.int64(table[bits >> 5]) >> (bits & 31)) & 1 != 0


@kernel
def select_pools(nic: Row, mac: int, vid: int) -> tuple[int, int]:
    """Pools addressed by `mac` in VLAN `vid` (-1: untagged), before the default pool.

    VLANs matter only where RCTL.VFE asks for it. Returns (bitmap, why it is empty).
    """
    p = nic.port
    if p.vfe and vid >= 0 and not nic.vlans[vid] & IN_VFTA:
        return 0, DROP_VLAN_FILTER
    pools = find_pools(nic.macs, mac)
    if mac & 1:
        if mac == BROADCAST:
            pools |= p.bam_pools
        else:
            if pools == 0 and in_hash_table(nic.multicast, mac, p.multicast_shift):
                pools = p.rompe_pools
            pools |= p.mpme_pools
    elif pools == 0 and p.rope_pools and in_hash_table(nic.unicast, mac, p.multicast_shift):
        pools = p.rope_pools
    if p.ign_mac:
        pools = 0xFF
    if pools == 0:
        return 0, DROP_NO_MATCH
    if p.vfe:
        pools &= p.aupe_pools if vid < 0 else nic.vlans[vid] & 0xFF
    return pools, DROP_VLAN_MEMBERSHIP


@kernel
def first_pool(nic: Row, pools: int) -> int:
    """Without replication a frame goes to one pool only, the first."""
    if nic.port.replicate:
        return pools
    return pools & -pools


@apart(NIC, int, int, int, int, gives=1)
def mirror_pools(nic: Row, pools: int, source: int, wire: bool, vid: int) -> int:
    """Add the destination pools of the mirror rules that apply. source: sending pool, or -1 for the wire."""
    added = 0
    for i in range(4):
        kinds = nic.mirrors[i, 0]
        hit = False
        if kinds & 1 and pools & nic.mirrors[i, 3]:
            hit = True
        if kinds & 2 and source < 0:
            hit = True
        if kinds & 4 and wire:
            hit = True
        if kinds & 8 and vid >= 0 and nic.vlans[vid] >> 16 & nic.mirrors[i, 2]:
            hit = True
        if hit:
            added |= nic.mirrors[i, 1]
    return pools | added


@kernel
def switch_receive(nic: Row, mac: int, vid: int) -> tuple[int, int]:
    """Pools for a frame from the wire; (bitmap, why it is empty)."""
    p = nic.port
    if not p.rx_enable:
        return 0, DROP_RX_DISABLED
    if p.vmdq == 0:
        return accept_frame(nic, mac, vid)
    pools, why = select_pools(nic, mac, vid)
    if why == DROP_VLAN_FILTER:
        return 0, why
    if pools == 0 and not mac & 1 and p.default_pool >= 0:
        pools = 1 << p.default_pool
    pools = first_pool(nic, pools)
    if p.mirror:
        pools = mirror_pools(nic, pools, -1, False, vid)
    if pools == 0:
        return 0, why
    return pools & p.rx_pools, DROP_RX_DISABLED


@kernel
def accept_frame(nic: Row, mac: int, vid: int) -> tuple[int, int]:
    """Filter without pools: everything accepted goes to pool 0."""
    p = nic.port
    known = find_pools(nic.macs, mac) != 0
    if mac & 1:
        known = known or p.mpe != 0 or in_hash_table(nic.multicast, mac, p.multicast_shift)
        known = known or (p.bam != 0 and mac == BROADCAST)
    else:
        known = known or p.upe != 0 or in_hash_table(nic.unicast, mac, p.multicast_shift)
    if not known:
        return 0, DROP_NO_MATCH
    if vid >= 0 and p.vfe and not nic.vlans[vid] & IN_VFTA:
        return 0, DROP_VLAN_FILTER
    return 1, 0


@kernel
def switch_transmit(nic: Row, source: int, mac: int, vid: int) -> tuple[int, bool, int]:
    """Where a frame of pool `source` goes: (local pools, to the wire, why nowhere).

    A unicast frame stays inside if a pool has its very address; group frames, and frames that only promiscuous pools
    take, go both ways; no frame returns to its sender unless DTXSWC.LLE says so; a frame of a local VLAN never leaves.
    """
    p = nic.port
    if p.vmdq == 0:
        return 0, True, 0
    local = vid >= 0 and nic.vlans[vid] & LOCAL_VLAN != 0
    if not p.loopback:
        return 0, not local, DROP_VLAN_MEMBERSHIP if local else 0
    pools, why = select_pools(nic, mac, vid)
    wire = mac & 1 != 0 or pools == 0
    if p.rope_pools | p.ign_mac and not wire:
        wire = find_pools(nic.macs, mac) & pools == 0
    if local:
        wire = False
    others = -1 if p.lle_pools >> source & 1 else ~(1 << source)
    if pools and pools & others == 0:
        why = DROP_ECHO
    pools = first_pool(nic, pools & others)
    if p.mirror:
        pools = mirror_pools(nic, pools, source, wire, vid) & others
    if pools and not p.rx_enable:
        pools = 0
        why = DROP_RX_DISABLED
    if pools:
        pools &= p.rx_pools
        why = DROP_RX_DISABLED
    return pools, wire, why
