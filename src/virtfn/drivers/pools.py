"""The PF driver's hand on pools: addresses, VLANs, group filters, switching, rates. One method a decision.

receive address    0 the PF   1..15 further addresses of VFs, one kept for each that has none   23 - n VF n
VLVF entry         found by VLAN, taken when the first pool joins, free when the last leaves
                   of 32: one for VLAN 0, one for the port VLAN of each VF, one for the first VLAN of each guest
VLAN of a guest    0, which is none, from its RESET on; those that it joins; none of these while it has a port VLAN, and
                   all of them again after it. A tag reaches the guest whole, but the port VLAN's, which is stripped

What is shared is kept so that no guest can take it all: the host's port VLANs always find an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtfn.drivers.window import Window
from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.fields import VlanInsert
from virtfn.hw.i82576.rxtx import DTXSWC, RAH, RPLOLR, RTTBCNRC, VLVF, VMOLR, VMVIR
from virtfn.hw.types import Mac

__all__ = ["EXTRA_ADDRESSES", "Pools"]

EXTRA_ADDRESSES = 3  # further addresses of one VF
_PRIMARY, _EXTRA = 23, range(1, 16)
_STANDARD_FRAME = 1522


@dataclass(slots=True)
class _Groups:
    """The groups that a pool wants: by hash, more than fit into a message, or all for a promiscuous driver."""

    hashes: frozenset[int] = frozenset()
    overflow: bool = False
    promiscuous: bool = False


class Pools:
    """Filters and switching of a port, as its PF driver sets them. on_entries: is told of changed VLVF entries."""

    def __init__(self, regs: Window, on_entries: Callable[[Sequence[VLVF]], None]) -> None:
        self._regs = regs
        self._on_entries = on_entries
        self._vfs = 0
        self._extra: dict[int, tuple[int, Mac]] = {}
        self._vlans: list[dict[int, None]] = []  # of each VF's guest, in the order in which it joined them
        self._in_port_vlan: set[int] = set()
        self._entries: list[VLVF] = []  # as written: a read of all of them takes longer than all that needs them
        self._groups: dict[int, _Groups] = {}
        self._mta: list[int] = []

    def start(self, vfs: int) -> None:
        """Switch forwarding between pools on and clear every filter."""
        regs = self._regs
        self._vfs = vfs
        self._extra.clear()
        self._vlans = [{} for _ in range(vfs)]
        self._in_port_vlan.clear()
        self._groups = {n: _Groups() for n in range(vfs)}
        self._mta = [0] * Regs.MTA.count
        self._entries = [VLVF(0)] * Regs.VLVF.count
        for decl in (Regs.MTA, Regs.UTA, Regs.VFTA, Regs.VLVF, Regs.VMVIR):
            for i in range(decl.count):
                regs.set(decl, 0, i)
        # Hashes of unicast frames all hit: who may be promiscuous is decided pool by pool (VMOLR.ROPE).
        for i in range(Regs.UTA.count):
            regs.set(Regs.UTA, 0xFFFFFFFF, i)
        for entry in range(1, 24):
            self._address(entry, Mac(0), 0)
        # Receive address 0 is the PF's own, in a pool that no VF has.
        rah = RAH(regs.get(Regs.RAH, 0))
        regs.set(Regs.RAH, rah.replace(POOLSEL=1 << vfs & 0xFF, AV=int(vfs < 8)).value, 0)
        for n in range(8):
            regs.set(Regs.VMOLR, self._vmolr(port_vlan=False), n)
        regs.set(Regs.RPLOLR, RPLOLR.of(RSV31=1).value)
        own = (1 << vfs) - 1
        regs.set(Regs.DTXSWC, DTXSWC.of(MACAS=own, VLANAS=own, LOOPBACK_EN=1).value)
        # VLAN 0 is priority tagging: every filter lets it through, pools join it like any other.
        regs.set(Regs.VFTA, 1, 0)

    @staticmethod
    def _vmolr(*, port_vlan: bool) -> int:
        """Say what a pool accepts at first. Stripped are only tags of port VLANs: a guest's may hold priorities."""
        return VMOLR.of(
            RLPML=_STANDARD_FRAME, LPE=1, AUPE=int(not port_vlan), BAM=1, STRVLAN=int(port_vlan), RSV31=1
        ).value

    def _address(self, entry: int, mac: Mac, pools: int) -> None:
        low, high = (Regs.RAL, Regs.RAH) if entry < 16 else (Regs.RALX, Regs.RAHX)
        self._regs.set(high, 0, entry % 16)
        self._regs.set(low, mac & 0xFFFFFFFF, entry % 16)
        if pools:
            self._regs.set(high, RAH.of(RAH=mac >> 32, POOLSEL=pools, AV=1).value, entry % 16)

    def _update(self, decl: Decl, n: int, **fields: int) -> None:
        self._regs.update(decl, n, **fields)

    def enable(self, n: int, on: bool) -> None:
        """Let pool `n` receive and transmit, or not."""
        for decl in (Regs.VFRE, Regs.VFTE):
            value = self._regs.get(decl)
            self._regs.set(decl, value | 1 << n if on else value & ~(1 << n))

    def open_own(self, n: int, max_frame: int, *, everything: bool) -> None:
        """Let pool `n`, the PF's, receive and transmit, unchecked, without tags. everything: frames to any address."""
        any_address = int(everything)
        vmolr = VMOLR.of(RLPML=max_frame, LPE=1, AUPE=1, BAM=1, ROPE=any_address, MPME=any_address, RSV31=1)
        self._regs.set(Regs.VMOLR, vmolr.value, n)
        self.enable(n, True)

    def set_address(self, n: int, mac: Mac) -> None:
        """Make `mac` the address of pool `n`."""
        self._address(_PRIMARY - n, mac, 1 << n)

    def add_address(self, n: int, mac: Mac) -> bool:
        """Lead a further address to pool `n`; False if it has all it may have, or no entry is free for it."""
        if (n, mac) in self._extra.values():
            return True
        had = [sum(owner == m for owner, _ in self._extra.values()) for m in range(self._vfs)]
        kept = sum(not count for m, count in enumerate(had) if m != n)
        free = [entry for entry in _EXTRA if entry not in self._extra]
        if had[n] >= EXTRA_ADDRESSES or len(free) <= kept:
            return False
        self._extra[free[0]] = n, mac
        self._address(free[0], mac, 1 << n)
        return True

    def further_owners(self, mac: Mac) -> set[int]:
        """Find the pools that have `mac` as a further address."""
        return {owner for owner, further in self._extra.values() if further == mac}

    def clear_addresses(self, n: int, mac: Mac | None = None) -> None:
        """Take the further addresses of pool `n` away, or one."""
        for entry in [e for e, (owner, it) in self._extra.items() if owner == n and mac in (None, it)]:
            del self._extra[entry]
            self._address(entry, Mac(0), 0)

    def set_multicast(self, n: int, hashes: list[int], overflow: bool) -> None:
        """Let pool `n` have the groups with these hashes, or every group if there are more than that."""
        groups = self._groups[n]
        groups.hashes, groups.overflow = frozenset(hashes), overflow
        self._write_groups(n)

    def set_promiscuous(self, n: int, unicast: bool, multicast: bool) -> None:
        """Let pool `n` have unicast frames that no address claims, and every group."""
        self._update(Regs.VMOLR, n, ROPE=int(unicast))
        self._groups[n].promiscuous = multicast
        self._write_groups(n)

    def end_promiscuity(self, n: int) -> None:
        """Give pool `n` only frames to its own addresses, and to its groups."""
        self._groups[n].overflow = False
        self.set_promiscuous(n, False, False)

    def _write_groups(self, n: int) -> None:
        """Write the groups of pool `n`, and the words of the table shared by all that differ now."""
        groups = self._groups[n]
        table = [0] * Regs.MTA.count
        for owner in self._groups.values():
            for number in owner.hashes:
                table[number >> 5] |= 1 << (number & 31)
        for i, word in enumerate(table):
            if word != self._mta[i]:
                self._regs.set(Regs.MTA, word, i)
        self._mta = table
        everything = groups.overflow or groups.promiscuous
        self._update(Regs.VMOLR, n, ROMPE=int(bool(groups.hashes)), MPME=int(everything))

    def set_max_frame(self, n: int, size: int) -> None:
        """Set the longest frame of pool `n`, in bytes with the frame check sequence."""
        self._update(Regs.VMOLR, n, RLPML=size, LPE=1)

    def set_spoof_check(self, n: int, addresses: bool, vlans: bool) -> None:
        """Check the source address, and the VLAN, of what pool `n` sends."""
        dtxswc = DTXSWC(self._regs.get(Regs.DTXSWC))
        others = ~(1 << n)
        value = dtxswc.replace(MACAS=dtxswc.MACAS & others | addresses << n, VLANAS=dtxswc.VLANAS & others | vlans << n)
        self._regs.set(Regs.DTXSWC, value.value)

    def set_rate(self, n: int, mbps: int, link: int) -> None:
        """Limit what pool `n` sends; 0 lifts the limit."""
        factor = link * (1 << 14) // mbps if mbps else 0
        self._regs.set(Regs.RTTDQSEL, n)
        self._regs.set(
            Regs.RTTBCNRC, RTTBCNRC.of(RS_ENA=int(mbps > 0), RF_INT=factor >> 14, RF_DEC=factor & 0x3FFF).value
        )

    def admit(self, n: int, vid: int) -> bool:
        """Make pool `n` a member of a VLAN, as its guest asks; False if that is more than its share.

        The first VLAN of each guest, and each port VLAN, always finds an entry: what guests are in besides fits into
        what is left, whoever joins and leaves it in whatever order.
        """
        own = self._vlans[n]
        if vid and own and vid not in own:
            further = {vid}.union(*(list(vlans)[1:] for vlans in self._vlans))
            if len(further) > Regs.VLVF.count - 1 - 2 * self._vfs:
                return False
        if vid:
            own[vid] = None
        self._join(n, vid)
        return True

    def keep_to(self, n: int, vlans: frozenset[int]) -> list[int]:
        """End pool `n`'s memberships of VLANs beyond these, as far as its guest asked for them; return those."""
        beyond = [vid for vid in self._vlans[n] if vid not in vlans]
        for vid in beyond:
            self.leave_vlan(n, vid)
        return beyond

    def _join(self, n: int, vid: int) -> None:
        entry = self._entry(vid)
        if entry is None:
            entry = next(i for i, vlan in enumerate(self._entries) if not vlan.VI_EN)
        self._write(entry, VLVF.of(VID=vid, POOLSEL=self._entries[entry].POOLSEL | 1 << n, VI_EN=1))
        self._filter(vid, True)

    def leave_vlan(self, n: int, vid: int) -> None:
        """End pool `n`'s membership of a VLAN, as its guest asks. Nobody leaves VLAN 0: it is none."""
        self._vlans[n].pop(vid, None)
        if vid and n not in self._in_port_vlan:
            self._leave(n, vid)

    def _leave(self, n: int, vid: int) -> None:
        entry = self._entry(vid)
        if entry is None:
            return
        left = self._entries[entry].POOLSEL & ~(1 << n)
        self._write(entry, self._entries[entry].replace(POOLSEL=left) if left else VLVF(0))
        if not left and vid:
            self._filter(vid, False)

    def _entry(self, vid: int) -> int | None:
        return next((i for i, vlan in enumerate(self._entries) if vlan.VI_EN and vid == vlan.VID), None)

    def _write(self, entry: int, vlan: VLVF) -> None:
        self._entries[entry] = vlan
        self._regs.set(Regs.VLVF, vlan.value, entry)
        self._on_entries(self._entries)

    @property
    def entries(self) -> Sequence[VLVF]:
        """VLVF, as it was written."""
        return self._entries

    def _filter(self, vid: int, on: bool) -> None:
        word = self._regs.get(Regs.VFTA, vid >> 5)
        bit = 1 << (vid & 31)
        self._regs.set(Regs.VFTA, word | bit if on else word & ~bit, vid >> 5)

    def set_port_vlan(self, n: int, old: int, vlan: int, qos: int) -> None:
        """Insert a VLAN into all that pool `n` sends, and give it only frames of that VLAN, without the tag.

        VLAN 0 ends that, and the guest is again in the VLANs that it had joined before.
        """
        if old and old != vlan:
            self._leave(n, old)
        self._strip(n, bool(vlan))
        self._update(Regs.VMOLR, n, AUPE=int(not vlan), STRVLAN=int(bool(vlan)))
        if not vlan:
            self._regs.set(Regs.VMVIR, 0, n)
            for vid in (0, *self._vlans[n]) if old else ():
                self._join(n, vid)
            return
        self._leave_vlans(n, vlan)
        self._join(n, vlan)
        self._regs.set(Regs.VMVIR, VMVIR.of(PORT_VLAN=vlan | qos << 13, VLANA=VlanInsert.ALWAYS).value, n)

    def _strip(self, n: int, port_vlan: bool) -> None:
        """Have tags of frames for several pools stripped, which is one setting for all, while any has a port VLAN."""
        had = bool(self._in_port_vlan)
        (self._in_port_vlan.add if port_vlan else self._in_port_vlan.discard)(n)
        if had != bool(self._in_port_vlan):
            self._regs.set(Regs.RPLOLR, RPLOLR.of(STRVLAN=int(not had), RSV31=1).value)

    def _leave_vlans(self, n: int, kept: int) -> None:
        """End pool `n`'s memberships but that of the port VLAN."""
        for vlan in tuple(self._entries):
            if vlan.VI_EN and vlan.POOLSEL >> n & 1 and not (kept and kept == vlan.VID):
                self._leave(n, vlan.VID)

    def new_driver(self, n: int, port_vlan: int) -> None:
        """Take back what a driver of VF `n` asked for: groups, further addresses, VLANs, frame size, write-back."""
        self.clear_addresses(n)
        self._groups[n] = _Groups()
        self._write_groups(n)
        self._vlans[n].clear()
        self._leave_vlans(n, port_vlan)
        self._strip(n, bool(port_vlan))
        self._regs.set(Regs.VMOLR, self._vmolr(port_vlan=bool(port_vlan)), n)
        for q in (n, n + 8):
            self._regs.set(Regs.TDWBAL, 0, q)
            self._regs.set(Regs.TDWBAH, 0, q)

    def clear_address(self, n: int) -> None:
        """Take the address of pool `n` away."""
        self._address(_PRIMARY - n, Mac(0), 0)

    def forget(self, n: int) -> None:
        """Take everything of VF `n` away, its address, port VLAN and rate included."""
        self.enable(n, False)
        self.new_driver(n, 0)
        self.clear_address(n)
        self._regs.set(Regs.VMVIR, 0, n)
        self.set_rate(n, 0, 1000)
        self.set_spoof_check(n, True, True)
        for q in (n, n + 8):
            for decl in (Regs.RDBAL, Regs.RDBAH, Regs.RDLEN, Regs.RDH, Regs.RDT, Regs.TDBAL, Regs.TDBAH, Regs.TDLEN):
                self._regs.set(decl, 0, q)
            for decl in (Regs.TDH, Regs.TDT, Regs.RXDCTL, Regs.TXDCTL, Regs.SRRCTL, Regs.RXCTL, Regs.TXCTL):
                self._regs.set(decl, decl.reset, q)
            self._regs.get(Regs.RQDPC, q)  # reading clears
        for decl in (Regs.PSRTYPE, Regs.VTEIAC, Regs.VTEIAM):
            self._regs.set(decl, decl.reset, n)
