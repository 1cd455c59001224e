"""The pump: keeps NICs and the functions of virtual machines going, while whoever calls it waits for something else.

A turn answers messages, moves frames, and lets the IOMMU tell what it met. Between turns a kernel does the part of this
that comes with frames all the time, and rests (`kernels/pump.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from virtfn.devices.nic82576 import Nic82576
from virtfn.hw.types import Rid
from virtfn.kernels.link import SCRATCH_BYTES
from virtfn.kernels.posix import POLLIN
from virtfn.kernels.pump import PUMP, run_pump
from virtfn.kernels.ranges import address_of, row_address
from virtfn.machine.clock import MS_PS
from virtfn.vmm.host import Host
from virtfn.vmm.served import ServedFunction
from virtfn.vmm.uplink import Wire

__all__ = ["Pump", "Served"]

_BUDGET = 64
_LIMIT_PS = 5 * MS_PS  # whoever waits looks again after this
_MIRROR_PS = MS_PS // 2  # Python alone sees what a mirrored machine hands over


class Served(Protocol):
    """Whoever has functions at sockets."""

    @property
    def functions(self) -> Mapping[Rid, ServedFunction]:
        """The functions, by routing ID."""

    def serve(self) -> int:
        """Answer what is asked; return how many messages there were."""


class Pump:
    """Turns for the NICs `nics`, the virtual machines `vms` and the NICs' `wires`; all may grow."""

    def __init__(self, host: Host, nics: Sequence[Nic82576], vms: Sequence[Served], wires: Sequence[Wire] = ()) -> None:
        self._host = host
        self._nics = nics
        self._vms = vms
        self._wires = wires
        self._state = np.zeros(1, PUMP)
        row_address(self._state, "the pump's state")
        self._scratch = np.zeros(SCRATCH_BYTES, np.uint8)
        address_of(self._scratch, "room for a message")

    def turn(self) -> int:
        """Do what there is to do, and return how much it was."""
        done = sum(vm.serve() for vm in self._vms)
        for nic in self._nics:
            done += nic.serve(_BUDGET)[0]
        done += sum(wire.serve(_BUDGET)[0] for wire in self._wires)
        self._host.iommu.service()
        return done

    def __call__(self) -> None:
        """Take a turn, then move frames and rest for some milliseconds, or until there is more: a tick."""
        self.turn()
        self.run(_LIMIT_PS)

    def run(self, limit_ps: int) -> None:
        """Let kernels do what they can, and rest, until Python is needed or `limit_ps` is over."""
        functions = [served for vm in self._vms for served in vm.functions.values() if served.server.fileno() >= 0]
        watched = self._host.iommu.interrupts.on_message is not None
        links = np.zeros((len(functions), 2), np.int64)
        for i, served in enumerate(functions):
            n = next(n for n, nic in enumerate(self._nics) if nic is served.function.device)
            table, first, vectors = self._nics[n].vectors(served.function.rid)
            links[i] = served.lend(table, first, 0 if watched else vectors), n
            if served.mirror.running:
                limit_ps = min(limit_ps, _MIRROR_PS)
        descriptors = [served.server.fileno() for served in functions]
        descriptors += [fd for fd in (wire.fileno() for wire in self._wires) if fd >= 0]
        asked = np.array([fd | POLLIN for fd in descriptors], np.int64)
        address_of(asked, "what is waited for")
        nics = np.array([nic.port.address for nic in self._nics], np.int64)
        events = np.zeros(len(nics), np.int64)
        run_pump(self._state.ctypes.data, self._scratch.ctypes.data, nics, links, asked, events, limit_ps)
        for served in functions:
            served.take_back()
        for nic, event in zip(self._nics, events.tolist(), strict=True):
            if event:
                nic.handle(event)
