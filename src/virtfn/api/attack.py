"""Carry the attack lab out: on the lab's machine, and again on one whose remapping is switched off, then thrown away.

What the second machine suffers is guarded: devices reach all of its memory, and nothing but that.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.api.lab import Lab
from virtfn.api.machine import LabGuestRun, Machine
from virtfn.api.report import AttackReport
from virtfn.drivers.vtdirq import InterruptTable
from virtfn.hw.eth import FCS_BYTES
from virtfn.iomodels.attack import Attempt, Finding, Stage, carry_out
from virtfn.iomodels.attempts import ATTEMPTS
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.machine.ports import Clock

__all__ = ["attack", "attack_unprotected", "compare"]

_RING = 128  # so that the buffers of a ring, even of jumbo frames, fit into a piece of a guest's memory


def attack(machine: Machine, engine: Engine, attempts: Sequence[Attempt] = ATTEMPTS) -> list[Finding]:
    """Let the first guest of a machine attack it, while the others work for `engine`; leave the machine as it was."""
    runs = _runs(machine)
    table = machine.host.interrupt_table
    if table is None:
        # What an operating system has prepared before it switches remapping on: tables in memory, and their address.
        machine.host.remapping.start()
        machine.host.remapping.stop()
        table = InterruptTable(machine.host.memory, machine.host.remapping)
        for run in runs:
            table.remap(run.vf.rid, 0, 0x20)
    pf = runs[0].pf
    guests = tuple(run.guest for run in runs)
    stage = Stage(machine.host, pf.nic, pf.driver, machine.iovm, runs[0].vf, engine, guests, table)
    try:
        return carry_out(stage, attempts)
    finally:
        stage.leave(machine.lab.pf(pf.name).link_mbps)


def _runs(machine: Machine) -> list[LabGuestRun]:
    return machine.guests_of(machine.guests[0].pf)


def attack_unprotected(lab: Lab, clock: Clock, attempts: Sequence[Attempt] = ATTEMPTS) -> list[Finding]:
    """Do to another machine of the lab, without remapping, what remapping plays a role in."""
    # Without translation there is nothing that a device could ask for and keep.
    plain = lab.model_copy(update={"iommu": lab.iommu.model_copy(update={"ats": False})})
    mtu = max(1500, lab.workload.frame_bytes - FCS_BYTES - 14)
    with Machine(plain, clock, ring=_RING, mtu=mtu, remapping=False) as machine:
        runs = _runs(machine)
        stations = [Station(run.driver.row, run.driver.mac) for run in runs]
        work = lab.workload
        workload = Workload("attack", stations, length=work.frame_bytes - FCS_BYTES, frames=work.frames_each)
        engine = Engine(machine.host, runs[0].pf.nic, [run.guest for run in runs], workload)
        return attack(machine, engine, [each for each in attempts if not each.same_without])


def compare(findings: Sequence[Finding], unprotected: Sequence[Finding]) -> list[AttackReport]:
    """Set what attempts came to beside what the same came to without remapping."""
    bare = {finding.attempt.name: finding for finding in unprotected}
    reports: list[AttackReport] = []
    for finding in findings:
        name = finding.attempt.name
        other = bare.get(name)
        report: AttackReport = {
            "name": name,
            "description": finding.attempt.description,
            "outcome": finding.outcome,
            "stopped_by": finding.stopped_by,
            "evidence": finding.evidence,
            "without_remapping": {"outcome": other.outcome, "evidence": other.evidence} if other else None,
        }
        if other is None:
            report["reason"] = finding.attempt.same_without
        reports.append(report)
    return reports
