"""Labs from nothing to nothing: reports, several NICs, and nothing left behind."""

from __future__ import annotations

import gc
import json
import os
import re
from pathlib import Path

import dpkt
import numpy as np
import pytest

from unit.rig import Rig, lab_text
from virtfn.api.expect import is_met
from virtfn.api.lab import builtin_lab, parse_lab
from virtfn.api.machine import Machine
from virtfn.api.report import Verdict, verdict
from virtfn.api.run import machine_for, run_lab
from virtfn.hw.types import format_rid
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
    keys = ["virtfn", "lab", "workload", "elapsed_s", "compile_s", "pfs", "guests", "flows", "iommu", "totals"]
    assert list(report) == keys
    assert set(report["pfs"][0]) == {"name", "model", "address", "vfs", "switch"}
    assert set(report["pfs"][0]["switch"]) == {"forwarded", "flooded", "dropped"}
    assert set(report["guests"][0]) == {
        "name", "io", "vmm", "address", "mac", "tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "lost", "corrupt",
        "reordered", "dropped", "exits", "interrupts", "copies", "mailbox_messages", "rx_mpps", "rx_gbps",
    }  # fmt: skip
    assert set(report["iommu"]) == {"domains", "translations", "iotlb_hits", "page_walks", "faults"}
    assert set(report["totals"]) == {"frames", "bytes", "mpps", "gbps", "moving_s"}
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
    assert 0 < report["totals"]["moving_s"] < report["elapsed_s"]
    assert report["totals"]["mpps"] == pytest.approx(1000 / report["totals"]["moving_s"] / 1e6, rel=0.05, abs=1e-4)
    assert a["rx_mpps"] + b["rx_mpps"] == pytest.approx(report["totals"]["mpps"], abs=2e-4)
    assert a["rx_gbps"] == pytest.approx(a["rx_mpps"] * 1514 * 8 / 1000, rel=0.05, abs=1e-3)
    assert report["iommu"]["domains"] == 2
    assert report["iommu"]["faults"] == 0
    assert verdict(report).passed


def test_a_slow_link_is_in_the_report_and_frames_between_vfs_do_not_take_it():
    report = run(workload="{kind: pairs, frames: 2000, frame-bytes: 1518}", link_mbps=10)
    assert report["pfs"][0]["link_mbps"] == 10
    assert report["totals"]["gbps"] > 0.01 * 2


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


# What a lab expects.

APART = "[{id: 0, vlan-id: 10}, {id: 1, vlan-id: 20}]"
NOTE = "a is in VLAN 10, b is in VLAN 20"


def with_expectation(text: str, guest: str, expect: str) -> str:
    return text.replace(f"{{name: {guest}, ", f"{{name: {guest}, expect: {expect}, ")


def test_a_lab_that_delivers_nothing_fails_and_says_who_did_not_hear_whom_and_why():
    report = run(policies=APART)
    assert [guest["rx_frames"] for guest in report["guests"]] == [0, 0]
    assert all(sum(guest["dropped"].values()) == 500 for guest in report["guests"])
    assert report["flows"][0] == {
        "sender": "a", "receiver": "b", "unit": "frames", "sent": 500, "heard": 0, "expected": "all-but-overruns",
        "reasons": {"vlan-membership": 500}, "note": NOTE,
    }  # fmt: skip
    words = f"b heard 0 of 500 frames of a: vlan-membership ({NOTE})"
    words += f"; a heard 0 of 500 frames of b: vlan-membership ({NOTE})"
    assert verdict(report) == Verdict(False, words)


def test_broadcast_and_fan_in_name_who_was_not_heard():
    guests = [("pf0", n) for n in range(3)]
    policies = "[{id: 0, vlan-id: 10}, {id: 1, vlan-id: 10}, {id: 2, vlan-id: 20}]"
    report = run(guests, workload="{kind: fan-in, frames: 300}", policies=policies)
    assert verdict(report).words == "a heard 0 of 300 frames of c: vlan-membership (a is in VLAN 10, c is in VLAN 20)"
    report = run(guests, workload="{kind: broadcast, frames: 300}", policies=policies)
    assert not verdict(report).passed
    assert "c heard 0 of 300 frames of a" in verdict(report).words


