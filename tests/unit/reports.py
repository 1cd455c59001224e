"""Reports of runs that never were."""

from __future__ import annotations

from virtfn.api.report import AttackReport, GuestReport, Report

REPORT: Report = {
    "virtfn": "0.1.0",
    "lab": "two-guests",
    "elapsed_s": 1.5,
    "compile_s": 0.0,
    "pfs": [
        {
            "name": "pf0",
            "model": 82576,
            "address": "0000:01:00.0",
            "vfs": 2,
            "switch": {"forwarded": 7, "flooded": 0, "dropped": {}},
        }
    ],
    "guests": [
        {
            "name": name,
            "io": "sriov",
            "vmm": "embedded",
            "address": f"0000:02:10.{2 * n}",
            "mac": f"02:00:00:00:00:1{n}",
            "tx_frames": 12345,
            "tx_bytes": 700,
            "rx_frames": 12345,
            "rx_bytes": 700,
            "lost": 0,
            "corrupt": 0,
            "reordered": 0,
            "dropped": {},
            "exits": 126,
            "interrupts": 2,
            "copies": 0,
            "mailbox_messages": 8,
        }
        for n, name in enumerate("ab")
    ],
    "flows": [
        {
            "sender": sender,
            "receiver": receiver,
            "unit": "frames",
            "sent": 12345,
            "heard": 12345,
            "expected": "all-but-overruns",
            "reasons": {},
        }
        for sender, receiver in ("ab", "ba")
    ],
    "iommu": {"domains": 2, "translations": 100, "iotlb_hits": 96, "page_walks": 4, "faults": 0},
    "totals": {"frames": 24690, "bytes": 1400, "mpps": 1.0, "gbps": 2.0, "moving_s": 0.25},
}

_MALLORY: GuestReport = {
    "name": "mallory",
    "io": "sriov",
    "vmm": "embedded",
    "address": "0000:02:10.0",
    "mac": "02:00:00:00:00:66",
    **dict.fromkeys(("tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "lost", "corrupt", "reordered"), 0),
    "dropped": {},
    **dict.fromkeys(("exits", "interrupts", "copies", "mailbox_messages"), 0),
}


def attack_report(*outcomes: str) -> Report:
    """Make the report of a run with an attempt of each outcome."""
    attacks: list[AttackReport] = [
        {
            "name": f"try-{i}",
            "description": "tries",
            "outcome": outcome,
            "stopped_by": "DMA remapping" if outcome == "stopped" else "",
            "evidence": {"harm": int(outcome == "succeeded")},
            "without_remapping": {"outcome": "succeeded", "evidence": {"harm": 4}} if i else None,
        }
        for i, outcome in enumerate(outcomes)
    ]
    made: Report = {
        "virtfn": "0",
        "lab": "attack",
        "elapsed_s": 1.0,
        "compile_s": 0.0,
        "pfs": [],
        "guests": [_MALLORY],
        "flows": [],
        "iommu": {"domains": 1, "translations": 0, "iotlb_hits": 0, "page_walks": 0, "faults": 0},
        "totals": {"frames": 9, "bytes": 9, "mpps": 0.0, "gbps": 0.0, "moving_s": 0.5},
        "attacks": attacks,
    }
    return made
