"""Account for a run: what became of every frame, and what it took, as the report's document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from virtfn import __version__
from virtfn.api.flows import Explained, explain, flow_report, lost_by_guest
from virtfn.api.machine import LabGuestRun, LabPf, Machine
from virtfn.api.report import FlowReport, GuestReport, IommuReport, PfReport, Report, Totals
from virtfn.hw.types import format_mac, format_rid
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Workload
from virtfn.machine.clock import MS_PS, S_PS

__all__ = ["Group", "account"]


@dataclass(slots=True)
class Group:
    """A PF and the embedded guests on it, at work."""

    pf: LabPf
    runs: list[LabGuestRun]
    workload: Workload
    engine: Engine

    def drops(self) -> list[dict[str, int]]:
        """What was dropped of each guest, by reason."""
        drops = [run.link.drops() for run in self.runs]
        for run, dropped in zip(self.runs, drops, strict=True):
            if given_up := run.driver.given_up:
                dropped["driver-reset"] = given_up
        return drops

    def explained(self) -> list[Explained]:
        """Say of who sends to whom how much arrived, and why not the rest."""
        return explain(self.workload, self.workload.findings(), self.drops(), self.pf.host_drops())


def account(
    machine: Machine,
    groups: Iterable[Group],
    others: Sequence[GuestReport] = (),
    other_flows: Sequence[FlowReport] = (),
    *,
    moving_ps: int,
    compile_ps: int,
) -> Report:
    """Account for every frame of a run.

    others, other_flows: of guests that are not embedded. moving_ps: how long frames moved. compile_ps: how long
    kernels compiled.
    """
    guests: list[GuestReport] = []
    flows: list[FlowReport] = []
    seconds = max(moving_ps / S_PS, 1e-9)
    for group in groups:
        reports, theirs = _group_reports(group, machine)
        for report in reports:
            report["rx_mpps"] = round(report["rx_frames"] / seconds / 1e6, 4)
            report["rx_gbps"] = round(report["rx_bytes"] * 8 / seconds / 1e9, 4)
        guests += reports
        flows += theirs
    guests += others
    flows += other_flows
    order = {guest.name: i for i, guest in enumerate(machine.lab.guests)}
    guests.sort(key=lambda g: order[g["name"]])
    frames, size = sum(g["rx_frames"] for g in guests), sum(g["rx_bytes"] for g in guests)
    totals: Totals = {
        "frames": frames,
        "bytes": size,
        "mpps": round(frames / seconds / 1e6, 4),
        "gbps": round(size * 8 / seconds / 1e9, 4),
        "moving_s": round(moving_ps / S_PS, 6),
    }
    return {
        "virtfn": __version__,
        "lab": machine.lab.name,
        "workload": machine.lab.workload.kind,
        "elapsed_s": 0.0,
        "compile_s": round(compile_ps / S_PS, 3),
        "pfs": [_pf_report(pf, machine.lab.pf(pf.name).link_mbps) for pf in machine.pfs],
        "guests": guests,
        "flows": flows,
        "iommu": _iommu_report(machine),
        "totals": totals,
    }


def _pf_report(pf: LabPf, link_mbps: int) -> PfReport:
    counters = pf.nic.counters()
    report: PfReport = {
        "name": pf.name,
        "model": pf.model.report,
        "address": format_rid(pf.nic.pf_rid),
        "vfs": pf.nic.vfs,
        "switch": {
            "forwarded": counters["forwarded"],
            "flooded": counters["flooded"],
            "dropped": pf.nic.all_drops(),
        },
    }
    if link_mbps:
        report["link_mbps"] = link_mbps
    if pf.wire is not None and pf.live:
        report["uplink"] = {"up": pf.wire.up, "events": dict(pf.wire.uplink.counts)}
    return report


def _iommu_report(machine: Machine) -> IommuReport:
    stats = machine.host.iommu.stats()
    iommu: IommuReport = {
        "domains": len(machine.host.remapping.domains),
        "translations": stats["translations"],
        "iotlb_hits": stats["iotlb_hits"],
        "page_walks": stats["page_walks"],
        "faults": stats["faults"],
    }
    if tlbs := machine.device_tlb_counts():
        iommu["device_tlb_hits"] = tlbs["hits"]
        iommu["device_tlb_misses"] = tlbs["misses"]
        iommu["translation_requests"] = tlbs["translation_requests"]
        iommu["device_tlb_invalidations"] = stats["device_tlb_requests"]
    return iommu


def _group_reports(group: Group, machine: Machine) -> tuple[list[GuestReport], list[FlowReport]]:
    """Report of the guests of a group, and of who heard whom."""
    findings = group.workload.findings()
    drops = group.drops()
    explained = explain(group.workload, findings, drops, group.pf.host_drops())
    flows = [_flow_report(each, group, machine) for each in explained]
    # What is not meant to arrive may leave by the wire.
    elsewhere = [
        each.flow for each, told in zip(explained, flows, strict=True) if group.pf.live and told["expected"] == "none"
    ]
    lost = lost_by_guest(group.workload, findings, explained, elsewhere=elsewhere)
    reports: list[GuestReport] = []
    for g, run in enumerate(group.runs):
        d, meter, costs = run.driver.netdev, run.guest.meter, run.guest.meter.read()
        for reason, count in group.workload.refused[g].items():
            drops[g][reason] = drops[g].get(reason, 0) + count
        report: GuestReport = {
            "name": run.lab.name,
            "io": run.lab.nic.io,
            "vmm": run.lab.vmm,
            "address": run.link.address,
            "mac": format_mac(run.driver.mac),
            "tx_frames": int(d["tx_frames"]),
            "tx_bytes": int(d["tx_bytes"]),
            "rx_frames": int(d["rx_frames"]),
            "rx_bytes": int(d["rx_bytes"]),
            "lost": lost[g],
            "corrupt": findings[g].corrupt,
            "reordered": findings[g].reordered + findings[g].repeated,
            "dropped": drops[g],
            "exits": meter.exits,
            "interrupts": meter["interrupts"],
            "copies": costs["copies"],
            "mailbox_messages": run.link.messages(),
        }
        if claims := run.link.claims():
            report["addresses_refused"] = claims
        times = group.engine.ping_ps[g]
        if times:
            report["ping_ms"] = round(sum(times) / len(times) / MS_PS, 4)
        reports.append(report)
    return reports, flows


def _flow_report(each: Explained, group: Group, machine: Machine) -> FlowReport:
    sender, receiver = (group.runs[g].lab.name for g in (each.flow.sender, each.flow.receiver))
    unit = "pings" if group.workload.kind == "ping" else "frames"
    return flow_report(machine.lab, sender, receiver, unit, each.flow.sent, each.flow.heard, each.reasons)
