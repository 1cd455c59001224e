"""Reports as a person reads them."""

from __future__ import annotations

import copy
import re

import pytest

from unit.cli.render.text import text
from unit.reports import REPORT, attack_report
from virtfn.api.report import BenchReport, FlowReport, Report
from virtfn.cli.render.report import render_bench, render_report


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
    assert "b: self-test of its link passed" in shown
    second["io"] = "passthrough"
    assert "b: self-test of the card passed" in text(render_report(report))


def test_vfs_of_hosts_have_a_table_with_their_policies_and_what_came_of_them() -> None:
    report = copy.deepcopy(REPORT)
    assert "set by its host" not in text(render_report(report))
    report["guests"][0].update(vmm="qemu", boot_s=7.84, ping_ms=2.25, iperf_mbps=626.4, vfs=2)
    flow: FlowReport = {
        "sender": "a vf0", "receiver": "a vf1", "unit": "pings", "sent": 100, "heard": 100, "expected": "all",
        "reasons": {}, "policy": "vlan 7 qos 0, max_tx_rate 40", "ping_ms": 1.5, "iperf_mbps": 38.2,
    }  # fmt: skip
    silent: FlowReport = {**flow, "sender": "a vf1", "receiver": "a vf0", "heard": 0}
    del silent["ping_ms"], silent["iperf_mbps"]
    report["flows"] = [flow, silent]
    shown = text(render_report(report), 120).splitlines()
    first, second = (line.split("  ") for line in shown if line.startswith("a vf"))
    cells = [[cell.strip() for cell in line if cell.strip()] for line in (first, second)]
    assert cells[0] == ["a vf0", "a vf1", "vlan 7 qos 0, max_tx_rate 40", "100 of 100", "1.50 ms", "38 Mb/s"]
    assert cells[1][3:] == ["0 of 100", "-", "-"]
    assert "626" not in "".join(shown), "a mean of VFs says nothing"


def test_a_slow_link_is_said_not_to_slow_frames_between_vfs() -> None:
    report = copy.deepcopy(REPORT)
    assert "on the wire" not in text(render_report(report))
    report["pfs"][0]["link_mbps"] = 10
    assert "link 10 Mb/s on the wire; frames between VFs do not take it" in " ".join(
        text(render_report(report)).split()
    )


def test_rates_and_times_have_one_base_and_sizes_say_what_they_hold() -> None:
    report = copy.deepcopy(REPORT)
    report["guests"][0].update(rx_mpps=0.5, rx_gbps=1.25)
    shown = " ".join(text(render_report(report), 120).split())
    assert "24,690 frames, 1.4 kB in 0.250 s: 1.00 Mpps, 2.00 Gb/s" in shown
    assert "received a 0.50 Mpps, 1.25 Gb/s time" in shown
    assert "time 0.250 s moving frames, 1.50 s in all; sizes without check sequences" in shown


def busy_report() -> Report:
    """Everything that a report can say, in large numbers; each number is there once."""
    report = copy.deepcopy(attack_report("stopped", "succeeded"))
    report["attacks"][0].update(name="interrupt-requests-of-others", stopped_by="the card: pools hear what is theirs")
    report["pfs"] = copy.deepcopy(REPORT["pfs"])
    report["pfs"][0]["uplink"] = {"up": True, "events": {"reconnects": 17}}
    report["guests"] = []
    for n, name in enumerate(("a", "mallory", "database-replica")):
        guest = copy.deepcopy(REPORT["guests"][0])
        guest.update(name=name, address=f"0000:02:10.{n}", vmm="qemu", io="passthrough", boot_s=17.5 + n)
        guest.update(tx_frames=10_000_001 + n, rx_frames=20_000_001 + n, exits=3_000_001 + n, interrupts=400_001 + n)
        guest.update(lost=51 + n, corrupt=61 + n, reordered=71 + n, dropped={"no-descriptor": 500_001 + n})
        guest.update(ping_ms=12.25 + n, iperf_mbps=1626.0 + n, exits_per_frame=0.02 + n)
        report["guests"].append(guest)
    report["iommu"].update(translations=123_456_789, iotlb_hits=1, page_walks=4_567)
    report["iommu"].update(device_tlb_hits=98_765, translation_requests=87_654)
    return report


def values(report: Report) -> list[str]:
    found = [report["lab"], "interrupt-requests-of-others", "try-1", "0000:01:00.0", "17 reconnects"]
    found += ["123,456,789", "4,567", "98,765", "87,654"]
    for g in report["guests"]:
        found += [g["name"], g["address"], g["io"], f"{g['boot_s']} s", f"{g['ping_ms']} ms", str(g["exits_per_frame"])]
        counts = (g["tx_frames"], g["rx_frames"], g["lost"], g["corrupt"], g["reordered"], g["exits"], g["interrupts"])
        found += [f"{count:,}" for count in (*counts, *g["dropped"].values())]
        found.append(f"{g['iperf_mbps']:.0f} Mb/s")
    return found


TITLES = "guest function sent received lost corrupt reord. drops exits irqs"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut(width: int) -> None:
    report = busy_report()
    shown = text(render_report(report), width)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= width
    folded = " ".join(shown.split())  # what is not in a table goes on in the next line
    for value in values(report):
        assert re.search(rf"(?<![\w,.]){re.escape(value)}(?![\w]|[,.]\d)", folded), value
    prose = [*TITLES.split(), "iperf3", "sends", "exits", "a", "frame", "stopped", "by", "without", "remapping"]
    for attack in report["attacks"]:
        prose += [attack["outcome"], *attack["stopped_by"].split()]
    assert set(prose) <= set(shown.split())


def test_guests_of_an_ordinary_run_have_a_line_each_in_80_columns() -> None:
    report = copy.deepcopy(REPORT)
    assert TITLES.split() in [line.split() for line in text(render_report(report), 80).splitlines()]
    for guest, name in zip(report["guests"], ("alice", "mallory"), strict=True):
        guest.update(name=name, tx_frames=1_000_000, rx_frames=1_000_000, exits=12_345, interrupts=54_321)
    shown = [line.split() for line in text(render_report(report), 80).splitlines()]
    assert TITLES.split() in shown
    assert ["alice", "0000:02:10.0", "1,000,000", "1,000,000", "0", "0", "0", "0", "12,345", "54,321"] in shown


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bench_is_shown_whole(width: int) -> None:
    report: BenchReport = {
        "cpu": "a processor",
        "copy_gbps": {"9018": 1234.5},
        "points": [
            {
                "path": "vf-to-vf",
                "traffic": "receivers",
                "frame_bytes": 9018,
                "mpps": 41.9,
                "gbps": 213.25,
                "copy_ratio": 0.81,
                "vfs": 8,
            }
        ],
    }
    shown = [line.split() for line in text(render_bench(report), width).splitlines()]
    assert ["receivers", "9018", "8", "41.90", "213.25", "1234.50", "81", "%"] in shown
    assert any("to 4 receivers in turn" in " ".join(line) for line in shown)
