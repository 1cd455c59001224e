"""Who heard whom in a run, and why not: each frame that a guest lacks, set against the counters of drops.

Counters are of functions, not of pairs: a drop explains one missing frame, first of those that its sender sent, then of
those that its receiver lacks. Where several flows could have lost it, which of them gets the reason is arbitrary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from virtfn.api.lab import Lab
from virtfn.api.report import FlowReport
from virtfn.iomodels.workload import Findings, Flow, Workload

__all__ = ["Explained", "explain", "flow_report", "lost_by_guest"]

_ONLY_ON_THE_WAY_IN = {"no-descriptor", "queue-disabled", "page-absent"}
_ON_THE_WAY_IN = _ONLY_ON_THE_WAY_IN | {"oversize", "dma-fault", "driver-reset"}


@dataclass(slots=True)
class Explained:
    """A flow, and why some of it did not arrive: how many for each reason, and how many that nothing explains."""

    flow: Flow
    unexplained: int
    reasons: Counter[str] = field(default_factory=Counter)

    def take(self, drops: Counter[str], *, use_up: bool = True) -> None:
        """Explain as much as `drops` can. use_up: what is explained here explains nothing else."""
        for reason, count in list(drops.items()):
            explained = min(self.unexplained, count)
            if explained:
                self.reasons[reason] += explained
                self.unexplained -= explained
                if use_up:
                    drops[reason] -= explained


def explain(
    workload: Workload,
    findings: Sequence[Findings],
    drops: Sequence[dict[str, int]],
    shared: Mapping[str, int] | None = None,
) -> list[Explained]:
    """Explain each flow of a workload. findings, drops: of each guest. shared: of the host, on everybody's way."""
    flows = [Explained(flow, flow.sent - flow.heard) for flow in workload.flows(findings)]
    if workload.kind == "ping":
        for each in flows:  # the question, or the answer
            for way in (drops[each.flow.sender], drops[each.flow.receiver], shared or {}):
                each.take(Counter(way))
            if each.reasons:
                each.unexplained = 0  # one that is lost ends them: the others were never asked
        return flows
    incoming = [Counter({r: n for r, n in d.items() if r in _ON_THE_WAY_IN}) for d in drops]
    outgoing = [Counter({r: n for r, n in d.items() if r not in _ONLY_ON_THE_WAY_IN}) for d in drops]
    for each in flows:
        each.take(outgoing[each.flow.sender], use_up=workload.kind != "broadcast")
        each.take(incoming[each.flow.receiver])
    if workload.kind == "pcap":  # frames of two senders may be alike, and the wrong one of the two be called missing
        for each in flows:
            for left in outgoing:
                each.take(left)
    if shared:
        left = Counter(shared)
        for each in flows:
            each.take(left)
    return flows


def lost_by_guest(
    workload: Workload, findings: Sequence[Findings], flows: Sequence[Explained], *, elsewhere: Sequence[Flow] = ()
) -> list[int]:
    """Count the frames that each guest lacks and nothing explains. elsewhere: flows that may leave by the wire."""
    lost = [0] * len(findings)
    for each in flows:
        if each.flow in elsewhere:
            continue
        if workload.kind == "ping":
            lost[each.flow.sender] += min(each.unexplained, findings[each.flow.sender].missing)
        else:
            lost[each.flow.receiver] += each.unexplained
    if workload.kind == "ping":
        return lost
    return [max(0, missing - found.corrupt) for missing, found in zip(lost, findings, strict=True)]


def flow_report(
    lab: Lab, sender: str, receiver: str, unit: str, sent: int, heard: int, reasons: Mapping[str, int]
) -> FlowReport:
    """Report of what one guest sent to another, with what the lab says of the two."""
    report: FlowReport = {
        "sender": sender,
        "receiver": receiver,
        "unit": unit,
        "sent": sent,
        "heard": heard,
        "expected": lab.expected(sender, receiver),
        "reasons": dict(reasons) if heard < sent else {},
    }
    if heard < sent and (note := lab.kept_apart(sender, receiver)):
        report["note"] = note
    return report
