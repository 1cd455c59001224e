"""Labs from nothing to nothing: reports, several NICs, and nothing left behind."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest

from unit.rig import Rig, lab_text
from virtfn.api.lab import builtin_lab, parse_lab
from virtfn.api.machine import Machine
from virtfn.api.report import verdict
from virtfn.api.run import machine_for, run_lab
from virtfn.iomodels.engine import Engine
from virtfn.machine.clock import VirtualClock
from virtfn.machine.ports import VirtfnError

FOUR = [("pf0", 0), ("pf0", 1), ("pf1", 0), ("pf1", 3)]


def run(guests=(("pf0", 0), ("pf0", 1)), workload="{kind: pairs, frames: 500}", **lab):
    return run_lab(parse_lab(lab_text(guests, workload=workload, **lab)))


def left_behind() -> tuple[int, int]:
    """Count open files and mappings of this process."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())


# The report.


def test_the_report_has_the_keys_that_never_change():
    report = run(policies="[{id: 0, spoof-check: true}]")
    assert list(report) == ["virtfn", "lab", "elapsed_s", "compile_s", "pfs", "guests", "iommu", "totals"]
    assert set(report["pfs"][0]) == {"name", "model", "address", "vfs", "switch"}
    assert set(report["pfs"][0]["switch"]) == {"forwarded", "flooded", "dropped"}
    assert set(report["guests"][0]) == {
        "name", "io", "vmm", "address", "mac", "tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "lost", "corrupt",
        "reordered", "dropped", "exits", "interrupts", "copies", "mailbox_messages",
    }  # fmt: skip
    assert set(report["iommu"]) == {"domains", "translations", "iotlb_hits", "page_walks", "faults"}
    assert set(report["totals"]) == {"frames", "bytes", "mpps", "gbps"}
    assert json.loads(json.dumps(report)) == report


def test_device_tlbs_add_keys_to_the_report():
    report = run(iommu="{ats: true, iotlb-entries: 64, device-tlb-entries: 16}")
    mmu = report["iommu"]
    assert set(mmu) - {"domains", "translations", "iotlb_hits", "page_walks", "faults"} == {
        "device_tlb_hits", "device_tlb_misses", "translation_requests", "device_tlb_invalidations",
    }  # fmt: skip
    assert verdict(report).passed
    assert mmu["translation_requests"] == mmu["device_tlb_misses"] > 0
    assert mmu["device_tlb_hits"] > 0
    assert json.loads(json.dumps(report)) == report


def test_the_numbers_of_a_clean_run_add_up():
    report = run()
    a, b = report["guests"]
    for guest in (a, b):
        assert (guest["tx_frames"], guest["rx_frames"]) == (500, 500)
        assert guest["rx_bytes"] == 500 * 1514
        assert (guest["lost"], guest["corrupt"], guest["reordered"], guest["dropped"]) == (0, 0, 0, {})
        assert 0 < guest["interrupts"] < 50
        assert guest["exits"] > 0
        assert guest["mailbox_messages"] > 0
    assert report["totals"]["frames"] == 1000
    assert report["pfs"][0]["switch"] == {"forwarded": 1000, "flooded": 0, "dropped": {}}
    assert report["iommu"]["domains"] == 2
    assert report["iommu"]["faults"] == 0
    assert verdict(report).passed


def test_ping_reports_times():
    report = run(workload="{kind: ping, frames: 20, frame-bytes: 128}")
    assert report["guests"][0]["ping_ms"] > 0
    assert "ping_ms" not in report["guests"][1]


def test_two_pfs_with_guests_on_each():
    report = run(FOUR)
    assert [pf["name"] for pf in report["pfs"]] == ["pf0", "pf1"]
    assert [pf["switch"]["forwarded"] for pf in report["pfs"]] == [1000, 1000]
    addresses = [guest["address"] for guest in report["guests"]]
    assert len(set(addresses)) == 4
    assert len({guest["mac"] for guest in report["guests"]}) == 4
    assert all(guest["rx_frames"] == 500 for guest in report["guests"])
    assert report["iommu"]["domains"] == 4


def test_an_odd_number_of_guests():
    guests = [("pf0", n) for n in range(3)]
    report = run(guests, workload="{kind: fan-in, frames: 300}")
    assert [guest["rx_frames"] for guest in report["guests"]] == [600, 0, 0]
    report = run(guests, workload="{kind: broadcast, frames: 300}")
    assert [guest["rx_frames"] for guest in report["guests"]] == [0, 300, 300]
    assert report["pfs"][0]["switch"]["flooded"] == 300


def test_vlans_keep_guests_apart_and_the_drops_are_explained():
    policies = "[{id: 0, vlan-id: 10}, {id: 1, vlan-id: 20}]"
    report = run(policies=policies)
    assert [guest["rx_frames"] for guest in report["guests"]] == [0, 0]
    assert all(sum(guest["dropped"].values()) == 500 for guest in report["guests"])
    assert verdict(report).passed


