"""The attack lab as `virtfn run` reports it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unit.reports import attack_report
from unit.rig import lab_text
from virtfn.api.lab import parse_lab
from virtfn.api.report import verdict
from virtfn.api.run import run_lab
from virtfn.machine.ports import VirtfnError

GUESTS = (("pf0", 0), ("pf0", 1), ("pf0", 2))
POLICY = '[{id: 0, mac-address: "02:00:00:00:00:66"}]'


def test_one_attempt_that_succeeds_fails_the_run() -> None:
    judged = verdict(attack_report("stopped", "succeeded", "harmless"))
    assert not judged.passed
    assert judged.words == "isolation is broken: try-1 succeeded"
    judged = verdict(attack_report("stopped", "harmless"))
    assert judged.passed
    assert judged.words.startswith("none of 2 attempts of the hostile guest succeeded; every frame arrived")


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
