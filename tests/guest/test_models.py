"""Linux guests by Split, Direct and SR-IOV on one NIC, each with its own stock driver: they reach each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtfn.api.compare import run_compare
from virtfn.api.comparerig import Plan
from virtfn.api.image import current_image, make_image
from virtfn.api.lab import load_lab
from virtfn.api.report import GuestReport, Report, verdict
from virtfn.api.run import run_lab
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu

pytestmark = pytest.mark.guest

EXAMPLE = Path(__file__).parents[2] / "examples" / "models-linux.yaml"


@pytest.fixture(scope="module")
def report(qemu: Qemu) -> Report:
    try:
        current_image()
    except VirtfnError:
        try:
            make_image()
        except VirtfnError as error:
            pytest.skip(f"not run: {error}")
    return run_lab(load_lab(EXAMPLE))


def by(report: Report, io: str) -> list[GuestReport]:
    return [guest for guest in report["guests"] if guest["io"] == io]


def test_all_pings_are_answered_and_streams_move(report: Report) -> None:
    judged = verdict(report)
    assert judged.passed, judged.words
    assert len(report["flows"]) == 4
    assert all(flow["heard"] == flow["sent"] > 0 for flow in report["flows"])
    assert all(guest["iperf_mbps"] > 1 for guest in report["guests"])
    assert report["iommu"]["faults"] == 0


def test_each_model_costs_what_it_costs(report: Report) -> None:
    split, direct, sriov = (by(report, io) for io in ("split", "direct", "sriov"))
    assert all(guest["exits"] == 0 and guest["copies"] > 0 and guest["interrupts"] > 0 for guest in split)
    assert all(guest["copies"] > 0 and guest["interrupts"] > 0 for guest in direct)
    assert min(guest["exits_per_frame"] for guest in direct) > max(guest["exits_per_frame"] for guest in sriov)
    assert all(guest["copies"] == 0 for guest in sriov)


def test_the_models_compared_with_linux(qemu: Qemu, report: Report) -> None:
    document = run_compare(Plan.of(load_lab(EXAMPLE)))
    assert document["vmm"] == "qemu"
    assert [held["name"] for held in document["properties"] if not held["holds"]] == []
    for name, model in document["models"].items():
        if name == "passthrough":
            assert "no second guest" in (model["refused"] or "")
            continue
        assert model["delivered"] > 100
        assert model["measured"]["gbps"] > 0.001
        loads = model["loads"]
        assert [load["fps"] for load in loads] == [50, 200]
        assert all(load["delivered"] > load["fps"] for load in loads), "2 s, both ways; a slow machine does less"
        assert loads[0]["per_frame"]["interrupts"] > 0
        assert 0 < model["measured"]["latency_us"]["p50"] <= model["measured"]["latency_us"]["p99"]
    drivers = {name: model["guest_driver"] for name, model in document["models"].items() if not model["refused"]}
    assert drivers == {"split": "virtio_net", "direct": "igb", "sriov": "igbvf"}
