"""What a run says at its end.

The TypedDicts are the JSON documents of `virtfn run --json` and `virtfn bench --json`, key for key; keys never change
meaning. `verdict` is the one place that decides whether a run accounts for every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from virtfn.api.expect import DEFAULT, describe_flow, is_met

__all__ = [
    "AttackReport",
    "BenchPoint",
    "BenchReport",
    "Comparison",
    "FlowReport",
    "GuestReport",
    "IommuReport",
    "PfReport",
    "Report",
    "SwitchReport",
    "Totals",
    "UplinkReport",
    "Verdict",
    "verdict",
]


class SwitchReport(TypedDict):
    """What a NIC's switch did: frames to one pool, to several, and dropped by reason."""

    forwarded: int
    flooded: int
    dropped: dict[str, int]


class UplinkReport(TypedDict):
    """A tap or stream uplink. up: whether it was at the end. events: how often it came, went, failed, by name."""

    up: bool
    events: dict[str, int]


class PfReport(TypedDict):
    """One PF. uplink: of one that leads to others. link_mbps: of one with a speed; frames between its VFs have none."""

    name: str
    model: int | str
    address: str
    vfs: int
    switch: SwitchReport
    uplink: NotRequired[UplinkReport]
    link_mbps: NotRequired[int]


class GuestReport(TypedDict):
    """One guest. lost: meant for it, and neither arrived nor counted as dropped anywhere. exits: accesses that trapped.

    copies: frames that software between guest and device copied. rx_mpps, rx_gbps: received, over the time that frames
    moved, of embedded guests. Bytes are without frame check sequence, of Linux guests as Linux counts. ping_ms: mean
    round trip, where guests ping.

    Of guests under QEMU: exits are messages about registers, boot included; exits_per_frame are those of the workload;
    boot_s from the first instruction until it takes commands, null if it takes none; iperf_mbps: payload that it sent,
    as its receiver counted; self_test: of its driver, where it is alone; failure: what went wrong inside, in its own
    words. addresses_refused: how often it asked for an address that is another's, if it did. vfs: that a host has made;
    frames and bytes are those of their interfaces together, ping_ms and iperf_mbps means, dropped of the whole card.
    """

    name: str
    io: str
    vmm: str
    address: str
    mac: str
    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    lost: int
    corrupt: int
    reordered: int
    dropped: dict[str, int]
    exits: int
    interrupts: int
    copies: int
    mailbox_messages: int
    rx_mpps: NotRequired[float]
    rx_gbps: NotRequired[float]
    ping_ms: NotRequired[float]
    boot_s: NotRequired[float | None]
    exits_per_frame: NotRequired[float]
    iperf_mbps: NotRequired[float]
    self_test: NotRequired[str]
    failure: NotRequired[str]
    addresses_refused: NotRequired[int]
    vfs: NotRequired[int]


class FlowReport(TypedDict):
    """What one guest sent to another. unit: frames or pings, which are heard when they are answered.

    expected: what the lab says: all, all-but-overruns, none, or a share. reasons: why the rest did not arrive, as far
    as counters tell. note: what in the lab keeps the two apart.
    """

    sender: str
    receiver: str
    unit: str
    sent: int
    heard: int
    expected: str | float
    reasons: dict[str, int]
    note: NotRequired[str]
    policy: NotRequired[str]
    ping_ms: NotRequired[float]
    iperf_mbps: NotRequired[float]


class IommuReport(TypedDict):
    """What the IOMMU did; and with ATS, the device TLBs: hits are accesses that never asked the unit to translate."""

    domains: int
    translations: int
    iotlb_hits: int
    page_walks: int
    faults: int
    device_tlb_hits: NotRequired[int]
    device_tlb_misses: NotRequired[int]
    translation_requests: NotRequired[int]
    device_tlb_invalidations: NotRequired[int]


class Totals(TypedDict):
    """Frames and bytes delivered to guests, and rates over moving_s, the time that frames moved.

    Bytes, and so gbps, are without frame check sequence.
    """

    frames: int
    bytes: int
    mpps: float
    gbps: float
    moving_s: float


class Comparison(TypedDict):
    """What an attempt came to on the machine without remapping."""

    outcome: str
    evidence: dict[str, int | float]


class AttackReport(TypedDict):
    """One attempt of a hostile guest.

    outcome: stopped, succeeded, or harmless: nothing came of it, and nothing had to stop it. without_remapping: null
    where remapping plays no role, and then reason says why.
    """

    name: str
    description: str
    outcome: str
    stopped_by: str
    evidence: dict[str, int | float]
    without_remapping: Comparison | None
    reason: NotRequired[str]


