"""What the remapping driver has in memory beside translation tables, and what of it may change under attack.

invalidation queue, its status    the host's driver at work: changes whenever the host does something
interrupt remapping table         only the attacker's own entries, and those lead to the attacker's own descriptor
posted interrupt descriptors      only the attacker's own
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.types import Rid
from virtfn.hw.vtd.interrupts import PID_BYTES, PostedIrte, SourceValidation
from virtfn.hw.vtd.regs import IQA, RTADDR, Regs
from virtfn.machine.memory import CHUNK, view_bytes
from virtfn.vmm.host import Host

WAIT = 5


class Structures:
    """The structures of one host with interrupt remapping, as the attacker `rid` might hit them.

    of_host: pages that the host writes in answer to what a guest may do.
    """

    def __init__(self, host: Host, rid: Rid) -> None:
        self.host, self.rid = host, rid
        assert host.interrupt_table is not None
        self.table = host.interrupt_table
        self.chunk = view_bytes(self.table.address, CHUNK)
        queue = IQA(host.iommu.read(Regs.IQA.offset, 8))
        first = queue.value & IQA.IQA.mask
        words = view_bytes(first, 4096 << queue.QS).view(np.uint64).reshape(-1, 2)
        statuses = {int(high) & ~4095 for low, high in words if int(low) & 15 == WAIT}
        self.of_host = [first + 4096 * i for i in range(1 << queue.QS)] + sorted(statuses)
        self.of_host += list(range(self.table.address, self.table.address + CHUNK, 4096))

    def addresses(self) -> list[int]:
        """List addresses worth an attack: tables of every kind, the queue, entries and descriptors of others."""
        root = self.host.iommu.read(Regs.RTADDR.offset, 8) & RTADDR.RTA.mask
        context = int(view_bytes(root + (self.rid >> 8) * 16, 8).view(np.uint64)[0]) & ~4095
        second = [int(domain.tables.root) for domain in self.host.remapping.domains.values()]
        return [root, context, *second, self.of_host[0], self.table.address, self.table.address + CHUNK // 2]

    @staticmethod
    def _descriptor(entry: int) -> int:
        posted = PostedIrte(entry)
        assert posted.IM
        return posted.PDA_LOW << 6 | posted.PDA_HIGH << 32

    def remember(self) -> None:
        """Note what is there now."""
        self.before = self.chunk.copy()
        entries = self.table.entries()
        (self.own,) = {self._descriptor(entry) for _, rid, entry in entries if rid == self.rid}
        self.foreign = {index for index, rid, _ in entries if rid != self.rid}

    def check(self) -> None:
        """Compare: nothing of others changed, and whatever the attacker has leads to itself."""
        may = np.zeros(CHUNK, bool)
        at = self.own - self.table.address
        may[at : at + PID_BYTES] = True
        entries = self.table.entries()
        assert {index for index, rid, _ in entries if rid != self.rid} == self.foreign
        for _, rid, entry in entries:
            if rid == self.rid:
                posted = PostedIrte(entry)
                assert posted.P
                assert posted.SVT == SourceValidation.REQUESTER
                assert int(self.rid) == posted.SID
                assert self._descriptor(entry) == self.own
        # Of an entry that the attacker had and has no more, nothing is left; so unused ones are zero, then and now.
        used = np.zeros(CHUNK // 2 // 16, bool)
        used[[index for index, rid, _ in entries if rid == self.rid]] = True
        table = np.array(self.chunk[: CHUNK // 2]).reshape(-1, 16)
        before = self.before[: CHUNK // 2].reshape(-1, 16)
        kept = np.zeros(len(used), bool)
        kept[sorted(self.foreign)] = True
        assert (table[kept] == before[kept]).all(), "another's entry changed"
        assert not table[~kept & ~used].any(), "an entry that nobody has is not zero"
        half = slice(CHUNK // 2, CHUNK)
        changed = (self.chunk[half] != self.before[half]) & ~may[half]
        assert not changed.any(), "another's descriptor changed"
