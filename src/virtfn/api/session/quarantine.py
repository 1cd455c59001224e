"""VFs in quarantine outlast the process that holds their lab: which there are, and how they come to be so again."""

from __future__ import annotations

from collections.abc import Iterable

from virtfn.api.machine import Machine
from virtfn.api.stopped import Stopped
from virtfn.iovm.iovm import VfState

__all__ = ["stop_again", "stopped_vfs"]


def stopped_vfs(machine: Machine) -> list[Stopped]:
    """List the VFs of a machine that are in quarantine."""
    vfs = [(pf.name, vf) for pf in machine.pfs for vf in pf.vfs if vf.state is VfState.QUARANTINED]
    return [Stopped(pf, vf.index, vf.vm.name, machine.watch.why(vf)) for pf, vf in vfs if vf.vm is not None]


def stop_again(machine: Machine, stopped: Iterable[Stopped]) -> None:
    """Put VFs into quarantine that were there before, and have the same owners; before any frame of theirs moves."""
    for each in stopped:
        for vf in [vf for pf in machine.pfs if pf.name == each.pf for vf in pf.vfs if vf.index == each.vf]:
            if vf.state is VfState.ASSIGNED and vf.vm is not None and vf.vm.name == each.guest:
                machine.watch.quarantine(vf, each.why)