class Report(TypedDict):
    """The document of `virtfn run --json`. workload: its kind. attacks: kind attack.

    elapsed_s: from nothing to the end of the work; compile_s: the part of it that compiled kernels. unwritten: files
    that the disk refused, in words; the run is what it is all the same. notes: what is not used or not there, in words.
    """

    virtfn: str
    lab: str
    workload: NotRequired[str]
    elapsed_s: float
    compile_s: float
    pfs: list[PfReport]
    guests: list[GuestReport]
    flows: list[FlowReport]
    iommu: IommuReport
    totals: Totals
    attacks: NotRequired[list[AttackReport]]
    unwritten: NotRequired[list[str]]
    notes: NotRequired[list[str]]


class BenchPoint(TypedDict):
    """One measurement. frame_bytes: with frame check sequence; gbps: without. copy_ratio: of a plain copy's rate.

    traffic: what the frames look like, a name in `api/frames.py`. frame_bytes of imix: the mean.
    """

    path: str
    traffic: str
    frame_bytes: int
    mpps: float
    gbps: float
    copy_ratio: float
    vfs: int


class BenchReport(TypedDict):
    """The document of `virtfn bench --json`; copy_gbps by frame size."""

    cpu: str
    copy_gbps: dict[str, float]
    points: list[BenchPoint]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run accounts for every frame, in one line."""

    passed: bool
    words: str


def verdict(report: Report) -> Verdict:
    """Judge a run: no frame altered, out of order, or lost without a reason, and as much heard as expected."""
    attempts = report.get("attacks", [])
    succeeded = [a["name"] for a in attempts if a["outcome"] == "succeeded"]
    if succeeded:
        return Verdict(False, f"isolation is broken: {', '.join(succeeded)} succeeded")
    guests = report["guests"]
    wrong = [f"{g['name']}: {g['failure']}" for g in guests if "failure" in g]
    corrupt, reordered, lost = (sum(g[key] for g in guests) for key in ("corrupt", "reordered", "lost"))
    counts = ((corrupt, "corrupt"), (reordered, "out of order"), (lost, "lost without a reason"))
    unaccounted = [f"{number:,} {word}" for number, word in counts if number]
    if unaccounted:
        wrong.append(f"frames are not accounted for: {', '.join(unaccounted)}")
    unmet = [describe_flow(flow) for flow in report["flows"] if not is_met(flow)]
    wrong += unmet[:_FLOWS_NAMED]
    if len(unmet) > _FLOWS_NAMED:
        wrong.append(f"and {len(unmet) - _FLOWS_NAMED:,} more")
    if not wrong and _nothing_happened(report):
        wrong.append("no frame was moved")
    if wrong:
        return Verdict(False, "; ".join(wrong))
    calm = f"none of {len(attempts)} attempts of the hostile guest succeeded; " if attempts else ""
    return Verdict(True, calm + _words_of_success(report))


_FLOWS_NAMED = 4


def _nothing_happened(report: Report) -> bool:
    """Tell whether nobody heard anything, though nobody said that it should be so."""
    if report.get("workload") == "none":
        return False
    meant = any(flow["expected"] in ("none", 0.0) for flow in report["flows"])
    return not report["totals"]["frames"] and not meant and not any("self_test" in g for g in report["guests"])


def _words_of_success(report: Report) -> str:
    guests = report["guests"]
    dropped = sum(count for pf in report["pfs"] for count in pf["switch"]["dropped"].values())
    dropped += sum(count for g in guests for count in g["dropped"].values()) if not dropped else 0
    if report.get("workload") == "none":
        return "the lab was up, and had no work"
    stated = any(flow["expected"] != DEFAULT for flow in report["flows"])
    plural = "frame was" if dropped == 1 else "frames were"
    reasons = f"{dropped:,} {plural} dropped, each for a counted reason" if dropped else ""
    if stated and any(flow["heard"] < flow["sent"] for flow in report["flows"]):
        return f"what arrived is what the lab expects; {reasons or 'the rest left by the wire'}"
    if dropped:
        return f"{reasons}; all others arrived intact"
    if all(g["vmm"] == "qemu" for g in guests):
        return "no Linux guest found a fault, and no frame was dropped"
    return "every frame arrived once, unaltered and in order"