def test_pings_that_are_dropped_fail_by_the_same_rule():
    report = run(policies=APART, workload="{kind: ping, frames: 20}")
    assert verdict(report) == Verdict(False, f"b answered 0 of 20 pings of a: echo ({NOTE})")
    assert [guest["lost"] for guest in report["guests"]] == [0, 0]


@pytest.mark.parametrize("kind", ["pairs", "ping", "broadcast"])
def test_a_lab_that_expects_nothing_passes_when_nothing_arrives(kind):
    report = run(policies=APART, workload=f"{{kind: {kind}, frames: 20, expect: none}}")
    assert verdict(report).passed
    assert verdict(report).words.startswith("what arrived is what the lab expects")


@pytest.mark.parametrize("kind", ["pairs", "ping"])
def test_a_lab_that_expects_nothing_fails_when_something_arrives(kind):
    judged = verdict(run(workload=f"{{kind: {kind}, frames: 20, expect: none}}"))
    assert not judged.passed
    assert "20 of 20" in judged.words
    assert "expected none" in judged.words


def test_each_guest_and_each_pair_may_have_an_expectation_of_its_own():
    guests = [("pf0", n) for n in range(3)]
    policies = "[{id: 0, vlan-id: 10}, {id: 1, vlan-id: 10}, {id: 2, vlan-id: 20}]"
    fan_in = lab_text(guests, workload="{kind: fan-in, frames: 300, expect: all}", policies=policies)
    for text in (with_expectation(fan_in, "a", "{c: none}"), with_expectation(fan_in, "a", "{b: 100%, c: 0}")):
        assert verdict(run_lab(parse_lab(text))).passed
    wrong = verdict(run_lab(parse_lab(with_expectation(fan_in, "a", "{b: none, c: 90%}"))))
    assert wrong.words == (
        "a heard 300 of 300 frames of b, expected none; a heard 0 of 300 frames of c, expected 0.9: vlan-membership"
        " (a is in VLAN 10, c is in VLAN 20)"
    )


def test_what_is_not_expected_may_leave_by_the_wire(tmp_path):
    text = lab_text(policies=APART, workload="{kind: pairs, frames: 50, expect: none}")
    uplink = f"uplink: 'stream:listen:{tmp_path}/wire', model: 82576"
    assert verdict(run_lab(parse_lab(text.replace("model: 82576", uplink)))).passed


def flow(**values):
    return {
        "sender": "a", "receiver": "b", "unit": "frames", "sent": 100, "heard": 90, "expected": "all-but-overruns",
        "reasons": {"no-descriptor": 10}, **values,
    }  # fmt: skip


def test_overruns_are_what_overload_is_about_but_silence_is_not():
    assert is_met(flow())
    assert not is_met(flow(reasons={"no-descriptor": 9, "mac-spoof": 1}))
    assert not is_met(flow(heard=0, reasons={"no-descriptor": 100}))
    assert not is_met(flow(expected="all"))
    assert is_met(flow(expected=0.9))
    assert not is_met(flow(expected=0.91))
    assert is_met(flow(heard=0, expected=0.0))
    assert is_met(flow(sent=0, heard=0, reasons={}))


def test_many_flows_are_named_in_part():
    guests = [("pf0", n) for n in range(8)]
    policies = "[{id: 0, vlan-id: 10}, " + ", ".join(f"{{id: {n}, vlan-id: 20}}" for n in range(1, 8)) + "]"
    report = run(guests, total_vfs=8, workload="{kind: fan-in, frames: 10}", policies=policies, memory_mib=4)
    assert verdict(report).words.endswith("; and 3 more")


