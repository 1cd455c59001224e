"""The slow, obvious twin of layer-2 sorting: pools as sets, straight from the registers, one rule after the other.

Spec: 82576 datasheet, chapter "Virtualization": receive packet switching, transmit packet switching, mirroring.
"""

from __future__ import annotations

from collections.abc import Callable

POOLS = range(8)
BROADCAST = b"\xff" * 6
Peek = Callable[[str, int], int]  # a register's value, by name and index


def members(bitmap: int) -> set[int]:
    return {n for n in POOLS if bitmap >> n & 1}


class Switch:
    """Filters and pools as a register file describes them."""

    def __init__(self, peek: Peek) -> None:
        self.peek = peek

    def bit(self, register: str, bit: int, index: int = 0) -> bool:
        return bool(self.peek(register, index) >> bit & 1)

    def accepting(self, bit: int) -> set[int]:
        return {n for n in POOLS if self.bit("VMOLR", bit, n)}

    def exact(self, mac: bytes) -> set[int]:
        """Pools of the receive addresses that hold `mac`; an entry without any means the first."""
        found: set[int] = set()
        for i in range(24):
            low, high = ("RAL", "RAH") if i < 16 else ("RALX", "RAHX")
            rah = self.peek(high, i % 16)
            address = self.peek(low, i % 16).to_bytes(4, "little") + (rah & 0xFFFF).to_bytes(2, "little")
            if rah >> 31 and address == mac:
                found |= members(rah >> 18 & 0xFF) or {0}
        return found

    def hashed(self, table: str, mac: bytes) -> bool:
        """Tell whether a table has the twelve bits of the last two bytes that RCTL.MO selects."""
        end = mac[5] << 8 | mac[4]
        bits = end >> {0: 4, 1: 3, 2: 2, 3: 0}[self.peek("RCTL", 0) >> 12 & 3] & 0xFFF
        return self.bit(table, bits % 32, bits // 32)

    def vlans(self, vid: int) -> list[int]:
        """Entries of VLVF that are this VLAN's."""
        words = [self.peek("VLVF", i) for i in range(32)]
        return [i for i, word in enumerate(words) if word >> 31 and word & 0xFFF == vid]

    def filtered(self, vid: int | None) -> bool:
        return self.bit("RCTL", 18) and vid is not None and not self.bit("VFTA", vid % 32, vid // 32)

    def addressed(self, mac: bytes) -> set[int]:
        """Pools that a destination address reaches, VLANs aside."""
        pools = self.exact(mac)
        if mac == BROADCAST:
            pools |= self.accepting(27)
        elif mac[0] & 1:
            if not pools and self.hashed("MTA", mac):
                pools = self.accepting(25)
            pools |= self.accepting(28)
        elif not pools and self.hashed("UTA", mac):
            pools = self.accepting(26)
        return set(POOLS) if self.bit("VT_CTL", 28) else pools

    def in_vlan(self, vid: int | None) -> set[int]:
        """Pools that the frame's VLAN leaves in the running."""
        if not self.bit("RCTL", 18):
            return set(POOLS)
        if vid is None:
            return self.accepting(24)
        return {n for i in self.vlans(vid) for n in members(self.peek("VLVF", i) >> 12 & 0xFF)}

    def one(self, pools: set[int]) -> set[int]:
        """Without replication only the first gets it."""
        return pools if self.bit("VT_CTL", 30) else set(sorted(pools)[:1])

    def mirrored(self, pools: set[int], from_wire: bool, to_wire: bool, vid: int | None) -> set[int]:
        added = set()
        for i in range(4):
            rule = self.peek("VMRCTL", i)
            entries = self.vlans(vid) if vid is not None else []
            if (
                (rule & 1 and pools & members(self.peek("VMRVM", i)))
                or (rule & 2 and from_wire)
                or (rule & 4 and to_wire)
                or (rule & 8 and any(self.bit("VMRVLAN", e, i) for e in entries))
            ):
                added.add(rule >> 8 & 7)
        return added

    def enabled(self) -> set[int]:
        return members(self.peek("VFRE", 0)) if self.bit("RCTL", 1) else set()

    def receive(self, mac: bytes, vid: int | None) -> tuple[set[int], str]:
        """Pools of a frame from the wire, and why nobody has it."""
        if not self.bit("RCTL", 1):
            return set(), "rx-disabled"
        if self.filtered(vid):
            return set(), "vlan-filter"
        addressed = self.addressed(mac)
        pools = addressed & self.in_vlan(vid)
        why = "vlan-membership" if addressed else "no-match"
        if not pools and not mac[0] & 1 and not self.bit("VT_CTL", 29):
            pools = {self.peek("VT_CTL", 0) >> 7 & 7}
        pools = self.one(pools)
        pools = pools | self.mirrored(pools, True, False, vid)
        return pools & self.enabled(), "rx-disabled" if pools else why

    def transmit(self, source: int, mac: bytes, vid: int | None) -> tuple[set[int], bool]:
        """Local pools of a frame from pool `source`, and whether it leaves by the wire."""
        local = vid is not None and any(self.bit("VLVF", 20, i) for i in self.vlans(vid))
        if not self.bit("DTXSWC", 31):
            return set(), not local
        pools = set() if self.filtered(vid) else self.addressed(mac) & self.in_vlan(vid)
        stays = not mac[0] & 1 and bool(pools & self.exact(mac))
        wire = not stays and not local
        back = self.bit("DTXSWC", 16 + source)
        others = set(POOLS) if back else set(POOLS) - {source}
        pools = self.one(pools & others)
        pools = (pools | self.mirrored(pools, False, wire, vid)) & others
        return pools & self.enabled(), wire

    def accept(self, mac: bytes, vid: int | None) -> bool:
        """Without pools: tell whether the port takes the frame at all."""
        if not self.bit("RCTL", 1):
            return False
        known = bool(self.exact(mac))
        if mac[0] & 1:
            known = known or self.bit("RCTL", 4) or self.hashed("MTA", mac)
            known = known or (mac == BROADCAST and self.bit("RCTL", 15))
        else:
            known = known or self.bit("RCTL", 3) or self.hashed("UTA", mac)
        return known and not self.filtered(vid)
