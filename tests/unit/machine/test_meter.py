"""The meter of a guest: one row, one list of events, and sources that belong to it for a while."""

from __future__ import annotations

import pytest

from unit.rig import Rig, frame, lab_text, send, take
from virtfn.api.lab import parse_lab
from virtfn.api.session import Session
from virtfn.machine.meter import EVENTS, Meter


def test_events_are_counted_by_name_and_no_other() -> None:
    meter = Meter()
    meter.add("copies")
    meter.add("copy_bytes", 1500)
    assert list(meter.read()) == list(EVENTS)
    assert (meter["copies"], meter.read()["copy_bytes"], sum(meter.read().values())) == (1, 1500, 1501)
    with pytest.raises(KeyError):
        meter.add("teleports")


def test_exits_are_the_sum_of_their_kinds() -> None:
    meter = Meter()
    for n, kind in enumerate(("config", "bar", "msix"), 1):
        meter.add(f"exit_{kind}", n)
    assert meter.exits == 6


def test_a_source_counts_from_when_it_is_followed_until_it_is_let_go() -> None:
    meter, device = Meter(), {"dma_frames": 100}
    meter.follow("vf", lambda: dict(device))
    device["dma_frames"] += 5
    assert meter.read()["dma_frames"] == 5
    meter.release("vf")
    device["dma_frames"] += 7  # the next owner's
    assert meter.read()["dma_frames"] == 5
    meter.follow("vf", lambda: dict(device))
    device["dma_frames"] += 1
    assert meter.read()["dma_frames"] == 6
    meter.release("vf")
    meter.release("vf")
    assert meter.read()["dma_frames"] == 6


def test_frames_and_walks_are_those_of_the_guests_own_function() -> None:
    with Rig() as rig:
        before = [rig.guest(n).meter.read() for n in (0, 1)]
        send(rig.driver(0), *[frame(rig.driver(1).mac, rig.driver(0).mac, length=200) for _ in range(10)])
        rig.serve()
        assert len(take(rig.driver(1))) == 10
        after = [rig.guest(n).meter.read() for n in (0, 1)]
        for one, other in zip(before, after, strict=True):
            assert (other["dma_frames"] - one["dma_frames"], other["dma_bytes"] - one["dma_bytes"]) == (10, 2000)
            assert other["iommu_walks"] > one["iommu_walks"]
        walks = sum(int(row.unit[0]["page_walks"]) for row in rig.machine.host.iommu.rows)
        assert sum(counts["iommu_walks"] for counts in after) == walks


def test_a_function_takes_what_it_did_along_to_nobody() -> None:
    with Rig() as rig:
        send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac))
        rig.serve()
        counted = rig.guest(0).meter.read()
        rig.iovm.take_back(rig.vf(0))
        left = rig.guest(0).meter.read()
        assert {name: left[name] for name in ("dma_frames", "dma_bytes")} == {
            name: counted[name] for name in ("dma_frames", "dma_bytes")
        }


def test_a_lab_reads_the_meter() -> None:
    with Session(parse_lab(lab_text(workload="{kind: pairs, frame-bytes: 104, frames: 500}"))) as session:
        session.start()
        session.work()
        report = session.report()
        meters = {run.lab.name: run.guest.meter for run in session.machine.guests}
        for guest in report["guests"]:
            meter = meters[guest["name"]].read()
            assert guest["exits"] == sum(count for event, count in meter.items() if event.startswith("exit_"))
            assert (guest["copies"], guest["interrupts"]) == (meter["copies"], meter["interrupts"])
            assert (meter["copies"], meter["notify_host"]) == (0, 0)
            assert (meter["dma_frames"], meter["dma_bytes"]) == (1000, 100_000)
        session.stop()
