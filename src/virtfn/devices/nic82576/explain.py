"""Explain what becomes of a frame: the card's decisions, one after the other, each with the register that makes it.

    sender: enabled -> port VLAN -> length -> anti-spoofing      wire: length
    switch: VLAN filter -> address -> VLAN members -> default pool, no return -> mirrors -> enabled
    each pool: longest frame -> queue -> descriptors

Written from the register declarations, not from the kernels, which must come to the same end. What only happens when a
frame moves is not in it: memory that the IOMMU refuses, rates, and limits of storms.
Spec: 82576 datasheet, chapter "Virtualization"; sections on receive filtering and RSS.
"""

from __future__ import annotations

from virtfn.devices.nic82576.receiving import Receiver
from virtfn.devices.nic82576.sight import Outcome, Sight, Step, Target
from virtfn.hw.bits import Register
from virtfn.hw.eth import BROADCAST, MIN_FRAME
from virtfn.hw.i82576 import VFS, Regs
from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, VET, RxMode, VlanInsert
from virtfn.hw.i82576.rxtx import (
    DTXSWC,
    MRQC,
    RAH,
    RCTL,
    TCTL,
    VLVF,
    VMOLR,
    VMRCTL,
    VMVIR,
    VT_CTL,
)

__all__ = ["explain_frame"]

_ALL = range(VFS)
_HASH_SHIFTS = (36, 35, 34, 32)


def explain_frame(sight: Sight, source: int | None, frame: bytes) -> Outcome:
    """Explain a frame that pool `source` sends, or that comes from the wire (None)."""
    return _Walk(sight, source, frame).walk()


def _names(pools: set[int]) -> str:
    return ", ".join(str(n) for n in sorted(pools)) or "none"


