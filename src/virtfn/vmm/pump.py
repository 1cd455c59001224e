"""The pump: keeps NICs and the functions of virtual machines going, while whoever calls it waits for something else.

A turn answers messages, moves frames, and lets the IOMMU tell what it met. Tail writes to mapped pages come without a
message, so turns that find nothing follow each other at a short distance; an empty machine rests between them.
"""

from __future__ import annotations

import ctypes
import select
from collections.abc import Mapping, Sequence
from typing import Protocol

from virtfn.devices.nic82576 import Nic82576
from virtfn.hw.types import Rid
from virtfn.machine.clock import S_PS, US_PS
from virtfn.vmm.host import Host
from virtfn.vmm.served import ServedFunction
from virtfn.vmm.uplink import Wire

__all__ = ["Pump", "Served"]

_BUDGET = 64
_PATIENCE_PS = 300 * US_PS  # of turns without rest after the last that found something
_WINDOW_PS = 2000 * US_PS
_BULK = 32  # frames in a window that say: throughput matters now, not the next frame's latency
_GATHER_PS = 500 * US_PS
_REST_S = 0.0005


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
        self._last = self._window = self._frames = 0
        self._bulk = False

    def turn(self) -> int:
        """Do what there is to do, and return how much it was."""
        done = sum(vm.serve() for vm in self._vms)
        for nic in self._nics:
            done += nic.serve(_BUDGET)[0]
        done += sum(wire.serve(_BUDGET)[0] for wire in self._wires)
        self._host.iommu.service()
        if done:
            self._last = self._host.now()
        return done

    def __call__(self) -> None:
        """Take a turn, and rest until a message comes or a time is over: a tick for whoever waits.

        After a few frames the next ones are looked for at once. After many there are rests, for more to come together:
        the guests need the processor to make them.
        """
        done = self.turn()
        now = self._host.now()
        if now - self._window >= _WINDOW_PS:
            # Segments count, not what they were cut from.
            frames = sum(int(nic.port.nic["counters"]["forwarded"]) for nic in self._nics)
            self._bulk = frames - self._frames >= _BULK
            self._window, self._frames = now, frames
        if self._bulk:
            self._gather()
        elif not done and now - self._last >= _PATIENCE_PS:
            self._wait(_REST_S)

    def _gather(self) -> None:
        """Let frames come together for a while; messages are answered as they come, a processor waits for each."""
        until = self._host.now() + _GATHER_PS
        while (left := until - self._host.now()) > 0 and self._wait(left / S_PS):
            for vm in self._vms:
                vm.serve()

    def _wait(self, seconds: float) -> bool:
        """Wait until something comes, or a time is over; tell whether something came."""
        sources = [served.server.fileno() for vm in self._vms for served in vm.functions.values()]
        sources += [wire.fileno() for wire in self._wires]
        waiting = [source for source in sources if source >= 0]
        if waiting:
            return _readable(waiting, seconds)
        self._host.clock.sleep(int(seconds * S_PS))
        return False


class _PollFd(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]


class _TimeSpec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


_libc = ctypes.CDLL(None)


def _readable(descriptors: list[int], seconds: float) -> bool:
    """Wait until something can be read, or a time below a second is over; a signal ends it too.

    By ppoll: select takes no descriptor above 1023, and Python's poll and epoll round up to milliseconds.
    """
    polled = (_PollFd * len(descriptors))(*(_PollFd(fd, select.POLLIN, 0) for fd in descriptors))
    limit = _TimeSpec(0, int(seconds * 1e9))
    return bool(_libc.ppoll(polled, ctypes.c_ulong(len(descriptors)), ctypes.byref(limit), None) > 0)
