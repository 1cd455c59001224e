"""Reports as a person reads them."""

from __future__ import annotations

import copy

from unit.cli.render.text import text
from unit.reports import REPORT, attack_report
from virtfn.cli.render.report import render_report


def test_each_attempt_has_its_line() -> None:
    lines = text(render_report(attack_report("stopped", "succeeded")), 120).splitlines()
    (first,) = (line for line in lines if line.startswith("try-0"))
    (second,) = (line for line in lines if line.startswith("try-1"))
    assert first.split() == ["try-0", "stopped", "DMA", "remapping", "the", "same"]
    assert second.split() == ["try-1", "succeeded", "succeeded"]


def test_linux_guests_have_a_table_of_their_own() -> None:
    report = copy.deepcopy(REPORT)
    assert "booted in" not in text(render_report(report))
    first, second = report["guests"]
    first.update(vmm="qemu", boot_s=7.84, ping_ms=2.25, iperf_mbps=626.4, exits_per_frame=0.02)
    second.update(vmm="qemu", boot_s=9.0, exits_per_frame=0.5, self_test="passed")
    shown = text(render_report(report))
    linux = shown[shown.index("Linux") :].splitlines()
    assert linux[2].split() == ["a", "sriov", "7.8", "s", "2.25", "ms", "626", "Mb/s", "0.02"]
    assert linux[3].split() == ["b", "sriov", "9.0", "s", "-", "-", "-"]
    assert "b: self-test of the card passed" in shown