def test_work_that_cannot_go_on_is_an_error_that_says_whose():
    policies = "[{id: 0, vlan-id: 10}, {id: 1, vlan-id: 20}]"
    with pytest.raises(VirtfnError, match="got stuck: a cannot go on"):
        run(policies=policies, workload="{kind: ping, frames: 20}")


# Nothing is left behind.


def test_runs_leave_no_files_and_no_mappings():
    run(FOUR)
    files, maps = left_behind()
    for _ in range(2):
        run(FOUR)
    assert left_behind()[0] == files
    assert left_behind()[1] <= maps + 4  # the allocator's own arenas


@pytest.mark.parametrize("moment", ["compiling", "starting", "working", "stopping"])
def test_ctrl_c_at_any_moment_leaves_nothing_behind(moment, monkeypatch):
    lab = parse_lab(lab_text(workload="{kind: pairs, frames: 20000}"))
    run_lab(builtin_lab())
    files, maps = left_behind()
    calls = {"compiling": 1, "starting": 2, "stopping": 0, "working": 0}[moment]

    def interrupt(progress):
        nonlocal calls
        calls -= 1
        if calls == 0 or progress.phase == moment == "stopping":
            raise KeyboardInterrupt

    def interrupt_work(engine, steps=[3]):  # noqa: B006
        steps[0] -= 1
        if steps[0] == 0:
            raise KeyboardInterrupt
        return step(engine)

    step = Engine.end
    if moment == "working":
        monkeypatch.setattr(Engine, "end", interrupt_work)
    with pytest.raises(KeyboardInterrupt):
        run_lab(lab, progress=interrupt)
    assert left_behind()[0] == files
    assert left_behind()[1] <= maps + 4


def test_a_trace_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path):
    lab = parse_lab(lab_text())
    run()
    files, _ = left_behind()
    for _ in range(2):
        with pytest.raises((VirtfnError, OSError)):
            run_lab(lab, trace=tmp_path / "no such folder" / "trace")
    assert left_behind()[0] == files


def test_a_machine_that_fails_half_way_up_leaves_nothing():
    lab = parse_lab(lab_text())
    with Rig():
        pass
    files, _ = left_behind()
    with pytest.raises(VirtfnError, match="memory left"), Machine(lab, VirtualClock(), ring=4096):
        pass
    assert left_behind()[0] == files


# The machine.


def test_a_machine_is_up_as_the_lab_says():
    with machine_for(parse_lab(lab_text(FOUR))) as machine:
        assert len(machine.pcim.pfs()) == 2
        assert [run.guest.nics[0].driver.mac >> 40 for run in machine.guests] == [0x10, 0x11, 0x10, 0x13]
        assert all(run.guest.nics[0].driver.link for run in machine.guests)
        assert "Virtual Function" in machine.listing()
        assert machine.dump()
        assert machine.tree()
        assert len(machine.json()) >= 2 + 2 + 8


def test_the_machine_comes_down_in_order():
    rig = Rig(FOUR)
    with rig:
        machine = rig.machine
        machine.stop()
        assert all(not run.guest.nics for run in machine.guests)
        assert machine.iovm.inventory() == []
        assert not machine.host.remapping.domains
        assert {rid for _, rid, _ in machine.host.interrupt_table.entries()} == {pf.nic.pf_rid for pf in machine.pfs}


@pytest.mark.parametrize("links", [0, 10, 100, 1000])
def test_every_speed_of_the_link_comes_up(links):
    with Rig(link_mbps=links) as rig:
        assert rig.driver(0).link
        speed = np.log10(links or 1000)
        assert rig.igb._link_mbps() == 10**speed


def test_all_pfs_work_at_the_same_time():
    """Each sees the others' frames move before its own are through."""
    text = """
    name: two
    pfs: [{name: pf0, sr-iov: {total-vfs: 2}}, {name: pf1, sr-iov: {total-vfs: 2}}]
    guests:
      - {name: a, memory-mib: 16, nic: {pf: pf0, io: sriov, vf: 0}}
      - {name: b, memory-mib: 16, nic: {pf: pf0, io: sriov, vf: 1}}
      - {name: c, memory-mib: 16, nic: {pf: pf1, io: sriov, vf: 0}}
      - {name: d, memory-mib: 16, nic: {pf: pf1, io: sriov, vf: 1}}
    workload: {kind: pairs, frames: 200000}
    """
    seen = []

    def look(progress):
        if progress.phase == "running":
            seen.append({name: (tx, rx) for name, tx, rx, _ in progress.guests})

    report = run_lab(parse_lab(text), progress=look)
    assert report["totals"]["frames"] == 800_000
    assert any(0 < at["a"][1] < 200_000 and 0 < at["c"][1] < 200_000 for at in seen), seen
    assert report["iommu"]["faults"] == 0
    assert report["iommu"]["translations"] > 1_600_000, "those of both cards"
