"""The attack lab as `virtfn run` reports it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from unit.bed import lab_text
from virtfn.api.lab import parse_lab
from virtfn.api.report import AttackReport, GuestReport, Report, render, verdict
from virtfn.api.run import run_lab
from virtfn.machine.ports import VirtfnError

GUESTS = (("pf0", 0), ("pf0", 1), ("pf0", 2))
POLICY = '[{id: 0, mac-address: "02:00:00:00:00:66"}]'
GUEST: GuestReport = {
    "name": "mallory",
    "io": "sriov",
    "vmm": "embedded",
    "address": "0000:02:10.0",
    "mac": "02:00:00:00:00:66",
    **dict.fromkeys(("tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "lost", "corrupt", "reordered"), 0),
    "dropped": {},
    **dict.fromkeys(("exits", "interrupts", "copies", "mailbox_messages"), 0),
}


def report(*outcomes: str) -> Report:
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
        "guests": [GUEST],
        "iommu": {"domains": 1, "translations": 0, "iotlb_hits": 0, "page_walks": 0, "faults": 0},
        "totals": {"frames": 9, "bytes": 9, "mpps": 0.0, "gbps": 0.0},
        "attacks": attacks,
    }
    return made


def test_one_attempt_that_succeeds_fails_the_run() -> None:
    judged = verdict(report("stopped", "succeeded", "harmless"))
    assert not judged.passed
    assert judged.words == "isolation is broken: try-1 succeeded"
    judged = verdict(report("stopped", "harmless"))
    assert judged.passed
    assert judged.words.startswith("none of 2 attempts of the hostile guest succeeded; every frame arrived")


def test_each_attempt_has_its_line() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(render(report("stopped", "succeeded")))
    lines = out.getvalue().splitlines()
    (first,) = (line for line in lines if line.startswith("try-0"))
    (second,) = (line for line in lines if line.startswith("try-1"))
    assert first.split() == ["try-0", "stopped", "DMA", "remapping", "the", "same"]
    assert second.split() == ["try-1", "succeeded", "succeeded"]


def test_an_attack_is_not_captured(tmp_path: Path) -> None:
    lab = parse_lab(lab_text(GUESTS, workload="{kind: attack}"))
    with pytest.raises(VirtfnError, match="cannot be captured"):
        run_lab(lab, capture=tmp_path / "x.pcapng")
    assert not (tmp_path / "x.pcapng").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("frame_bytes", "mib"), [(64, 4), (9018, 32)])
def test_a_run_reports_every_attempt(frame_bytes: int, mib: int) -> None:
    work = f"{{kind: attack, frames: 2000, frame-bytes: {frame_bytes}}}"
    lab = parse_lab(lab_text(GUESTS, policies=POLICY, memory_mib=mib, workload=work))
    said: list[str] = []
    made = run_lab(lab, progress=lambda moment: said.append(moment.phase))
    assert verdict(made).passed, verdict(made).words
    assert json.loads(json.dumps(made)) == made
    assert "attacking a machine without remapping" in said
    for attack in made["attacks"]:
        bare = attack["without_remapping"]
        if bare is None:
            assert attack["reason"]
        else:
            assert bare["outcome"] == "succeeded", attack
    assert [g["lost"] for g in made["guests"]] == [0, 0, 0]
