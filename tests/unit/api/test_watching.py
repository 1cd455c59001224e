"""Watched VFs of a lab that lives: requests and events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from unit.rig import frame, lab_text, send
from virtfn.api.lab import parse_lab
from virtfn.api.session import Session
from virtfn.api.session.events import (
    Events,
    VfQuarantined,
    VfReleased,
    VfSpoofed,
    VfThrottled,
    VfWarned,
)
from virtfn.api.session.watching import LimitDocument, ListVfs, QuarantineVf, ReleaseVf, VfDocument
from virtfn.hw.types import Iova, Mac
from virtfn.iovm.iovm import VfState
from virtfn.iovm.rules import Kind
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import VirtfnError

FLOOD = "{kind: pairs, frames: 500}"
WATCH = "[{id: 0, watch: {window-ms: 200, spoof: {per-second: 50, action: ACTION}, dma-faults: {per-second: 50}}}]"


@pytest.fixture
def made():
    with Session(parse_lab(lab_text(workload=FLOOD, policies=WATCH.replace("ACTION", "quarantine")))) as session:
        session.start()
        yield session


def told(events: Events, kind: type) -> list[Any]:
    return [each.event for each in events.since(0).events if isinstance(each.event, kind)]


def test_a_vf_is_stopped_and_released_by_request(made: Session) -> None:
    document = made.ask(QuarantineVf("pf0", 0, "a test"))
    assert set(document) == set(VfDocument.__annotations__)
    assert set(document["watch"]) == {kind.value for kind in Kind}
    assert set(document["watch"]["spoof"]) == set(LimitDocument.__annotations__)
    assert (document["pf"], document["vf"], document["guest"]) == ("pf0", 0, "a")
    assert (document["state"], document["why"], document["throttled_mbps"]) == ("quarantined", "a test", None)
    with pytest.raises(VirtfnError, match="is quarantined, not assigned"):
        made.ask(QuarantineVf("pf0", 0))
    assert made.ask(ReleaseVf("pf0", 0))["state"] == "assigned"
    with pytest.raises(VirtfnError, match="is assigned, not quarantined"):
        made.ask(ReleaseVf("pf0", 0))
    assert [vf["state"] for vf in made.ask(ListVfs())] == ["assigned", "assigned", "free", "free"]
    (stopped,), (released,) = told(made.events, VfQuarantined), told(made.events, VfReleased)
    assert (stopped.vf, stopped.guest, stopped.kind, stopped.why) == (0, "a", None, "a test")
    assert (released.pf, released.vf, released.guest) == ("pf0", 0, "a")
    json.dumps([each.document() for each in made.events.since(0).events])


def test_a_hostile_guest_is_stopped_while_the_lab_lives(made: Session) -> None:
    driver, peer = (run.guest.nics[0].driver for run in made.machine.guests)
    rid = made.machine.guests[0].vf.rid

    def attack() -> bool:
        send(driver, *[frame(peer.mac, Mac(0x1234))] * 4)
        made.machine.pfs[0].nic.serve()
        made.machine.host.dma_write(rid, Iova(1 << 40), b"x")
        made.machine.host.serve_iommu()
        return made.machine.guests[0].vf.state is VfState.QUARANTINED

    assert made.run_until(attack, 20 * S_PS)
    (event,) = told(made.events, VfQuarantined)
    assert (event.kind, event.guest) == ("spoof", "a")
    assert "50 are allowed" in event.why
    assert told(made.events, VfSpoofed)[0].count > 0
    (vf, *_) = made.ask(ListVfs("pf0"))
    assert vf["why"] == event.why


@pytest.mark.parametrize("action", ["warn", "throttle"])
def test_what_is_done_is_what_the_lab_says(action: str) -> None:
    with Session(parse_lab(lab_text(workload=FLOOD, policies=WATCH.replace("ACTION", action)))) as made:
        made.start()
        driver, peer = (run.guest.nics[0].driver for run in made.machine.guests)
        kind = VfWarned if action == "warn" else VfThrottled

        def attack() -> bool:
            send(driver, *[frame(peer.mac, Mac(0x1234))] * 4)
            made.machine.pfs[0].nic.serve()
            return bool(told(made.events, kind))

        assert made.run_until(attack, 20 * S_PS)
        (vf, *_) = made.ask(ListVfs("pf0"))
        assert vf["state"] == "assigned"
        assert vf["throttled_mbps"] == (10 if action == "throttle" else None)
        assert vf["watch"]["spoof"] | {"per_second": 0} == {"per_second": 0, "allowed": 50, "action": action}


def test_a_lab_at_rest_looks_seldom_and_cheaply(made: Session) -> None:
    watch, looks = made.machine.watch, 0
    turn = watch.turn

    def count(now: int) -> int:
        nonlocal looks
        looks += now >= watch.due()
        return turn(now)

    watch.turn = count  # type: ignore[method-assign]
    made.run_until(lambda: False, 300 * MS_PS)
    assert 3 <= looks <= 8


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (lambda: QuarantineVf("pf9", 0), "no PF is named pf9; there are pf0"),
        (lambda: QuarantineVf("pf0", 7), "pf0 has no VF 7: 4 are enabled"),
        (lambda: QuarantineVf("pf0", 3), "is free, not assigned"),
        (lambda: ListVfs("pf9"), "no PF is named pf9"),
        (lambda: QuarantineVf.from_params({"pf": "pf0", "vf": -1}), "vf is a number"),
        (lambda: QuarantineVf.from_params({"pf": 5, "vf": 1}), "pf is the name of a PF"),
        (lambda: QuarantineVf.from_params({"pf": "pf0", "vf": 1, "why": "x\n"}), "why is a line"),
        (lambda: QuarantineVf.from_params({"pf": "pf0", "vf": 1, "why": "x" * 201}), "why is a line"),
        (lambda: ReleaseVf.from_params({"pf": "pf0", "vf": 1, "why": "x"}), "no such parameter: why"),
        (lambda: ListVfs.from_params({"vf": 1}), "no such parameter: vf"),
    ],
)
def test_what_cannot_be_is_refused_by_name(made: Session, request_of: Callable[[], Any], words: str) -> None:
    with pytest.raises(VirtfnError, match=words):
        made.ask(request_of())