class _Walk:
    """The walk of one frame. tci: its VLAN tag, if it has one."""

    def __init__(self, sight: Sight, source: int | None, frame: bytes) -> None:
        self.sight = sight
        self.source = source
        self.frame = frame
        self.steps: list[Step] = []
        self.dropped: list[tuple[int | None, str]] = []
        self.tci: int | None = None
        self.mac = 0

    def flag(self, register: type[Register], name: str) -> int:
        return register.field(name).get(self.sight.peek(getattr(Regs, register.__name__), 0))

    def accepting(self, name: str) -> set[int]:
        return {n for n in _ALL if VMOLR.field(name).get(self.sight.peek(Regs.VMOLR, n))}

    @property
    def pooled(self) -> bool:
        return MRQC(self.sight.peek(Regs.MRQC, 0)).MODE in (RxMode.VMDQ, RxMode.VMDQ_RSS)

    @property
    def master(self) -> bool:
        return not CTRL(self.sight.peek(Regs.CTRL, 0)).GIO_MASTER_DISABLE

    def bitmap(self, register: str) -> set[int]:
        if not self.pooled:
            return set(_ALL)
        value = self.sight.peek(getattr(Regs, register), 0)
        return {n for n in _ALL if value >> n & 1}

    def say(self, stage: str, register: str, words: str) -> None:
        self.steps.append({"stage": stage, "register": register, "words": words})

    # The walk.

    def walk(self) -> Outcome:
        targets: list[Target] = []
        held = ""
        wire = False
        if self.source is None:
            pools = self._from_wire()
        else:
            pools, wire, held = self._from_pool(self.source)
        if pools:
            targets, waits = Receiver(self.sight, self.say, self.pooled).receive(
                sorted(pools), self.frame, self.tci, self._replicated(pools), self.dropped
            )
            held = held or waits
        return {
            "source": self.source,
            "frame": self.frame.hex(),
            "steps": self.steps,
            "outcome": "waits" if held else "forwarded" if targets or wire else "dropped",
            "words": held or self._words(targets, wire),
            "to": targets,
            "wire": wire,
            "dropped": [{"interface": n, "reason": why} for n, why in self.dropped],
        }

    def _words(self, targets: list[Target], wire: bool) -> str:
        names = [self.sight.name(target["pool"]) for target in targets] + ([self.sight.name(None)] if wire else [])
        lost = [f"{why} at {self.sight.name(n)}" for n, why in self.dropped]
        return "; ".join(part for part in ("to " + ", ".join(names) if names else "", ", ".join(lost)) if part)

    def _drop(self, stage: str, register: str, words: str, reason: str) -> None:
        self.say(stage, register, f"{words}: dropped, {reason}")
        self.dropped.append((self.source, reason))

    def _replicated(self, pools: set[int]) -> bool:
        return len(pools) > 1 or bool(self.mac & 1 and self.flag(VT_CTL, "RPL_EN") and self.pooled)

    def _look(self) -> None:
        """Read destination and tag."""
        self.mac = int.from_bytes(self.frame[:6], "little")
        vet = VET(self.sight.peek(Regs.VET, 0))
        at = 12
        if CTRL_EXT(self.sight.peek(Regs.CTRL_EXT, 0)).EXT_VLAN:
            outer = int.from_bytes(self.frame[12:14], "big") == vet.OUTER
            at = 16 if outer else len(self.frame)
        kind = int.from_bytes(self.frame[at : at + 2], "big")
        self.tci = None
        if len(self.frame) >= at + 6 and kind == vet.INNER:
            self.tci = int.from_bytes(self.frame[at + 2 : at + 4], "big")

    @property
    def vid(self) -> int | None:
        return None if self.tci is None else self.tci & 0xFFF

    def _bounded(self, stage: str) -> bool:
        size = len(self.frame)
        if size < 14:
            self._drop(stage, "", f"{size} bytes are no Ethernet header", "undersize")
        elif size > MAX_FRAME:
            self._drop(stage, "", f"{size} bytes are more than {MAX_FRAME}", "oversize")
        else:
            return True
        return False

    def _from_wire(self) -> set[int]:
        if not self._bounded("wire"):
            return set()
        self._look()
        self.say("wire", "", f"{len(self.frame)} bytes from the wire, {self._tag_words()}")
        pools, _ = self._receive_pools(None)
        return pools

    def _from_pool(self, pool: int) -> tuple[set[int], bool, str]:
        """Walk transmission; return (pools, to the wire, why it waits)."""
        if waits := self._not_sent(pool):
            return set(), False, waits
        self._insert(pool)
        if not self._bounded("sender"):
            return set(), False, ""
        self._look()
        self.say("sender", "", f"{len(self.frame)} bytes, {self._tag_words()}")
        if self._spoofed(pool):
            return set(), False, ""
        return *self._switch(pool), ""

    def _tag_words(self) -> str:
        return "untagged" if self.tci is None else f"VLAN {self.vid}, priority {self.tci >> 13}"

    def _not_sent(self, pool: int) -> str:
        if not (self.flag(TCTL, "EN") and self.master):
            self.say("sender", "TCTL.EN, CTRL.GIO_MASTER_DISABLE", "nobody may send: the frame stays in its ring")
            return "transmission is off (TCTL.EN)"
        if pool not in self.bitmap("VFTE"):
            self.say("sender", f"VFTE bit {pool}", "the pool may not send: the frame stays in its ring")
            return "the pool may not send (VFTE)"
        queues = [q for q in (pool, pool + VFS) if self.sight.sends(q)]
        if not queues:
            self.say("sender", f"TXDCTL[{pool}].ENABLE", "no transmit queue runs")
            return "no transmit queue of the pool runs (TXDCTL)"
        if all(self.sight.blocked >> q & 1 for q in queues):
            self.say("sender", "DTXCTL.MDP_EN", "its queues are blocked: a driver misbehaved")
            return "the pool's queues are blocked (malicious driver detection)"
        self.say("sender", f"VFTE bit {pool}", "the pool may send")
        return ""

    def _insert(self, pool: int) -> None:
        """Insert the port VLAN, and fill a short frame up."""
        vmvir = VMVIR(self.sight.peek(Regs.VMVIR, pool))
        if self.pooled and vmvir.VLANA == VlanInsert.ALWAYS and len(self.frame) >= 14:
            vet = VET(self.sight.peek(Regs.VET, 0))
            double = CTRL_EXT(self.sight.peek(Regs.CTRL_EXT, 0)).EXT_VLAN
            behind = double and len(self.frame) >= 18 and int.from_bytes(self.frame[12:14], "big") == vet.OUTER
            at = 16 if behind else 12
            tag = vet.INNER.to_bytes(2, "big") + int(vmvir.PORT_VLAN).to_bytes(2, "big")
            self.frame = self.frame[:at] + tag + self.frame[at:]
            self.say("sender", f"VMVIR[{pool}]", f"inserts VLAN {vmvir.PORT_VLAN & 0xFFF}, "
                     f"priority {vmvir.PORT_VLAN >> 13}")  # fmt: skip
        if TCTL(self.sight.peek(Regs.TCTL, 0)).PSP and 14 <= len(self.frame) < MIN_FRAME:
            self.say("sender", "TCTL.PSP", f"fills {len(self.frame)} bytes up to {MIN_FRAME}")
            self.frame = self.frame.ljust(MIN_FRAME, b"\0")

    def _spoofed(self, pool: int) -> bool:
        source = int.from_bytes(self.frame[6:12], "little")
        dtxswc = DTXSWC(self.sight.peek(Regs.DTXSWC, 0))
        if dtxswc.MACAS >> pool & 1:
            if pool not in self._exact(source):
                self._drop("anti-spoofing", f"DTXSWC.MACAS bit {pool}", "the source is no address of the pool",
                           "mac-spoof")  # fmt: skip
                return True
            self.say("anti-spoofing", f"DTXSWC.MACAS bit {pool}", "the source is the pool's")
        if dtxswc.VLANAS >> pool & 1 and self.vid is not None:
            if pool not in self._members(self.vid):
                self._drop("anti-spoofing", f"DTXSWC.VLANAS bit {pool}", f"the pool is not in VLAN {self.vid}",
                           "vlan-spoof")  # fmt: skip
                return True
            self.say("anti-spoofing", f"DTXSWC.VLANAS bit {pool}", f"the pool is in VLAN {self.vid}")
        return False

    # Addresses and VLANs.

    def _exact(self, mac: int) -> set[int]:
        found: set[int] = set()
        for entry in range(24):
            low, high = (Regs.RAL, Regs.RAH) if entry < 16 else (Regs.RALX, Regs.RAHX)
            rah = RAH(self.sight.peek(high, entry % 16))
            if rah.AV and self.sight.peek(low, entry % 16) | rah.RAH << 32 == mac:
                found |= {n for n in _ALL if rah.POOLSEL >> n & 1} or {0}
        return found

    def _entries(self, vid: int) -> list[tuple[int, VLVF]]:
        entries = ((i, VLVF(self.sight.peek(Regs.VLVF, i))) for i in range(Regs.VLVF.count))
        return [(i, entry) for i, entry in entries if entry.VI_EN and vid == entry.VID]

    def _members(self, vid: int) -> set[int]:
        return {n for _, entry in self._entries(vid) for n in _ALL if entry.POOLSEL >> n & 1}

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
            pools = self._add("VT_CTL.IGN_MAC", "addresses are ignored", set(_ALL))
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

    def _enabled(self, pools: set[int]) -> set[int]:
        left = pools & self.bitmap("VFRE")
        if left != pools:
            self.say("switch", "VFRE", f"pools {_names(pools - left)} may not receive")
        return left

    # The switch.

    def _switch(self, pool: int) -> tuple[set[int], bool]:
        """Decide where a pool's frame goes: (pools, to the wire)."""
        pools, wire, why = self._transmit_pools(pool)
        if wire and self.sight.self_loop:
            self.say("wire", "loopback", "the port sends to itself")
            back, why = self._receive_pools(pool, quiet=True)
            pools |= back
        leaves = wire and self.sight.wire_up and not self.sight.self_loop
        if leaves:
            self.say("wire", "STATUS.LU", "leaves by the wire")
        elif not pools:
            nowhere = wire and not self.sight.self_loop and why in ("", "rx-disabled")
            reason = "no-uplink" if nowhere else why
            self._drop("switch", "", "nobody is left", reason)
        return pools, leaves

    def _transmit_pools(self, pool: int) -> tuple[set[int], bool, str]:
        if not self.pooled:
            self.say("switch", "MRQC.MODE", "no pools: all frames leave by the wire")
            return set(), True, ""
        local = self.vid is not None and any(entry.LVLAN for _, entry in self._entries(self.vid))
        if not self.flag(DTXSWC, "LOOPBACK_EN"):
            self.say("switch", "DTXSWC.LOOPBACK_EN", "no local switching")
            return set(), not local, "vlan-membership" if local else ""
        pools, why = self._select()
        wire = bool(self.mac & 1) or not pools or not self._exact(self.mac) & pools
        if local:
            self.say("switch", "VLVF.LVLAN", "a local VLAN: never to the wire")
            wire = False
        others = set(_ALL) if DTXSWC(self.sight.peek(Regs.DTXSWC, 0)).LLE >> pool & 1 else set(_ALL) - {pool}
        if pools and not pools & others:
            why = "echo"
        if pools - others:
            self.say("switch", f"DTXSWC.LLE bit {pool}", "no frame returns to its pool")
        pools = self._mirror(self._first(pools & others), wire) & others
        if pools and not (self.flag(RCTL, "RXEN") and self.master):
            self.say("switch", "RCTL.RXEN", "nobody may receive")
            return set(), wire, "rx-disabled"
        if pools:
            pools, why = self._enabled(pools), "rx-disabled"
        return pools, wire, why

    def _receive_pools(self, pool: int | None, *, quiet: bool = False) -> tuple[set[int], str]:
        """Decide who gets a frame of the wire; drops it if nobody does, unless `quiet`."""
        if not (self.flag(RCTL, "RXEN") and self.master):
            pools, why, register = set[int](), "rx-disabled", "RCTL.RXEN"
        elif not self.pooled:
            pools, why, register = *self._accept(), "RCTL"
        else:
            pools, why = self._select()
            register = "VFRE"
            if why != "vlan-filter":
                default = VT_CTL(self.sight.peek(Regs.VT_CTL, 0))
                if not pools and not self.mac & 1 and not default.DIS_DEF_POOL:
                    self.say("switch", "VT_CTL.DEF_PL", f"the default pool is {default.DEF_PL}")
                    pools = {int(default.DEF_PL)}
                source, self.source = self.source, None  # as if it came from the wire
                pools = self._mirror(self._first(pools), False)
                self.source = source
                if pools:
                    pools, why = self._enabled(pools), "rx-disabled"
        if not pools and not quiet:
            self._drop("switch", register, "nobody is left", why)
        return pools, why

    def _accept(self) -> tuple[set[int], str]:
        """Filter without pools: all that is accepted goes to pool 0."""
        known = bool(self._exact(self.mac))
        if self.mac & 1:
            known = known or bool(self.flag(RCTL, "MPE")) or self._hashed("MTA", self.mac)
            known = known or bool(self.flag(RCTL, "BAM") and self.mac == BROADCAST)
        else:
            known = known or bool(self.flag(RCTL, "UPE")) or self._hashed("UTA", self.mac)
        if not known:
            self.say("address", "RAL/RAH, MTA, UTA, RCTL", "not for this port")
            return set(), "no-match"
        if self.vid is not None and self.flag(RCTL, "VFE") and not self._in_filter(self.vid):
            self.say("VLAN filter", "RCTL.VFE, VFTA", f"VLAN {self.vid} is not in the filter")
            return set(), "vlan-filter"
        return {0}, ""
