"""The part of an explanation that says which pools a frame is for: filters of addresses and VLANs, mirrors, enables.

Spec: 82576 datasheet, chapter "Virtualization", sections on receive and transmit packet switching.
"""

from __future__ import annotations

from virtfn.devices.nic82576.sight import Sight, Step
from virtfn.hw.bits import Register
from virtfn.hw.eth import BROADCAST
from virtfn.hw.i82576 import VFS, Regs
from virtfn.hw.i82576.fields import RxMode
from virtfn.hw.i82576.rxtx import MRQC, RAH, RCTL, VLVF, VMOLR, VMRCTL, VT_CTL

__all__ = ["ALL", "Sorting"]

ALL = range(VFS)
_HASH_SHIFTS = (36, 35, 34, 32)
_MIRRORS = VMRCTL.of(VPME=1, UPME=1, DPME=1, VLME=1).value


def _names(pools: set[int]) -> str:
    return ", ".join(str(n) for n in sorted(pools)) or "none"


class Sorting:
    """Sorts one frame of a source (a pool; None: the wire), and says how.

    tci: its VLAN tag, if it has one. asked: the pools whose filters take it.
    """

    def __init__(self, sight: Sight, source: int | None) -> None:
        self.sight = sight
        self.source = source
        self.steps: list[Step] = []
        self.tci: int | None = None
        self.mac = 0
        self.asked: set[int] = set()

    def flag(self, register: type[Register], name: str) -> int:
        """Read a field of a register that there is once."""
        return register.field(name).get(self.sight.peek(getattr(Regs, register.__name__), 0))

    def accepting(self, name: str) -> set[int]:
        """Return the pools whose VMOLR has a flag."""
        return {n for n in ALL if VMOLR.field(name).get(self.sight.peek(Regs.VMOLR, n))}

    @property
    def pooled(self) -> bool:
        """Whether frames are sorted into pools."""
        return MRQC(self.sight.peek(Regs.MRQC, 0)).MODE in (RxMode.VMDQ, RxMode.VMDQ_RSS)

    def bitmap(self, register: str) -> set[int]:
        """Return the pools that have their bit in a register."""
        if not self.pooled:
            return set(ALL)
        value = self.sight.peek(getattr(Regs, register), 0)
        return {n for n in ALL if value >> n & 1}

    def say(self, stage: str, register: str, words: str) -> None:
        """Add a step to the explanation."""
        self.steps.append({"stage": stage, "register": register, "words": words})

    @property
    def vid(self) -> int | None:
        """The frame's VLAN, if it has a tag."""
        return None if self.tci is None else self.tci & 0xFFF

    # Addresses and VLANs.

    def _exact(self, mac: int) -> set[int]:
        found: set[int] = set()
        for entry in range(24):
            low, high = (Regs.RAL, Regs.RAH) if entry < 16 else (Regs.RALX, Regs.RAHX)
            rah = RAH(self.sight.peek(high, entry % 16))
            if rah.AV and self.sight.peek(low, entry % 16) | rah.RAH << 32 == mac:
                found |= {n for n in ALL if rah.POOLSEL >> n & 1} or {0}
        return found

    def _entries(self, vid: int) -> list[tuple[int, VLVF]]:
        entries = ((i, VLVF(self.sight.peek(Regs.VLVF, i))) for i in range(Regs.VLVF.count))
        return [(i, entry) for i, entry in entries if entry.VI_EN and vid == entry.VID]

    def _members(self, vid: int) -> set[int]:
        return {n for _, entry in self._entries(vid) for n in ALL if entry.POOLSEL >> n & 1}

    def _hashed(self, table: str, mac: int) -> bool:
        bits = mac >> _HASH_SHIFTS[self.flag(RCTL, "MO")] & 0xFFF
        return bool(self.sight.peek(getattr(Regs, table), bits >> 5) >> (bits & 31) & 1)

    def _in_filter(self, vid: int) -> bool:
        return bool(self.sight.peek(Regs.VFTA, vid >> 5) >> (vid & 31) & 1)

    def _address(self) -> set[int]:
        """Find the pools that the destination reaches, VLANs aside."""
        mac, pools = self.mac, self._exact(self.mac)
        if pools:
            self.say("address", "RAL/RAH", f"exact: pools {_names(pools)}")
        if mac == BROADCAST:
            pools |= self._add("VMOLR.BAM", "broadcast", self.accepting("BAM"))
        elif mac & 1:
            if not pools and self._hashed("MTA", mac):
                pools = self._add("MTA, VMOLR.ROMPE", "multicast, by its hash", self.accepting("ROMPE"))
            pools |= self._add("VMOLR.MPME", "takers of all multicasts", self.accepting("MPME"))
        elif not pools and self._hashed("UTA", mac):
            pools = self._add("UTA, VMOLR.ROPE", "unicast, by its hash", self.accepting("ROPE"))
        if self.flag(VT_CTL, "IGN_MAC"):
            pools = self._add("VT_CTL.IGN_MAC", "addresses are ignored", set(ALL))
        if not pools:
            self.say("address", "RAL/RAH, MTA, UTA", "nobody has the address")
        return pools

    def _add(self, register: str, words: str, pools: set[int]) -> set[int]:
        self.say("address", register, f"{words}: pools {_names(pools)}")
        return pools

    def _select(self) -> tuple[set[int], str]:
        """Find the pools for destination and VLAN; return them, and why there are none."""
        filtering = self.flag(RCTL, "VFE")
        if filtering and self.vid is not None and not self._in_filter(self.vid):
            self.say("VLAN filter", "RCTL.VFE, VFTA", f"VLAN {self.vid} is in nobody's filter")
            return set(), "vlan-filter"
        pools = self._address()
        if not pools:
            return set(), "no-match"
        if filtering:
            register = "VMOLR.AUPE" if self.vid is None else "VLVF"
            allowed = self.accepting("AUPE") if self.vid is None else self._members(self.vid)
            pools &= allowed
            words = "takers of untagged frames" if self.vid is None else f"members of VLAN {self.vid}"
            self.say("VLAN", register, f"{words}: {_names(allowed)}; left are {_names(pools)}")
        self.asked = pools
        return pools, "vlan-membership"

    def _first(self, pools: set[int]) -> set[int]:
        if len(pools) > 1 and not self.flag(VT_CTL, "RPL_EN"):
            self.say("switch", "VT_CTL.RPL_EN", f"no replication: pool {min(pools)} alone")
            return {min(pools)}
        return pools

    def _mirror(self, pools: set[int], wire: bool) -> set[int]:
        added: set[int] = set()
        for i in range(Regs.VMRCTL.count):
            rule = VMRCTL(self.sight.peek(Regs.VMRCTL, i))
            watched = self.sight.peek(Regs.VMRVM, i)
            entries = self.sight.peek(Regs.VMRVLAN, i)
            in_vlan = self.vid is not None and any(entries >> e & 1 for e, _ in self._entries(self.vid))
            hit = (
                (rule.VPME and any(watched >> n & 1 for n in pools))
                or (rule.UPME and self.source is None)
                or (rule.DPME and wire)
                or (rule.VLME and in_vlan)
            )
            if hit:
                self.say("mirror", f"VMRCTL[{i}]", f"the rule adds pool {rule.MP}")
                added.add(int(rule.MP))
        return pools | added

    def _unresolved(self, pools: set[int]) -> bool:
        """Tell whether a unicast frame counts as a broadcast: pools without its address get it, not only as mirrors."""
        if not pools or self._exact(self.mac):
            return False
        if not self.pooled or not any(self.sight.peek(Regs.VMRCTL, i) & _MIRRORS for i in range(Regs.VMRCTL.count)):
            return True
        by_default = self.source is None and not self.flag(VT_CTL, "DIS_DEF_POOL")
        return by_default or bool(self.asked - {self.source})

    def _enabled(self, pools: set[int]) -> set[int]:
        left = pools & self.bitmap("VFRE")
        if left != pools:
            self.say("switch", "VFRE", f"pools {_names(pools - left)} may not receive")
        return left
