"""Explain what becomes of a frame: the card's decisions, one after the other, each with the register that makes it.

    sender: enabled -> port VLAN -> length -> anti-spoofing      wire: length
    switch: VLAN filter -> address -> VLAN members -> default pool, no return -> mirrors -> enabled -> storm control
    each pool: longest frame -> queue -> descriptors

Written from the register declarations, not from the kernels, which must come to the same end. What only shows when a
frame moves is named, and not judged: memory that the IOMMU refuses, and how long it waits.
Spec: 82576 datasheet, chapter "Virtualization"; sections on receive filtering and RSS.
"""

from __future__ import annotations

from virtfn.devices.nic82576.receiving import Receiver
from virtfn.devices.nic82576.sight import Outcome, Sight, Target
from virtfn.devices.nic82576.sorting import ALL, Sorting
from virtfn.devices.nic82576.stormcheck import check_storm
from virtfn.hw.eth import BROADCAST, MIN_FRAME
from virtfn.hw.i82576 import VFS, Regs
from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, VET, VlanInsert
from virtfn.hw.i82576.rxtx import DTXSWC, RCTL, TCTL, VMVIR, VT_CTL

__all__ = ["explain_frame"]

_MEMORY = "whether the IOMMU lets the card read the frame, and write it where it goes: virtfn iommu explain"
_TIME = "how long it waits: for the rate of its VF, the pace of the wire, and the turns of others"
_OTHERS = "what others send before it in this window of storm control"


def explain_frame(sight: Sight, source: int | None, frame: bytes) -> Outcome:
    """Explain a frame that pool `source` sends, or that comes from the wire (None)."""
    return _Walk(sight, source, frame).walk()


class _Walk(Sorting):
    """The walk of one frame. unknown: what no register tells of it."""

    def __init__(self, sight: Sight, source: int | None, frame: bytes) -> None:
        super().__init__(sight, source)
        self.frame = frame
        self.dropped: list[tuple[int | None, str]] = []
        self.unknown = [_MEMORY] if source is None else [_MEMORY, _TIME]

    @property
    def master(self) -> bool:
        return not CTRL(self.sight.peek(Regs.CTRL, 0)).GIO_MASTER_DISABLE

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
            "unknown": self.unknown,
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
        return set() if pools and self._storms(pools) else pools

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

    # The switch.

    def _switch(self, pool: int) -> tuple[set[int], bool]:
        """Decide where a pool's frame goes: (pools, to the wire)."""
        pools, wire, why = self._transmit_pools(pool)
        if wire and self.sight.self_loop:
            self.say("wire", "loopback", "the port sends to itself")
            back, why = self._receive_pools(pool, quiet=True)
            pools |= back
        if self._storms(pools):
            return set(), False
        leaves = wire and self.sight.wire_up and not self.sight.self_loop
        if leaves:
            self.say("wire", "STATUS.LU", "leaves by the wire")
        elif not pools:
            nowhere = wire and not self.sight.self_loop and why in ("", "rx-disabled")
            reason = "no-uplink" if nowhere else why
            self._drop("switch", "", "nobody is left", reason)
        return pools, leaves

    def _storms(self, pools: set[int]) -> bool:
        """Drop the frame if it is one too many of those to many."""
        verdict = check_storm(self.sight, self.mac, self._unresolved(pools), len(self.frame))
        if verdict is None:
            return False
        self.unknown.append(_OTHERS)
        if verdict.too_many:
            self._drop("storm control", verdict.register, verdict.words, "storm")
        else:
            self.say("storm control", verdict.register, f"{verdict.words}: passes")
        return verdict.too_many

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
        others = set(ALL) if DTXSWC(self.sight.peek(Regs.DTXSWC, 0)).LLE >> pool & 1 else set(ALL) - {pool}
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
