"""Statistics: the data plane counts, registers show it.

Counters of the port are cleared by reading; a 64-bit pair is cleared by reading its high half. Counters of a VF run on
and wrap at 32 bits. The data plane's own numbers never go back: what a read clears is remembered as a base.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import VFS, Regs
from virtfn.kernels.i82576.state import COUNTER_NAMES
from virtfn.machine.regfile import Handlers, on_read

__all__ = ["Statistics"]

_M32 = 0xFFFFFFFF
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


class Statistics(Handlers):
    """Counter registers of one port and of the VFs."""

    def __init__(self, registers: PortRegisters, nic: np.void) -> None:
        self._nic = nic
        self._base = dict.fromkeys((*COUNTER_NAMES, _MESSAGES), 0)
        self._vf_base = [dict.fromkeys(_PER_VF.values(), 0) for _ in range(VFS)]
        self._queue_base = [0] * Regs.RQDPC.count
        for decl, name in _SINGLE.items():
            registers.on(decl, read=self._reader(name, clear=True))
        for decl, name in _LOW.items():
            registers.on(decl, read=self._reader(name, clear=False))
        for decl, name in _HIGH.items():
            registers.on(decl, read=self._high_reader(name))
        for decl, name in _PER_VF.items():
            registers.on(decl, read=self._vf_reader(name))
        registers.bind(self)

    def count(self, name: str) -> int:
        """Read a counter of the port since it was last cleared, without clearing it."""
        return self._total(name) - self._base[name]

    def _total(self, name: str) -> int:
        return int(self._nic["card" if name == _MESSAGES else "counters"][name])

    def _reader(self, name: str, *, clear: bool) -> Callable[[int], int]:
        def read(index: int) -> int:
            value = self.count(name)
            if clear:
                self._base[name] += value
                return min(value, _M32)
            return value & _M32

        return read

    def _high_reader(self, name: str) -> Callable[[int], int]:
        def read(index: int) -> int:
            value = self.count(name)
            self._base[name] += value
            return value >> 32 & _M32

        return read

    def _vf_reader(self, name: str) -> Callable[[int], int]:
        def read(n: int) -> int:
            return int(self._nic["pools"][n][name]) - self._vf_base[n][name] & _M32

        return read

    @on_read(Regs.RQDPC)
    def _dropped(self, q: int) -> int:
        total = int(self._nic["rx"][q]["drops"])
        value, self._queue_base[q] = total - self._queue_base[q], total
        return min(value, _M32)

    def reset_vf(self, n: int) -> None:
        """Start the counters of VF `n` at zero."""
        for name in self._vf_base[n]:
            self._vf_base[n][name] = int(self._nic["pools"][n][name])

    def reset(self) -> None:
        """Start every counter at zero."""
        for name in self._base:
            self._base[name] = self._total(name)
        for n in range(VFS):
            self.reset_vf(n)
        self._queue_base = [int(row["drops"]) for row in self._nic["rx"]]


_unknown = {name for name in (*_SINGLE.values(), *_LOW.values()) if name not in (*COUNTER_NAMES, _MESSAGES)}
if _unknown:
    raise TypeError(f"registers show counters that nobody counts: {sorted(_unknown)}")