# A full disk.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not run: this system has no /dev/full")
@pytest.mark.parametrize("frames", [10, 5000])  # what fits into buffers until the end, and what does not
def test_a_full_disk_does_not_end_a_run_and_the_report_names_the_file(frames):
    full = Path("/dev/full")
    lab = parse_lab(lab_text(workload=f"{{kind: pairs, frames: {frames}}}"))
    told = []
    report = run_lab(lab, capture=full, trace=full, save_state=full, finished=told.append)
    assert told == [report]
    assert verdict(report).passed
    assert [guest["rx_frames"] for guest in report["guests"]] == [frames, frames]
    assert sorted(report["unwritten"]) == [
        "/dev/full: cannot be written (No space left on device)",
        "/dev/full: cannot be written (No space left on device); choose another file",
        "cannot write the trace /dev/full: No space left on device",
    ]


@pytest.mark.parametrize("where", ["workload", "uplink"])
def test_a_capture_that_ends_in_a_frame_is_used_and_the_report_says_so(tmp_path, where):
    whole = Path(__file__).parents[2] / "captures" / "ping.pcap"
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(whole.read_bytes()[:-10])
    text = lab_text(workload=f"{{kind: pcap, pcap: {cut}}}")
    if where == "uplink":
        text = lab_text().replace("link-mbps: 0,", f"uplink: 'pcap:{cut}',")
    report = run_lab(parse_lab(text))
    assert verdict(report).passed
    (note,) = report["notes"]
    assert re.fullmatch(rf"{re.escape(str(cut))}: ends in frame \d+", note)
    assert "notes" not in run_lab(parse_lab(text.replace(str(cut), str(whole))))


def test_groups_that_an_untrusted_guest_may_not_ask_for_are_said(tmp_path):
    capture = tmp_path / "groups.pcap"
    with capture.open("wb") as stream:
        writer = dpkt.pcap.Writer(stream)
        for n in range(31):
            writer.writepkt(bytes([0x01, 0, 0x5E, 0, 0, n, 2, 0, 0, 0, 0, 1, 0x88, 0xB5]) + bytes(46), ts=n)
    text = lab_text(workload=f"{{kind: pcap, pcap: {capture}}}")
    report = run_lab(parse_lab(text))
    asked = "hears 30 of the capture's 31 multicast groups: the policy of its VF does not say trust: true"
    assert [note.split(" ", 2)[2] for note in report["notes"]] == [asked] * 2
    trusted = lab_text(
        workload=f"{{kind: pcap, pcap: {capture}}}", policies="[{id: 0, trust: true}, {id: 1, trust: true}]"
    )
    assert "notes" not in run_lab(parse_lab(trusted))


# What does not work names the key.


def test_a_guest_without_enough_memory_is_named():
    text = lab_text(memory_mib=4, workload="{kind: pairs, frames: 10, frame-bytes: 9018}")
    with pytest.raises(
        VirtfnError, match=r"^lab.yaml:5: guests\[0\].memory-mib: the guest has no \d+ KiB of memory left"
    ):
        run_lab(parse_lab(text, "lab.yaml"))


def test_an_uplink_that_is_not_there_is_named(tmp_path):
    text = lab_text().replace("model: 82576", f"model: 82576, uplink: 'stream:{tmp_path}/x'")
    with pytest.raises(VirtfnError, match=r"^lab.yaml:3: pfs\[0\].uplink: "):
        run_lab(parse_lab(text, "lab.yaml"))


def test_more_work_than_can_be_tracked_is_named():
    text = lab_text([("pf0", n) for n in range(8)], total_vfs=8, workload="{kind: pairs, frames: 1000000000}")
    with pytest.raises(VirtfnError, match=r"^lab.yaml:\d+: workload.kind: 1000000000 frames for each of 8 guests"):
        run_lab(parse_lab(text, "lab.yaml"))


@pytest.mark.parametrize("page", ["README.md", "docs/reference/iommu.md", "docs/explain/one-frame.md"])
def test_functions_that_documents_ask_about_are_in_the_built_in_lab(page):
    asked = re.findall(r"virtfn iommu explain ([0-9a-f:.]+)", (Path(__file__).parents[3] / page).read_text())
    with machine_for(builtin_lab()) as machine:
        assert set(asked) <= {format_rid(run.vf.rid) for run in machine.guests}


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
