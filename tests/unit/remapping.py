"""Remapping tables written by hand, word by word, for tests of whoever reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from virtfn.hw.vtd.tables import FaultReason
from virtfn.kernels.vtd.dma import translate
from virtfn.kernels.vtd.iommu import FAULT_SLOTS, Iommu, new_iommu
from virtfn.machine.memory import HostMemory

RID = 0x0180
GIB = 1 << 30
MIB2 = 1 << 21


class ByHand:
    """A unit over `size` bytes of memory; requester RID has a context and `levels` tables, their first entries linked.

    root, context: tables; ss[n]: the table of level n.
    """

    def __init__(self, size: int = 8 << 20, levels: int = 4, did: int = 5, iotlb_entries: int = 64) -> None:
        self.memory = HostMemory(size)
        self.iommu: Iommu = new_iommu(self.memory.base, self.memory.size, iotlb_entries)
        self.root = self.memory.alloc_page()
        self.context = self.memory.alloc_page()
        self.ss = {level: self.memory.alloc_page() for level in range(levels, 0, -1)}
        self.put(self.root + (RID >> 8) * 16, self.context | 1)
        self.set_context(RID, self.ss[levels] | 1, (levels - 2) | did << 8)
        for level in range(levels, 1, -1):
            self.put(self.ss[level], self.ss[level - 1] | 3)
        self.unit = self.iommu.unit[0]
        self.unit["root"] = self.root
        self.unit["enabled"] = 1

    def put(self, address: int, value: int) -> None:
        """Write one 64-bit word."""
        at = address - self.memory.base
        self.memory.bytes[at : at + 8] = np.frombuffer((value & (1 << 64) - 1).to_bytes(8, "little"), np.uint8)

    def set_context(self, rid: int, low: int, high: int) -> None:
        """Write a context entry of the bus of RID."""
        self.put(self.context + (rid & 255) * 16, low)
        self.put(self.context + (rid & 255) * 16 + 8, high)

    def ask(self, iova: int, nbytes: int = 64, write: int = 1, rid: int = RID) -> tuple[int, int]:
        """Translate once."""
        return translate(self.iommu.row, rid, iova, nbytes, write)

    def fault(self) -> tuple[FaultReason, dict[str, Any]]:
        """Take the one fault that must be in the ring."""
        assert self.unit["fault_tail"] == self.unit["fault_head"] + 1
        row = self.iommu.faults[int(self.unit["fault_head"]) % FAULT_SLOTS]
        self.unit["fault_head"] += 1
        return FaultReason(int(row["reason"])), {name: int(row[name]) for name in row.dtype.names or ()}

    def view(self, address: int, size: int) -> np.ndarray:
        """Look at memory."""
        at = address - self.memory.base
        return self.memory.bytes[at : at + size]
