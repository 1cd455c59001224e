"""Statistics: the data plane counts, registers show it.

Counters of the port are cleared by reading; a 64-bit pair is cleared by reading its high half. Counters of a VF run on
and wrap at 32 bits. The data plane's own numbers never go back: what a read clears is remembered as a base.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import VFS, Regs
from virtfn.kernels.i82576.doorbells import read
from virtfn.kernels.i82576.state import COUNTER_NAMES, POOLS
from virtfn.kernels.i82576.words import CLEARED, HIGH, RUNS_ON
from virtfn.kernels.ranges import address_of

__all__ = ["Statistics"]

_MESSAGES = "messages"
_SINGLE = {
    Regs.GPRC: "gprc", Regs.GPTC: "gptc", Regs.BPRC: "bprc", Regs.BPTC: "bptc", Regs.MPRC: "mprc", Regs.MPTC: "mptc",
    Regs.TPR: "tpr", Regs.TPT: "tpt", Regs.RUC: "ruc", Regs.ROC: "roc", Regs.RFC: "rfc", Regs.RNBC: "rnbc",
    Regs.MPC: "mpc", Regs.PRC64: "prc64", Regs.PRC127: "prc127", Regs.PRC255: "prc255", Regs.PRC511: "prc511",
    Regs.PRC1023: "prc1023", Regs.PRC1522: "prc1522", Regs.PTC64: "ptc64", Regs.PTC127: "ptc127",
    Regs.PTC255: "ptc255", Regs.PTC511: "ptc511", Regs.PTC1023: "ptc1023", Regs.PTC1522: "ptc1522",
    Regs.RPTHC: "rpthc", Regs.HGPTC: "hgptc", Regs.TSCTC: "tsctc", Regs.SSVPC: "ssvpc",
    Regs.IAC: _MESSAGES,
}  # fmt: skip
_LOW = {
    Regs.GORCL: "gorc", Regs.GOTCL: "gotc", Regs.TORL: "tor", Regs.TOTL: "tot", Regs.HGORCL: "hgorc",
    Regs.HGOTCL: "hgotc",
}  # fmt: skip
_HIGH = {
    Regs.GORCH: "gorc", Regs.GOTCH: "gotc", Regs.TORH: "tor", Regs.TOTH: "tot", Regs.HGORCH: "hgorc",
    Regs.HGOTCH: "hgotc",
}  # fmt: skip
_PER_VF = {
    Regs.VFGPRC: "gprc", Regs.VFGPTC: "gptc", Regs.VFGORC: "gorc", Regs.VFGOTC: "gotc", Regs.VFMPRC: "mprc",
    Regs.VFGPRLBC: "gprlbc", Regs.VFGPTLBC: "gptlbc", Regs.VFGORLBC: "gorlbc", Regs.VFGOTLBC: "gotlbc",
}  # fmt: skip


class Statistics:
    """Counter registers of one port and of the VFs. address: of the NIC's row `nic`."""

    def __init__(self, registers: PortRegisters, nic: np.void, address: int) -> None:
        self._nic, self._address = nic, address
        self._totals: list[npt.NDArray[np.int64]] = []
        self._bases = np.zeros(len(COUNTER_NAMES) + 1 + VFS * len(_PER_VF) + Regs.RQDPC.count, np.int64)
        address_of(self._bases, "where counters begin")
        self._slots = {name: self._follow(nic["counters"], name) for name in COUNTER_NAMES}
        self._slots[_MESSAGES] = self._follow(nic["card"], _MESSAGES)
        for decl, name in _SINGLE.items():
            self._show(registers, decl, CLEARED, [self._slots[name]])
        for decl, name in _LOW.items():
            self._show(registers, decl, RUNS_ON, [self._slots[name]])
        for decl, name in _HIGH.items():
            self._show(registers, decl, HIGH, [self._slots[name]])
        self._of_vfs = len(self._totals)
        for decl, name in _PER_VF.items():
            self._show(registers, decl, RUNS_ON, [self._follow(row, name) for row in nic["pools"]])
        self._show(registers, Regs.RQDPC, CLEARED, [self._follow(row, "drops") for row in nic["rx"]])

    def _follow(self, row: np.void, name: str) -> int:
        """Take a counter in; return its number."""
        at = (row.dtype.names or ()).index(name)
        self._totals.append(np.frombuffer(row, np.int64)[at : at + 1])
        address_of(self._totals[-1], "a counter")
        return len(self._totals) - 1

    def _show(self, registers: PortRegisters, decl: Decl, kind: int, slots: Sequence[int]) -> None:
        """Let registers show counters, by number: kernels read them."""
        for i, slot in enumerate(slots):
            total, base = self._totals[slot], self._bases[slot : slot + 1]
            self._nic["words"][decl.at(i) >> 2] = kind, total.ctypes.data, base.ctypes.data, *[0] * 7
        registers.on(decl, read=lambda index: read(self._address, POOLS, decl.at(index), True))

    def count(self, name: str) -> int:
        """Read a counter of the port since it was last cleared, without clearing it."""
        slot = self._slots[name]
        return int(self._totals[slot][0] - self._bases[slot])

    def reset_vf(self, n: int) -> None:
        """Start the counters of VF `n` at zero."""
        for slot in range(self._of_vfs + n, self._of_vfs + VFS * len(_PER_VF), VFS):
            self._bases[slot] = self._totals[slot][0]

    def reset(self) -> None:
        """Start every counter at zero."""
        self._bases[:] = np.concatenate(self._totals)


_unknown = {name for name in (*_SINGLE.values(), *_LOW.values()) if name not in (*COUNTER_NAMES, _MESSAGES)}
if _unknown:
    raise TypeError(f"registers show counters that nobody counts: {sorted(_unknown)}")
