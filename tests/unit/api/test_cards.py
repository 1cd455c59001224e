"""Any card: a second model, a test's own, runs labs by the same world, IOVM and report."""

from __future__ import annotations

import pytest

from unit.tinycard import TINY_MODEL
from virtfn.api.lab import parse_lab
from virtfn.api.report import verdict
from virtfn.api.run import run_lab
from virtfn.cards import MODELS

LAB = """
name: tiny
pfs: [{name: pf0, model: tiny, sr-iov: {total-vfs: 2}}]
guests:
  - {name: a, memory-mib: 8, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 8, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: KIND, frame-bytes: 200, frames: 1000}
"""


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)


@pytest.mark.parametrize("kind", ["pairs", "fan-in", "ping"])
def test_a_second_card_passes_frames(kind: str) -> None:
    report = run_lab(parse_lab(LAB.replace("KIND", kind)))
    assert verdict(report).passed, report
    assert report["pfs"][0]["model"] == "tiny"
    assert report["iommu"]["faults"] == 0
    total = sum(guest["rx_frames"] for guest in report["guests"])
    assert total == report["pfs"][0]["switch"]["forwarded"]
    if kind != "ping":
        assert total == {"pairs": 2000, "fan-in": 1000}[kind]


def test_a_lab_may_not_ask_for_more_than_a_model_has() -> None:
    with pytest.raises(Exception, match="8 VFs; a tiny has 2 at most"):
        parse_lab(LAB.replace("total-vfs: 2", "total-vfs: 8").replace("KIND", "pairs"))


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(Exception, match="must be one of 82576, tiny, not"):
        parse_lab(LAB.replace("model: tiny", "model: x540").replace("KIND", "pairs"))
